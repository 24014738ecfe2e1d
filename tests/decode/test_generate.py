"""Decoding: with a cache as without one, each row by itself, and the same again from the same seed."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from lm.decode.generate import CHUNK, NonFiniteLogits, extend, generate, pad_prompts, prefill, stream
from lm.decode.sampling import Sampling, row_keys
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.families import gpt, llama
from lm.model.transformer import Transformer
from tests.model.reference import SIMPLE, lively, run

CONTEXT = 48
GPT = gpt(vocab=31, layers=2, width=12, heads=3, context=CONTEXT)
LLAMA = llama(vocab=31, layers=2, width=16, heads=4, kv_heads=2, mlp=20, context=CONTEXT)
COMPUTE = replace(Compute(matmul="float32").resolve("cpu"), unroll=1)
GREEDY, WARM = Sampling(temperature=0), Sampling(temperature=1.5)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [30, 0, 12]]
NEW = 21  # more than a chunk, and no multiple of it
DRAWN: dict[str, Any] = dict(sampling=WARM, seed=5)


def written(
    cfg: ModelConfig, prompts: Any = PROMPTS, new: int = NEW, sampling: Sampling = GREEDY, **options: Any
) -> Any:
    return generate(Transformer(cfg, COMPUTE), lively(cfg), prompts, new, sampling=sampling, **options)


@cache
def greedy(cfg: ModelConfig) -> list[list[int]]:
    return written(cfg)


@cache
def drawn(cfg: ModelConfig) -> list[list[int]]:
    return written(cfg, **DRAWN)


def logits_of(cfg: ModelConfig, rows: list[list[int]]) -> np.ndarray:
    """The logits [B, V] of the token after each row, without a cache: one program for all lengths."""
    padded = np.array([row + [0] * (CONTEXT - len(row)) for row in rows], np.int32)
    return run(Transformer(cfg, SIMPLE), lively(cfg), padded)[np.arange(len(rows)), [len(row) - 1 for row in rows]]


@pytest.mark.parametrize("cfg", [GPT, LLAMA], ids=["gpt", "llama"])
def test_greedy_is_the_argmax_of_the_whole_text(cfg: ModelConfig) -> None:
    """Without a cache, every token from all those before it; what stands behind does not matter."""
    rows = [list(p) for p in PROMPTS]
    for _ in range(NEW):
        rows = [[*row, int(logits.argmax())] for row, logits in zip(rows, logits_of(cfg, rows), strict=True)]
    assert greedy(cfg) == [row[len(p) :] for row, p in zip(rows, PROMPTS, strict=True)]


def test_each_token_is_drawn_with_a_key_of_its_row_and_its_place() -> None:
    """Without a cache, the token after t others of row i with the batch's key folded with i and then with t."""
    rows, keys = [list(p) for p in PROMPTS], row_keys(jax.random.key(5), len(PROMPTS))
    draw = jax.jit(lambda logits, lengths: WARM(logits, jax.vmap(jax.random.fold_in)(keys, lengths)))
    for _ in range(NEW):
        new = draw(logits_of(LLAMA, rows), np.array([len(row) for row in rows])).tolist()
        rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
    assert drawn(LLAMA) == [row[len(p) :] for row, p in zip(rows, PROMPTS, strict=True)]


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    """Greedy rows anywhere; drawn ones with the key of their place, here the first."""
    for i, prompt in enumerate(PROMPTS):
        assert written(GPT, [prompt]) == [greedy(GPT)[i]]
    assert written(LLAMA, PROMPTS[:1], **DRAWN) == drawn(LLAMA)[:1]
    longer = [PROMPTS[0], list(range(20)), PROMPTS[2]]  # more padding behind the others
    for again, row in ((written(GPT, longer), greedy(GPT)), (written(LLAMA, longer, **DRAWN), drawn(LLAMA))):
        assert (again[0], again[2]) == (row[0], row[2])


def test_a_seed_gives_the_same_text_and_another_another() -> None:
    assert written(LLAMA, **DRAWN) == drawn(LLAMA)
    assert written(LLAMA, sampling=WARM, seed=6) != drawn(LLAMA)
    assert drawn(LLAMA) != greedy(LLAMA)
    one, other, _ = written(LLAMA, [PROMPTS[0]] * 3, **DRAWN)
    assert one != other


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_what_is_no_seed_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed}: expected at"):
        list(stream(Transformer(LLAMA, COMPUTE), {}, PROMPTS, NEW, WARM, seed=seed))


def test_a_shorter_text_is_the_start_of_a_longer_one() -> None:
    for new in (1, CHUNK):
        assert written(LLAMA, new=new) == [row[:new] for row in greedy(LLAMA)]


def test_the_stream_is_the_text() -> None:
    chunks = list(stream(Transformer(LLAMA, COMPUTE), lively(LLAMA), PROMPTS, NEW, WARM, seed=5))
    assert [len(c[0]) for c in chunks] == [1, CHUNK - 1, NEW - CHUNK]  # the first does not wait for a chunk
    assert [sum((c[i] for c in chunks), []) for i in range(3)] == drawn(LLAMA)


@pytest.mark.parametrize("place", [3, CHUNK - 1, CHUNK])
def test_a_row_ends_before_its_stop_token(place: int) -> None:
    """The token at `place` of the first row stops that row where it first comes, and each other row where it does."""
    stop = drawn(LLAMA)[0][place]
    rows = written(LLAMA, **DRAWN, stop=[stop])
    assert rows == [row[: row.index(stop)] if stop in row else row for row in drawn(LLAMA)]


def test_a_row_that_has_ended_repeats_its_stop_token() -> None:
    """In the tokens of a chunk, of which `stream` gives those before it."""
    model, text = Transformer(LLAMA, COMPUTE), drawn(LLAMA)[0]
    (prompt, room), stop = pad_prompts(PROMPTS[:1], NEW, LLAMA), text[3]
    state = prefill(model, lively(LLAMA), prompt, jax.random.key(5), room, WARM)
    _, found = extend(model, lively(LLAMA), state, CHUNK, WARM, (stop,))
    assert np.asarray(found)[0].tolist() == text[: text.index(stop)] + [stop] * (CHUNK - text.index(stop))


def test_the_stream_ends_with_the_last_row() -> None:
    for place, count in ((0, 1), (2, 2)):
        stop = sorted({row[place] for row in drawn(LLAMA)})
        chunks = list(stream(Transformer(LLAMA, COMPUTE), lively(LLAMA), PROMPTS, NEW, WARM, stop, seed=5))
        assert len(chunks) == count
        rows = [sum((chunk[i] for chunk in chunks), []) for i in range(3)]
        assert rows == [row[: [token in stop for token in row].index(True)] for row in drawn(LLAMA)]


def test_the_context_can_be_filled_to_the_last_token() -> None:
    """Of the cache, and of learned positions."""
    full, short = [i % 31 for i in range(CONTEXT - 5)], [1]
    both, alone = written(GPT, [full, short], new=5), written(GPT, [short], new=CONTEXT - 1)
    assert [len(row) for row in both] == [5, 5] and len(alone[0]) == CONTEXT - 1
    assert both[1] == alone[0][:5]
    texts = [[*full, *both[0]], [*short, *alone[0]], [*short, *both[1]]]
    last = logits_of(GPT, [text[:-1] for text in texts]).argmax(-1)
    assert last.tolist() == [text[-1] for text in texts]


def test_nothing_asked_nothing_given() -> None:
    assert written(LLAMA, new=0) == [[], [], []]


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([[]], 3, "the prompt has no tokens, .*: give at least one character"),
        ([[1], []], 3, "the prompt has no tokens"),
        ([[1, 31]], 3, "token id 31 is outside the vocabulary of 31"),
        ([[-1]], 3, "token id -1 is outside the vocabulary of 31"),
        ([[1] * 50], 3, "a prompt of 50 tokens and 3 new ones do not fit the context of 48: .* at most 0 new tokens"),
        ([[1] * 40], 9, "shorten the prompt, or ask for at most 8 new tokens"),
        ([], 3, "0 prompts and max_new_tokens=3: expected at least one"),
        ([[1]], -1, "max_new_tokens=-1: .*no negative number"),
    ],
)
def test_what_cannot_be_continued_says_why(prompts: Any, new: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        written(LLAMA, prompts, new)


@pytest.mark.parametrize("at", [2, 20, 40])
def test_logits_that_are_not_finite_end_the_text(at: int) -> None:
    """With what came before them, naming the token."""
    stem = lively(GPT)["stem"]
    places = np.arange(CONTEXT)[:, None]
    params = {**lively(GPT), "stem": {**stem, "positions": np.where(places == at, np.nan, stem["positions"])}}
    prompts = [PROMPTS[2], [1]]
    expected, texts = written(GPT, prompts, 45)[0], []
    with pytest.raises(NonFiniteLogits, match=f"^the logits of new token {at - 1} are NaN"):
        for rows in stream(Transformer(GPT, COMPUTE), params, prompts, 45, GREEDY):
            texts.append(rows[0])
    assert (got := sum(texts, [])) == expected[: len(got)] and len(got) == (at - 2) // CHUNK * CHUNK


def test_penalties_read_the_prompt_and_the_text() -> None:
    """As greedy decoding without a cache, with the formulas of each: a repeated text is left."""
    sampling = Sampling(0.0, repetition_penalty=1.7, presence_penalty=0.2, frequency_penalty=0.3)
    rows = written(LLAMA, sampling=sampling)
    assert rows != greedy(LLAMA)
    texts = [list(prompt) for prompt in PROMPTS]
    for _ in range(NEW):
        for text, prompt, logits in zip(texts, PROMPTS, logits_of(LLAMA, texts), strict=True):
            seen, new = (np.bincount(ids, minlength=31) for ids in (text, text[len(prompt) :]))
            logits = np.where(seen > 0, np.where(logits > 0, logits / 1.7, logits * 1.7), logits)
            text.append(int(np.argmax(logits - 0.2 * (new > 0) - 0.3 * new)))
    assert rows == [text[len(prompt) :] for text, prompt in zip(texts, PROMPTS, strict=True)]
