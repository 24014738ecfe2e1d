"""`lm sample` writes the first text as it comes, and then the others."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

import lm.machine.hardware
from launch.__main__ import main


class Parrot:
    """A model that yields two pieces for each of n texts."""

    def stream(
        self, prompt: str, most: int, sampling: object, seed: int, n: int, stop: list[str]
    ) -> Iterator[list[str]]:
        yield [f"{i}a{''.join(stop)}" for i in range(n)]
        yield [f"{i}b" for i in range(n)]


@pytest.fixture(autouse=True)
def parrot(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prepare", "use_compilation_cache", "set_cpu_devices"):
        monkeypatch.setattr(lm.machine.hardware, name, lambda *args: None)
    monkeypatch.setattr("lm.pretrained.is_run", lambda run: True)
    monkeypatch.setattr("lm.pretrained.load", lambda run: Parrot())
    monkeypatch.setattr(
        "lm.pretrained.read_experiment", lambda run: SimpleNamespace(compute=SimpleNamespace(devices=0))
    )


def test_one_text_is_the_prompt_and_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", "--prompt", "def "]) == 0
    assert capsys.readouterr().out == "def 0a0b\n"


def test_several_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", "--prompt", ">", "-n", "2"]) == 0
    assert capsys.readouterr().out == "--- 1 of 2 ---\n>0a0b\n--- 2 of 2 ---\n>1a1b\n"


def test_a_sampling_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", "--top-p", "1.5"]) == 1
    assert "top_p=1.5" in capsys.readouterr().err


def test_stop_strings_reach_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "r", "--stop", "x", "--stop", "\n\n"]) == 0
    assert capsys.readouterr().out == "0ax\n\n0b\n"
