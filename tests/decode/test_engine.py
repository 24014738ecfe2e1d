"""The engine: each request gets, to the bit, what it gets alone; nothing is compiled after warm-up; slots come back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import jax.monitoring
import numpy as np
import pytest

from lm.decode import engine as engines
from lm.decode.engine import Engine, Output, Request
from lm.decode.generate import generate
from lm.decode.grammar import Choice, Regex
from lm.decode.layout import for_decoding
from lm.decode.sampling import NONE, Sampling
from lm.decode.slots import STRIDE
from lm.model.config import ModelConfig
from lm.model.families import llama
from lm.model.native import has_kernel
from lm.model.transformer import Transformer
from tests.decode.letters import grammars
from tests.model.reference import DELTA, LATENT, MODELS, SIMPLE, lively, run
from tests.model.test_hybrids import HYBRID
from tests.model.test_shared_kv import SHARED

CONTEXT = 600  # two chunks of a prompt and more, five blocks of a cache
LLAMA = llama(vocab=31, layers=2, width=16, heads=4, kv_heads=2, mlp=20, context=CONTEXT)
UNROLLED = replace(SIMPLE, unroll=0)
# a layer of every kind: where layers are unrolled, each of them is compiled
SHALLOW = {
    **MODELS,
    "latent": replace(LATENT, layers=3),
    "gated deltanet": replace(DELTA, layers=2, pattern=DELTA.pattern[-2:]),
    "gated attention": replace(HYBRID, layers=2, pattern=HYBRID.pattern[-2:]),
    "shared keys": replace(SHARED, layers=4),
}
SAMPLINGS = (
    Sampling(0.0),
    Sampling(),
    Sampling(1.5, top_k=5),
    Sampling(0.9, top_p=0.8),
    Sampling(1.2, min_p=0.1, repetition_penalty=1.3),
    Sampling(typical_p=0.7, presence_penalty=0.4, frequency_penalty=0.2),
    Sampling(0.0, repetition_penalty=1.5, logit_bias=((3, 4.0), (7, float("-inf")))),
    Sampling(vocab_size=20, top_k=4, top_p=0.9),
)


def engine(cfg: ModelConfig = LLAMA, **options: Any) -> Engine:
    return Engine(Transformer(cfg, UNROLLED), lively(cfg), **{"slots": 4, **options})


def laid_out(cfg: ModelConfig = LLAMA, weights: str = "float32", **options: Any) -> Engine:
    """As models are decoded on CPUs: by the kernel where there is a compiler, and then several prompts together."""
    decoder = for_decoding(Transformer(cfg, SIMPLE), lively(cfg), weights)
    return Engine(*decoder, **{"slots": 4, **options})


def logprobs(cfg: ModelConfig, ids: list[int]) -> np.ndarray:
    """Those of a text without a cache, [T, V]."""
    logits = np.asarray(run(Transformer(cfg, SIMPLE), lively(cfg), np.array([ids], np.int32)), np.float64)[0]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def slow(*values: Any) -> Any:
    """A case of `make test-slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


GATED = ("gated attention", 12)
FEW = ("gemma 3", "latent", "gpt-oss")


def mixed(count: int, vocab: int, context: int, seed: int = 0) -> list[Request]:
    """Requests of random lengths and options; every third begins as others do."""
    draw, shared = random.Random(seed), [random.Random(1).randrange(vocab) for _ in range(context)]
    requests = []
    for i in range(count):
        length = draw.choice([1, 2, 5, 31, 32, 33, 70, 256, 257, 300, 520])
        length = min(length, context - 12)
        ids = shared[:length] if i % 3 == 0 else [draw.randrange(vocab) for _ in range(length)]
        sampling = draw.choice(SAMPLINGS)
        stop = draw.sample(range(vocab), draw.randrange(2))
        top = draw.choice([0, 0, 3, 20])
        grammar = draw.choice([None, None, None, Regex("(AB|[C-H])*I?"), Choice(("ABC", "ABD", "E"))])
        constraint = grammars(vocab).constraint(grammar) if grammar else None
        options = dict(top_logprobs=top, processed=draw.random() < 0.3, grammar=constraint)
        requests.append(Request(ids, draw.randrange(1, 12), sampling, stop, i, **options))
    return requests


def serve(engine: Engine, requests: list[Request], seed: int) -> dict[int, list[Output]]:
    """The outputs of requests that arrive between steps, of which some are cancelled on the way: index -> outputs."""
    draw, left, numbers = random.Random(seed), list(enumerate(requests)), {}
    outputs: dict[int, list[Output]] = {i: [] for i, _ in left}
    while left or engine.busy:
        for _ in range(draw.randrange(3)):
            if left:
                i, request = left.pop(draw.randrange(len(left)))
                numbers[engine.submit(request)] = i
        for output in engine.step():
            outputs[numbers[output.number]].append(output)
        if draw.random() < 0.02 and numbers:
            number, i = draw.choice(list(numbers.items()))
            if engine.cancel(number):
                del outputs[i]
    return outputs


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs that are compiled inside it."""
    seen: list[str] = []

    def listen(name: str, seconds: float, **more: Any) -> None:
        if name.endswith("backend_compile_duration"):
            seen.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def bits(outputs: list[Output]) -> list[tuple[Any, ...]]:
    return [tuple(output)[1:] for output in outputs]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama", 60),
        ("gemma 3", 12),
        ("gated deltanet", 12),
        ("shared keys", 12),
        *(
            slow(name, count)
            for name, count in (("llama", 300), ("gpt", 12), ("mixtral", 12), ("alibi", 12), ("latent", 12), GATED)
        ),
    ],
)
def test_what_a_request_gets_does_not_depend_on_its_company(name: str, count: int) -> None:
    cfg = LLAMA if name == "llama" else SHALLOW[name]
    together, alone = engine(cfg), engine(cfg)
    requests = mixed(count, cfg.vocab, cfg.context)
    together.warm_up()
    with compilations() as compiled:
        outputs = serve(together, requests, seed=1)
    assert not compiled and len(outputs) > count // 2
    assert not together.running and sorted(together._free) == [0, 1, 2, 3]
    for i, got in outputs.items():
        assert bits(got) == bits(alone.generate([requests[i]])[0]), requests[i]


@pytest.mark.parametrize(
    ("name", "weights"),
    [("llama", "float32"), *(slow(name, "float32") for name in ("gpt", "gemma 3", "alibi")), slow("llama", "int8")],
)
def test_nor_where_several_prompts_are_read_together(name: str, weights: str) -> None:
    cfg = LLAMA if name == "llama" else SHALLOW[name]
    together, alone = laid_out(cfg, weights), laid_out(cfg, weights)
    prefill, read = together._prefill, []
    together._prefill = lambda reading: read.append(len(reading)) or prefill(reading)  # type: ignore
    requests = mixed(24, cfg.vocab, cfg.context, seed=2)
    requests = [replace(one, prompt_logprobs=i % 7 == 3) for i, one in enumerate(requests)]
    together.warm_up()
    with compilations() as compiled:
        outputs = together.generate(requests)
    assert not compiled and (max(read) > 1) == (has_kernel() and name != "alibi")
    for got, request in zip(outputs, requests, strict=True):
        assert bits(got) == bits(alone.generate([request])[0]), request


def test_the_company_counts() -> None:
    """Two requests at once take fewer steps than one after the other."""
    requests = [Request([1, 2, 3], 10, seed=i) for i in range(4)]
    together, steps = engine(), 0
    for request in requests:
        together.submit(request)
    while together.busy:
        together.step()
        steps += 1
    assert steps <= 4 + 10


@pytest.mark.parametrize("sampling", SAMPLINGS[4:], ids=str)  # which have the options of those before
def test_it_is_generate(sampling: Sampling) -> None:
    """Text by text, for every option."""
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9]]
    expected = generate(Transformer(LLAMA, SIMPLE), lively(LLAMA), prompts, 15, sampling=sampling, seed=2)
    requests = [Request(ids, 15, sampling, seed=2, index=i) for i, ids in enumerate(prompts)]
    assert [[output.token for output in outputs] for outputs in engine().generate(requests)] == expected


def test_a_step_decodes_no_more_tokens_than_its_program_has() -> None:
    busy = engine()
    busy.submit(Request([3, 1, 4], 30, Sampling(0.0)))
    assert len(busy.step(1)) == 2 and len(busy.step(100)) == STRIDE


@pytest.mark.parametrize("name", [name if name in FEW else slow(name) for name in MODELS])
def test_its_logprobabilities_are_the_trainer_s(name: str) -> None:
    """Of every token, those of the forward pass without a cache; with the likeliest alternatives."""
    cfg = SHALLOW[name]
    if cfg.has_encoder or not cfg.causal:
        with pytest.raises(ValueError, match="has an encoder"):
            engine(cfg)
        return
    (outputs,) = engine(cfg).generate([Request([3, 1, 4], 6, Sampling(1.3), seed=4, top_logprobs=3)])
    ids = [3, 1, 4, *(output.token for output in outputs)]
    expected = logprobs(cfg, ids[:-1])[2:]
    for output, row in zip(outputs, expected, strict=True):
        assert output.logprob == pytest.approx(row[output.token], rel=1e-5, abs=1e-5)
        best = np.argsort(-row)[:3]
        assert [token for token, _ in output.top] == best.tolist()
        assert [logprob for _, logprob in output.top] == pytest.approx(row[best].tolist(), rel=1e-5, abs=1e-5)


def test_processed_logprobabilities_are_of_what_was_drawn_from() -> None:
    sampling = Sampling(0.7, top_k=3)
    (outputs,) = engine().generate([Request([3, 1, 4], 6, sampling, top_logprobs=5, processed=True)])
    for output in outputs:
        (best, *_), values = zip(*output.top, strict=True)
        assert np.exp(values[:3]).sum() == pytest.approx(1, abs=1e-5) and set(values[3:]) == {-np.inf}
        assert dict(output.top)[output.token] == output.logprob and isinstance(best, int)


def test_a_shared_beginning_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives the same bits as when each request reads it."""
    ids = np.random.default_rng(0).integers(0, 31, 560).tolist()
    requests = [
        Request([*ids[:length], 3], 4, Sampling(), seed=i) for i, length in enumerate([530, 560, 300, 256, 511])
    ]
    sharing, reading = engine(), engine(shared_chunks=0)
    sharing.generate(requests[:1])
    assert [len(beginning) for beginning in sharing._saved] == [256, 512]
    prefill, read = sharing._prefill, []
    monkeypatch.setattr(sharing, "_prefill", lambda reading: read.append(reading[0].unread) or prefill(reading))
    for request in requests:
        alone = reading.generate([request])[0]
        number, outputs = sharing.submit(request), []
        while sharing.busy:
            outputs += sharing.step()
        assert bits(outputs) == bits(alone) and number == outputs[0].number
    # what was left at each chunk of 32: of 531 - 512, 561 - 512, 301 - 256, 1, and 512 - 256, a whole one
    assert read == [19, 49, 17, 45, 13, 1, 256]


def test_a_step_reads_as_many_tokens_as_a_chunk_has() -> None:
    """Of the prompts that wait, so that many short ones begin together and a long one holds nobody up."""
    busy = engine()
    numbers = [busy.submit(Request([3, 1, 4, 1, 5] * 20, 5)) for _ in range(3)]
    first, rest = numbers[:2], numbers[2:]  # of four chunks each
    assert [output.number for output in busy.step()] == [*first, *first]  # eight chunks, and then a token of each
    busy.submit(Request([1] * 300, 5))
    assert [output.number for output in busy.step()] == [*rest, *first, *rest]


def test_beginnings_are_forgotten_the_least_used_first() -> None:
    ids = np.random.default_rng(0).integers(0, 31, (3, 257)).tolist()
    few = engine(shared_chunks=2)
    for i in (0, 1, 0, 2):
        few.generate([Request(ids[i], 1)])
    assert list(few._saved) == [tuple(ids[0][:256]), tuple(ids[2][:256])]


def test_a_stop_token_is_not_given_and_length_ends() -> None:
    (plain,) = engine().generate([Request([3, 1, 4], 6, Sampling(0.0))])
    assert [output.finish_reason for output in plain] == [*[""] * 5, "length"]
    stop = plain[3].token
    (stopped,) = engine().generate([Request([3, 1, 4], 6, Sampling(0.0), stop=[stop])])
    first = [output.token for output in plain].index(stop)
    assert [o.token for o in stopped] == [o.token for o in plain[:first]] + [NONE] and stopped[
        -1
    ].finish_reason == "stop"


def test_logits_that_are_not_finite_end_a_request_alone() -> None:
    """The fourth token of a text has a row of the table that is not finite."""
    asked, table = Request([3, 1, 4], 9, Sampling(1.3), seed=4), np.array(lively(LLAMA)["stem"]["tokens"])
    (plain,) = engine().generate([asked])
    table[plain[3].token] = np.nan
    params = {**lively(LLAMA), "stem": {"tokens": table}}
    broken, whole = Engine(Transformer(LLAMA, UNROLLED), params, 4).generate([asked, Request([1], 3)])
    assert bits(broken[:4]) == bits(plain[:4])
    assert [output.finish_reason for output in broken] == ["", "", "", "", "not finite"]
    assert [output.finish_reason for output in whole] == ["", "", "length"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: engine().submit(Request([], 3)), "the prompt has no tokens"),
        (lambda: engine().submit(Request([31], 3)), "token id 31 is outside the vocabulary of 31"),
        (lambda: engine().submit(Request([1] * 590, 11)), "do not fit the context of 600"),
        (lambda: engine().submit(Request([1], 3, Sampling(logit_bias=((31, 1.0),)))), "logit_bias for id 31"),
        (lambda: Request([1], 0), "max_new_tokens=0"),
        (lambda: Request([1], 1, top_logprobs=21), "top_logprobs=21: expected 0 to 20"),
        (lambda: Engine(Transformer(LLAMA, SIMPLE), lively(LLAMA)), "compute.unroll=0"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_chunks_are_whole_blocks() -> None:
    assert all(chunk % 32 == 0 for chunk in engines.CHUNKS)


@pytest.mark.parametrize("name", ["llama", "gemma 3", "gated deltanet", "shared keys"])
def test_logprobabilities_of_a_prompt_are_the_trainer_s(name: str) -> None:
    """Of every token but the first, with the likeliest in its place; the same bits after others began alike."""
    cfg = {"llama": LLAMA}.get(name) or SHALLOW[name]
    ids = np.random.default_rng(0).integers(0, cfg.vocab, 300 if name == "llama" else 20).tolist()
    asked, whole = Request(ids, 1, top_logprobs=3, prompt_logprobs=True), engine(cfg)
    (first,), _, (again,) = whole.generate([asked]) + whole.generate([replace(asked, prompt_logprobs=False), asked])
    assert bits([first]) == bits([again]) and len(first.prompt) == len(ids) - 1
    expected = logprobs(cfg, ids)
    for (token, logprob, top), row, given in zip(first.prompt, expected, ids[1:], strict=False):
        assert token == given and logprob == pytest.approx(row[given], rel=1e-5, abs=2e-5)
        assert [value for _, value in top] == pytest.approx(np.sort(row)[::-1][:3].tolist(), rel=1e-5, abs=2e-5)
        assert dict(top).get(given, logprob) == logprob


def test_the_id_that_ended_a_text_is_told() -> None:
    (plain,) = engine().generate([Request([3, 1, 4], 1, Sampling(0.0), top_logprobs=1)])
    (ended,) = engine().generate([Request([3, 1, 4], 1, Sampling(0.0), stop=[plain[0].token], top_logprobs=1)])
    assert (plain[0].stop, ended[0].token, ended[0].stop) == (NONE, NONE, plain[0].token)
    assert ended[0].logprob == plain[0].logprob == ended[0].top[0][1] and not ended[0].prompt


def test_the_warm_up_compiles_all_that_a_context_has_room_for() -> None:
    """A context that one chunk fills but for a token; parameters that were put on a device, as a loaded model's are."""
    params = jax.device_put(lively(LLAMA), jax.devices()[0])
    small = Engine(Transformer(LLAMA, UNROLLED), params, slots=1, length=(length := 257))
    small.warm_up()
    with compilations() as compiled:
        for _ in range(2):
            small.generate([Request([1] * (length - 1), 1, top_logprobs=2, prompt_logprobs=True), Request([2], 2)])
            small.generate([Request([1] * (length - 1), 1)])
    assert not compiled
