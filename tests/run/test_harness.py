"""A model as lm-evaluation-harness asks it, against log_softmax of its logits; the harness itself is not needed."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from launch.__main__ import main
from lm.model.families import llama
from lm.model.transformer import Transformer
from lm.pretrained.model import Pretrained
from lm.run import harness
from lm.run.harness import Beginning, EngineModel, about, params_fingerprint
from lm.serve.conversation import engine_of
from lm.text.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer
from tests.model.reference import SIMPLE, lively

CONTEXT = 24
LETTERS = CharacterTokenizer("abcdefgh ")


class Modest(ByteTokenizer):
    """One that has a bos and does not put it before a prompt (SmolLM2's)."""

    def encode_prompt(self, text: str, parse_special: bool = False) -> list[int]:
        return self.encode(text, parse_special)


def without_bos() -> Tokenizer:
    tokenizer = ByteTokenizer()
    tokenizer.bos = None
    return tokenizer


@cache
def model(vocab: int = 261) -> Pretrained:
    cfg = llama(vocab=vocab, layers=1, width=16, heads=4, kv_heads=2, mlp=20, context=CONTEXT)
    tokenizer = LETTERS if vocab < 256 else ByteTokenizer()
    return Pretrained(cfg, lively(cfg), tokenizer, Transformer(cfg, SIMPLE))


def asked(own: Pretrained | None = None, tokenizer: Tokenizer | None = None, **options: Any) -> EngineModel:
    one = own or model()
    one = replace(one, tokenizer=tokenizer or one.tokenizer)
    return EngineModel(one, partial(engine_of, one), **options)


def instances(*args: Any) -> list[Any]:
    return [SimpleNamespace(args=one) for one in args]


def rows(own: Pretrained, ids: Sequence[int]) -> np.ndarray:
    """The log-probabilities after each of `ids`; a causal model does not see the padding behind them."""
    padded = [*ids, *[0] * (CONTEXT - len(ids))]
    return np.asarray(jax.nn.log_softmax(own.logits([padded])[0]), np.float64)[: len(ids)]


def direct(ids: Sequence[int], scored: int, own: Pretrained | None = None) -> float:
    """The log-probability of the last `scored` of `ids`, all but the last of which are read."""
    after = rows(own or model(), ids[:-1])[-scored:]
    return float(sum(row[id] for row, id in zip(after, ids[-scored:], strict=True)))


near = partial(pytest.approx, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    ("context", "continuation", "ids", "scored"),
    [
        ("The cat", " sat", [256, *b"The cat sat"], 4),
        ("ab  ", "c", [256, *b"ab  c"], 3),  # the spaces are the continuation's
        ("", " x", [256, *b" x"], 2),
        ("<bos>The", " end", [256, *b"The end"], 4),  # no second bos
        ("", "<bos>y", [256, *b"y"], 1),
        (" ", "z", [256, *b" z"], 2),
        ("a", "", [256, *b"a"], 0),
    ],
)
def test_a_continuation_after_one_bos(context: str, continuation: str, ids: list[int], scored: int) -> None:
    ((logprob, _),) = asked().loglikelihood(instances((context, continuation)))
    assert logprob == near(direct(ids, scored) if scored else 0.0)


@pytest.mark.parametrize(
    ("tokenizer", "always", "expected", "with_context"),
    [
        (ByteTokenizer(), True, Beginning(256, "bos", True), [256]),
        (ByteTokenizer(), False, Beginning(256, "bos", True), [256]),
        (Modest(), True, Beginning(256, "bos", True), [256]),
        (Modest(), False, Beginning(256, "bos", False), []),
        (without_bos(), True, Beginning(257, "eos", True), [257]),
        (without_bos(), False, Beginning(257, "eos", False), []),
    ],
)
def test_where_the_bos_comes_from(
    tokenizer: Tokenizer, always: bool, expected: Beginning, with_context: list[int]
) -> None:
    one = asked(tokenizer=tokenizer, always_bos=always)
    first, second = one.loglikelihood(instances(("ab", "cd"), ("", "cd")))
    assert one.beginning == expected and about(one)["bos"]["source"] == expected.source
    assert first[0] == near(direct([*with_context, *b"abcd"], 2))
    assert second[0] == near(direct([expected.id or 0, *b"cd"], 2))
    assert one.loglikelihood_rolling(instances(("abcd",))) == [near(direct([expected.id or 0, *b"abcd"], 4))]


def test_without_bos_and_eos_a_context_is_needed() -> None:
    one, own = asked(model(9)), model(9)
    assert one.beginning == Beginning(None, "none", False)
    ((logprob, _),) = one.loglikelihood(instances(("ab", "cd")))
    assert logprob == near(direct(LETTERS.encode("abcd"), 2, own))
    for request in ((one.loglikelihood, ("", "a")), (one.loglikelihood_rolling, ("a",))):
        with pytest.raises(ValueError, match="neither bos nor eos"):
            request[0](instances(request[1]))


def test_greedy_is_the_largest_log_probability() -> None:
    """Of every token of the continuation."""
    own, one = model(9), asked(model(9))
    greedy, other = {}, {}
    for context in "abcdefgh":
        ids = LETTERS.encode(context)
        for _ in range(3):
            ids.append(int(rows(own, ids)[-1].argmax()))
        greedy[context] = LETTERS.decode(ids[1:])
        other[context] = LETTERS.decode([*ids[1:3], (ids[3] + 1) % 9])
    whole = [(c, t) for c, t in greedy.items() if t.lstrip() == t]
    assert len(whole) > 3
    assert all(greedy for _, greedy in one.loglikelihood(instances(*whole)))
    assert not any(greedy for _, greedy in one.loglikelihood(instances(*((c, other[c]) for c, _ in whole))))


def test_padding_of_the_vocabulary_is_not_what_is_greedy() -> None:
    """Ids that no text has are as little the likeliest as they are drawn."""
    own, best = model(), {}
    for context in map(chr, range(97, 123)):
        row = rows(own, [256, ord(context)])[-1][:258]
        if 32 < row.argmax() < 127:
            best[context] = chr(row.argmax())
    kernel = np.array(own.params["head"]["kernel"])
    kernel[:, 260] = 10 * kernel[:, [ord(c) for c in best.values()]].sum(1)
    head = {**own.params["head"], "kernel": jax.device_put(kernel)}
    padded = replace(own, params={**own.params, "head": head})
    pairs = list(best.items())
    assert any(rows(padded, [256, ord(context)])[-1].argmax() == 260 for context in best)
    assert all(greedy for _, greedy in asked(padded).loglikelihood(instances(*pairs)))


def test_what_is_too_long_loses_tokens_on_the_left() -> None:
    """As under the harness's own adapter: the context's length of tokens is read, and the last one is not."""
    one, text = asked(), "abcdefghijklmnopqrstuvwxyz0123456789"
    requests = instances((text, "!?"), ("a", text[: CONTEXT - 2]), (text, text[:CONTEXT]), ("", text[:CONTEXT]))
    long, exact, full, empty = one.loglikelihood(requests)
    assert long[0] == near(direct([*text.encode(), *b"!?"][-CONTEXT - 1 :], 2))
    assert exact[0] == near(direct([256, *b"a", *text[: CONTEXT - 2].encode()], CONTEXT - 2))
    assert full[0] == near(direct([*b"9", *text[:CONTEXT].encode()], CONTEXT))
    assert empty[0] == near(direct([256, *text[:CONTEXT].encode()], CONTEXT))
    assert one.truncated == about(one)["truncated"] == 2
    with pytest.raises(ValueError, match="a continuation of 25 tokens: expected at most the context's 24"):
        one.loglikelihood(instances(("", text[: CONTEXT + 1])))


@pytest.mark.parametrize("count", [0, 1, CONTEXT, CONTEXT + 1, 2 * CONTEXT, 2 * CONTEXT + 7])
def test_rolling_windows_score_each_token_once(count: int) -> None:
    """With as much before it as the last token of its window leaves room for."""
    ids = [256, *np.random.default_rng(count).integers(97, 123, count).tolist()]
    expected = 0.0
    for k in range(1, len(ids)):
        end = min(((k - 1) // CONTEXT + 1) * CONTEXT, count)
        expected += direct(ids[max(0, end - CONTEXT) : k + 1], 1)
    text = bytes(ids[1:]).decode()
    found = asked().loglikelihood_rolling(instances((text,), ("<bos>" + text,), (text,)))
    assert found == [near(expected)] * 3  # one bos


def test_a_shorter_length_is_kept_to() -> None:
    ((logprob, _),) = asked(length=8).loglikelihood(instances(("abcdefghijkl", "mn")))
    assert logprob == near(direct(b"fghijklmn", 2))


def test_texts_are_those_of_the_model() -> None:
    """Greedy unless asked otherwise, each to before its own stop strings, and independent of the others."""
    own, one = model(9), asked(model(9))
    text = own.generate("abc", 12)
    stop = text[4:6]
    options = [{"max_gen_toks": 12}, {"until": ["zz", stop], "max_gen_toks": 12}, {"until": stop, "max_new_tokens": 3}]
    options += [{"until": [""], "do_sample": False, "temperature": 0.7, "max_gen_toks": 12}]
    found = one.generate_until(instances(*(("abc", each) for each in options)))
    assert found == [text, text[: text.index(stop)], text[: min(3, text.index(stop))], text]
    assert options[2] == {"until": stop, "max_new_tokens": 3}  # the task's own, untouched
    sampled = {"do_sample": True, "temperature": 1.5, "top_k": 5, "max_gen_toks": 12}
    several = one.generate_until(instances(*[("abc", sampled)] * 4))
    assert len(set(several)) > 1 and several == one.generate_until(instances(*[("abc", sampled)] * 4))


def test_a_text_s_context_loses_tokens_on_the_left() -> None:
    own, one = model(9), asked(model(9))
    text = "abcdefgh" * 4
    assert one.generate_until(instances((text, {"max_gen_toks": 10}))) == [own.generate(text[-14:], 10)]
    assert one.truncated == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gen_toks": CONTEXT}, "max_gen_toks=24 of a task: expected 1 to 23"),
        ({"max_gen_toks": 2, "num_beams": 3}, "generation option num_beams"),
        ({"max_gen_toks": 2, "top_p": 7.0}, "top_p"),
    ],
)
def test_options_that_are_not_honoured_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked().generate_until(instances(("a", options)))


def test_what_results_are_of() -> None:
    said = about(asked())
    assert said["bos"] == {"id": 256, "source": "bos", "every": True, "token": "<bos>"} and said["length"] == CONTEXT
    params = model().params
    on_host = jax.tree.map(np.array, params)
    assert said["params"] == params_fingerprint(params) == params_fingerprint(on_host)
    on_host["head"]["norm_scale"][0] += 1
    assert said["params"] != params_fingerprint(on_host)


# ---------------------------------------------------------------- the harness


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules in place of lm_eval's; what they are called with, and an answer of theirs."""
    seen: dict[str, Any] = {}

    class Tasks:
        all_tasks = ("lambada_openai", "blimp")

        def __init__(self, include_path: str | None):
            seen["include_path"] = include_path

    def simple_evaluate(lm: Any, **options: Any) -> dict[str, Any]:
        seen.update(options)
        if fails := seen.get("fails"):
            raise fails
        score, greedy = lm.loglikelihood(instances(("a", "b")))[0]
        return {"results": {"lambada_openai": {"acc,none": float(greedy), "score": score}}, "config": {"torch": None}}

    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.tasks")}
    modules["lm_eval.utils"] = ModuleType("lm_eval.utils")
    modules["lm_eval"].simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    modules["lm_eval.api.model"].LM = object  # type: ignore[attr-defined]
    modules["lm_eval.tasks"].TaskManager = Tasks  # type: ignore[attr-defined]
    modules["lm_eval.utils"].make_table = lambda found, column="results": "TABLE"  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(harness, "version", lambda name: "0")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("launch.serve.load", lambda *args, step: seen.update(loaded=(*args, step)) or model())
    return seen


def test_tasks_from_the_command_line(
    installed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "out.json"
    options = [
        "--limit",
        "3",
        "--num-fewshot",
        "2",
        "--include-path",
        str(tmp_path),
        "--output",
        str(file),
        "--adapter",
        "lora",
        *("--step", "3"),
    ]
    assert main(["evaluate", "m.gguf", "--tasks", "lambada_openai,blimp", *options]) == 0
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    assert "TABLE" in said and "bos: '<bos>', the tokenizer's bos, before every text" in said
    assert (installed["limit"], installed["num_fewshot"], installed["include_path"]) == (3, 2, str(tmp_path))
    assert installed["loaded"] == ("m.gguf", "", "", None, "lora", "3")
    assert installed["tasks"] == found["settings"]["tasks"] == ["lambada_openai", "blimp"]
    assert found["results"]["lambada_openai"]["score"] == near(direct([256, *b"ab"], 1)) and "config" not in found
    assert found["model"]["path"] == "m.gguf" and found["model"]["params"] == params_fingerprint(model().params)
    assert main(["evaluate", "m.gguf", "--tasks", "blimp", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == {
        "tasks": ["blimp"],
        "limit": None,
        "num_fewshot": None,
        "lm_eval": "0",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "blimb"], "unknown task 'blimb': did you mean blimp"),
        (["--tasks", "blimp", "--limit", "-1"], "--limit -1: expected at least 0"),
        (["--tasks", "blimp", "--include-path", "nowhere"], "--include-path nowhere: no such folder"),
        (["--tasks", "blimp", "--text", "a"], "--text and --tasks"),
        (["--num-fewshot", "3"], "--num-fewshot is of tasks"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, installed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "m.gguf", *options]) == 1
    assert message in capsys.readouterr().err


def test_tasks_that_cannot_be_loaded_are_one_line(
    installed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """But what fails later is no mistake of the user's."""
    installed["fails"] = KeyError("text")
    assert main(["evaluate", "m.gguf", "--tasks", "blimp"]) == 1
    error = capsys.readouterr().err
    assert "the tasks cannot be loaded: KeyError: 'text'; for data that is here" in error and error.count("\n") == 1
    one = asked()
    one.loglikelihood(instances(("a", "b")))
    with pytest.raises(KeyError):
        harness.evaluate_tasks(one, ["blimp"])


def test_the_harness_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["evaluate", "m.gguf", "--tasks", "blimp"]) == 1
    assert 'pip install -e ".[harness]"' in capsys.readouterr().err
