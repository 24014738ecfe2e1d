"""A trace of some steps: the run's bits are the same, and the page says what took how long."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from lm.run import course
from lm.run.profile import Instruction, instructions, operations, page, profiled, read_trace
from tests.page.test_run_report import parsed
from tests.tiny import experiment, write_texts

PROGRAM = """HloModule jit_step, is_scheduled=true

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  ROOT %fusion.2 = (s32[], f32[8]{0:T(8,128)}) fusion(%p), metadata={op_name="jit(step)/transpose(jvp(Head))/mul"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0), metadata={op_name="state.params"}
  %while.3 = (s32[], f32[8]{0}) while(%a), condition=%c, body=%body.1
  %dot.4 = f32[8]{0} dot(%a, %a), metadata={op_name="jit(step)/jvp(Head)/dot_general" stack_frame_id=1}
  ROOT %add-done = f32[8]{0} add(%dot.4, %a)
}
"""


def test_the_instructions_of_a_program() -> None:
    known = instructions(PROGRAM)
    assert known["fusion.2"] == Instruction("fusion", "jit(step)/transpose(jvp(Head))/mul")
    assert known["dot.4"] == Instruction("dot", "jit(step)/jvp(Head)/dot_general")
    assert (known["while.3"].opcode, known["add-done"]) == ("while", Instruction("add", ""))


def test_what_holds_others_and_what_is_of_another_program_is_left_out() -> None:
    events = [("dot.4", 5.0), ("while.3", 90.0), ("fusion.2", 4.0), ("fusion.2", 4.0), ("elsewhere", 70.0)]
    found = operations(events, instructions(PROGRAM))
    assert [(one.name, one.nanoseconds, one.calls, one.part) for one in found] == [
        ("fusion.2", 8.0, 2, "backward"),
        ("dot.4", 5.0, 1, "forward"),
    ]
    text = page(found, "a run", range(5, 7), 0.25)
    assert "Steps 5 to 6, 250.0 ms each; 2 operations" in text and "Head/dot_general" in text and "38.5%" in text


@pytest.mark.slow
def test_the_bits_of_the_run_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declared = experiment(write_texts(tmp_path / "texts")).replace(prompts=(), eval_tokens=64, steps=6)
    course.train(declared, tmp_path / "plain")
    trace = partial(profiled, steps=range(2, 4))
    course.train(declared, tmp_path / "traced", stepping=trace)
    said = capsys.readouterr().out

    def logged(name: str) -> list[dict[str, Any]]:
        clock = ("tokens_per_second", "mfu")
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in clock} for line in lines]

    assert logged("plain") == logged("traced")
    folder = tmp_path / "traced" / "profile"
    assert f"profile of steps 2 to 3: {folder / 'operations.html'}; " in said and ".trace.json.gz for https" in said
    shown = parsed(folder / "operations.html").text
    assert "forward" in shown and "dot_general" in shown and "NaN" not in shown
    assert sum(nanoseconds for _, nanoseconds in read_trace(folder)) > 0
    course.train(declared, tmp_path / "traced", stepping=trace)  # it is finished, and has no such step left
    assert "--profile 2:3: the run took none of these steps" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "0:2", "4:2", "a", ":3", "-1:2", "1:2:3", "1.5"])
def test_steps_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiments.nowhere", f"--profile={text}"]) == 2
    assert "expected the first and the last step, as in 5:8" in capsys.readouterr().err


def test_steps_that_the_run_has_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lm.machine.hardware.prepare", lambda devices="": None)
    assert main(["train", "experiments.quickstart", "--profile", "240:241"]) == 1
    assert "--profile 240:241: expected steps from 1 to 240, as in 5:8" in capsys.readouterr().err
