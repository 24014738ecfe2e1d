"""`lm sample` writes the first text as it comes, and then the others."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lm.machine.hardware
from launch.__main__ import main
from lm.decode.beam import BeamSearch
from lm.decode.grammar import Choice, Grammar, JsonSchema, Regex
from lm.decode.sampling import Sampling
from lm.decode.speculative import PromptLookup
from lm.pretrained.fill import FilledMasks


class Parrot:
    """A model that yields two pieces for each of n texts."""

    def stream(
        self, prompt: str, most: int, sampling: object, seed: int, n: int, stop: list[str], images: Any, **draft: Any
    ) -> Iterator[list[str]]:
        if draft:
            draft["acceptance"].drafted, draft["acceptance"].accepted = 8, 6
            yield [f"{draft['drafter']} {draft.get('draft_params')} "] * n
        yield [f"{i}a{''.join(stop)}" for i in range(n)]
        yield [f"{i}b" for i in range(n)]

    params, summary = "small", "a parrot"
    config = SimpleNamespace(causal=True, has_encoder=False, context=1000)

    def checked_tokenizer(self) -> Any:
        return SimpleNamespace(encode_prompt=lambda prompt: [1] * len(prompt))

    def draft_model(self, draft: "Parrot", tokens: int) -> str:
        return f"model {tokens}"

    def beam_search(self, prompt: str, most: int, how: BeamSearch) -> list[tuple[str, float]]:
        return [(f"{how}", -0.5)] * how.n


@pytest.fixture(autouse=True)
def parrot(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prepare", "use_compilation_cache", "set_cpu_devices"):
        monkeypatch.setattr(lm.machine.hardware, name, lambda *args: None)
    monkeypatch.setattr("lm.pretrained.is_run", lambda run: True)
    monkeypatch.setattr("lm.pretrained.load", lambda run, **options: Parrot())
    monkeypatch.setattr(
        "lm.pretrained.read_experiment", lambda run: SimpleNamespace(compute=SimpleNamespace(devices=0))
    )


def test_one_text_is_the_prompt_and_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", "--prompt", "def "]) == 0
    assert capsys.readouterr().out == "def 0a0b\n"


def test_several_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", "--prompt", ">", "-n", "2"]) == 0
    assert capsys.readouterr().out == "--- 1 of 2 ---\n>0a0b\n--- 2 of 2 ---\n>1a1b\n"


def test_on_a_terminal_the_wait_for_the_first_text_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sample", "r"]) == 0
    assert capsys.readouterr().err == "lm: a parrot\n"
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert main(["sample", "r"]) == 0
    assert "compiling" in capsys.readouterr().err


def test_a_sampling_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", "--top-p", "1.5"]) == 1
    assert "top_p=1.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("context", "encoder", "given", "most"),
    [(1000, False, [], 128), (64, False, [], 60), (3, False, [], 1), (64, True, [], 63)]
    + [(64, False, ["--max-new-tokens", "90"], 90)],
)
def test_without_a_number_as_many_tokens_are_added_as_fit(
    monkeypatch: pytest.MonkeyPatch, context: int, encoder: bool, given: list[str], most: int
) -> None:
    """The first command after training on short rows has no number."""
    asked: list[int] = []

    def stream(self: Parrot, prompt: str, most: int, *_: Any, **__: Any) -> Iterator[list[str]]:
        asked.append(most)
        yield [""]

    monkeypatch.setattr(Parrot, "config", SimpleNamespace(causal=True, has_encoder=encoder, context=context))
    monkeypatch.setattr(Parrot, "stream", stream)
    monkeypatch.setattr("lm.pretrained.fill.has_sentinels", lambda model, prompt: False)
    assert main(["sample", "r", "--prompt", "four", *given]) == 0 and asked == [most]


def test_stop_strings_reach_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", "--stop", "x", "--stop", "\n\n"]) == 0
    assert capsys.readouterr().out == "0ax\n\n0b\n"


def test_a_beam_search_has_scores(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--beams", "5", "-n", "2", "--length-penalty", "0", "--early-stopping", "never"]
    assert main(["sample", "r", "--prompt", ">", *asked]) == 0
    found = BeamSearch(5, 2, 0.0, "never")
    assert capsys.readouterr().out == "".join(f"--- {i} of 2, score -0.5000 ---\n>{found}\n" for i in (1, 2))
    assert main(["sample", "r", "--beams", "2"]) == 0
    assert capsys.readouterr().out == f"{BeamSearch(2)}\n"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--beams", "2", "--temperature", "0"], "--temperature is for drawn texts: leave out either it or --beams"),
        (["--beams", "2", "--seed", "0"], "--seed is for drawn"),
        (["--beams", "2", "--stop", "x"], "--stop is for drawn"),
        (["--beams", "2", "--best-of", "2", "--reward", "r"], "--best-of is for drawn"),
        (["--best-of", "2"], "--best-of N and --reward MODEL: expected both"),
        (["--reward", "r"], "--best-of N and --reward MODEL: expected both"),
        (["--best-of", "2", "--reward", "r", "-n", "3"], "--best-of 2 -n 3"),
        (["--best-of", "2", "--reward", "r", "--stop", "x"], "--stop is not for the texts of --best-of"),
        (["--length-penalty", "2"], "--length-penalty is of beam search: add --beams"),
        (["--beams", "2", "--prompt-lookup"], "--prompt-lookup is for drawn"),
        (["--draft-tokens", "2"], "--draft-tokens is of speculative decoding: add --draft MODEL or --prompt-lookup"),
        (["--draft-tokens", "0", "--prompt-lookup"], "tokens=0"),
        (["--beams", "-1"], "beams=-1"),
        (["--beams", "2", "--choice", "a"], "--choice is for drawn"),
        (["--regex", "a", "--stop", "b"], "--stop is not for the texts of a grammar"),
        (["--json-schema", "{"], "--json-schema '{' is not JSON"),
        (["--json-schema", "@gone.json"], "--json-schema @gone.json: No such file or directory"),
        (["--beams", "2", "-n", "3"], "n=3 texts of beams=2"),
    ],
)
def test_an_option_without_effect_is_refused(asked: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", *asked]) == 1
    assert said in capsys.readouterr().err


def test_the_best_of_n_have_their_rewards(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parrot, "encode", lambda self, prompt: [1] * len(prompt), raising=False)
    monkeypatch.setattr(Parrot, "score", lambda self, texts: np.array([len(str(t)) for t in texts]), raising=False)
    monkeypatch.setattr("lm.pretrained.assistant.assistant_of", lambda model, *options: options)

    def best_of(assistant: Any, records: Any, n: int, score: Any) -> list[list[tuple[str, float]]]:
        assert assistant == (9, Sampling(0.8, top_p=0.95), 3, 4, 10) and records == [{"prompt": ">"}]
        return [[(f"{i}", -i) for i in range(n)]]

    monkeypatch.setattr("lm.tune.best_of.best_of", best_of)
    asked = ["--prompt", ">", "--best-of", "4", "--reward", "s", "--seed", "3", "--max-new-tokens", "9"]
    assert main(["sample", "r", *asked]) == 0
    assert capsys.readouterr().out == ">0\n"
    assert main(["sample", "r", *asked, "-n", "2"]) == 0
    assert capsys.readouterr().out == "--- 1 of 2, reward 0.0000 ---\n>0\n--- 2 of 2, reward -1.0000 ---\n>1\n"


def test_drafts_are_the_model_s_or_looked_up_and_their_acceptance_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", "--draft", "s", "--draft-tokens", "7"]) == 0
    found = capsys.readouterr()
    assert found.out == "model 7 small 0a0b\n"
    assert found.err == "lm: a parrot\n6 of 8 drafted tokens accepted (75%), 0.00 a call\n"
    assert main(["sample", "r", "--prompt-lookup"]) == 0
    assert capsys.readouterr().out == f"{PromptLookup(4)} None 0a0b\n"


@pytest.mark.parametrize(
    ("asked", "grammar"),
    [
        (["--regex", "a+"], Regex("a+")),
        (["--choice", "a", "--choice", "b"], Choice(("a", "b"))),
        (["--json-schema", "{}"], JsonSchema("{}")),
        (["--json-schema", "@schema.json"], JsonSchema("[]\n")),
    ],
)
def test_a_grammar_reaches_the_model(
    asked: list[str],
    grammar: Grammar,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def constrained(model: Parrot, prompt: str, of: Grammar, *drawn: Any) -> Iterator[list[str]]:
        assert (of, *drawn) == (grammar, 9, Sampling(0.5, top_p=0.95), 3, 2)
        yield ["x", "y"]

    (tmp_path / "schema.json").write_text("[]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lm.pretrained.constrain.constrained", constrained)
    options = ["--prompt", ">", "-n", "2", "--max-new-tokens", "9", "--temperature", "0.5", "--seed", "3"]
    assert main(["sample", "r", *options, *asked]) == 0
    assert capsys.readouterr().out == "--- 1 of 2 ---\n>x\n--- 2 of 2 ---\n>y\n"


@pytest.mark.parametrize("asked", [["--max-new-tokens", "9"], ["--seed", "0"], ["--beams", "2"], ["--prompt-lookup"]])
def test_an_encoder_fills_masks_and_draws_nothing(
    asked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parrot, "config", SimpleNamespace(causal=False, has_encoder=False, context=64))
    filled = FilledMasks("a cat", [[("cat", 0.5), ("dog", 0.25)]])
    monkeypatch.setattr("lm.pretrained.fill.fill_masks", lambda model, text, n: filled)
    assert main(["sample", "r", *asked]) == 1
    assert f"{asked[0]} has no effect: this model is an encoder" in capsys.readouterr().err
    assert main(["sample", "r", "--prompt", "a [MASK]"]) == 0
    assert capsys.readouterr().out == "a cat\n"
    assert main(["sample", "r", "--prompt", "a [MASK]", "-n", "2"]) == 0
    assert capsys.readouterr().out == "a cat\n[MASK] 1: cat 0.500, dog 0.250\n"


def test_an_encoder_decoder_fills_sentinels_or_writes_its_output_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Parrot, "config", SimpleNamespace(causal=True, has_encoder=True, context=1000))
    monkeypatch.setattr("lm.pretrained.fill.has_sentinels", lambda model, text: "<" in text)
    monkeypatch.setattr("lm.pretrained.fill.fill_spans", lambda model, text, *others: [f"{text} {others}"])
    assert main(["sample", "r", "--prompt", "translate"]) == 0
    assert capsys.readouterr().out == "0a0b\n"
    assert main(["sample", "r", "--prompt", "<0>", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == f"<0> {(128, Sampling(0.0, top_p=0.95), 0, 1)}\n"
    assert main(["sample", "r", "--prompt", "<0>", "--beams", "2"]) == 1
    assert "--beams has no effect where the sentinels" in capsys.readouterr().err
