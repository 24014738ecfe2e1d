"""The metrics file survives kills and resumes; the bar is readable with and without a terminal."""

import io
import json
import math
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lm.machine.monitor import Bar, Metrics, duration, human, preparing, read_metrics, unreadable_lines, waiting


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def plain_console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False, width=120), out


def test_one_object_a_line(tmp_path: Path) -> None:
    with Metrics(tmp_path / "run") as metrics:
        metrics.write(1, {"loss": 2.5})
        metrics.write(1, {"eval/code/loss": 2.25})
    assert lines(tmp_path / "run") == [{"step": 1, "loss": 2.5}, {"step": 1, "eval/code/loss": 2.25}]


def test_a_line_is_on_disk_before_flush(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.write(1, {"loss": 2.5})
    assert lines(tmp_path) == [{"step": 1, "loss": 2.5}]
    metrics.close()


@given(total=st.integers(1, 12), resume=st.integers(0, 12), torn=st.integers(0, 20))
def test_a_resumed_file_has_the_bytes_of_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, total: int, resume: int, torn: int
) -> None:
    resume = min(resume, total)
    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")

    def write(folder: Path, start: int, end: int) -> None:
        with Metrics(folder, start) as metrics:
            for step in range(start + 1, end + 1):
                metrics.write(step, {"loss": 1 / step})

    write(whole, 0, total)
    write(killed, 0, total)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": total + 1, "loss": 1 / 3})[:torn])
    write(killed, resume, total)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_torn_line_of_an_earlier_step_goes_too(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}')
    assert [x["step"] for x in read_metrics(tmp_path)] == [1]
    Metrics(tmp_path, 5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_line_without_numbers_is_left_out(tmp_path: Path) -> None:
    values = ['"x"', "[]", "[1.0]", "{}", "2.5", "null"]
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": 1, "loss": {value}}}\n' for value in values))
    assert [line["loss"] for line in read_metrics(tmp_path)] == [2.5, None] and unreadable_lines(tmp_path) == 4
    (tmp_path / "inside.jsonl").write_text('{"step": 1, "a": [1, [2]]}\n{"step": 1, "a": [[[3]]]}\n')
    assert [line["a"] for line in read_metrics(tmp_path, "inside.jsonl", axes=2)] == [[1, [2]]]


def test_what_is_not_finite_is_still_json(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.write(3, {"loss": math.nan})
    assert lines(tmp_path) == [{"step": 3, "loss": None}]


def test_tensorboard_gets_the_same_numbers_and_the_purge(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with Metrics(tmp_path, 4) as metrics:
        metrics.write(5, {"loss": 2.5, "eval/code/loss": 2.25})
    (file,) = (tmp_path / "tensorboard").iterdir()
    raw, events = file.read_bytes(), []
    while raw:
        size = int.from_bytes(raw[:8], "little")
        events.append(Event.FromString(raw[12 : 12 + size]))
        raw = raw[16 + size :]
    assert [(e.step, e.session_log.status) for e in events if e.HasField("session_log")] == [(5, SessionLog.START)]
    assert {v.tag: v.simple_value for e in events for v in e.summary.value} == {
        "train/loss": 2.5,
        "eval/code/loss": 2.25,
    }


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    # the device reads without end: open it as the run would after its own checks
    metrics = Metrics.__new__(Metrics)
    metrics.path = tmp_path / "metrics.jsonl"
    metrics._file = metrics.path.open("a")
    with pytest.raises(ValueError, match="No space left on device; free some space"):
        metrics.write(1, {"loss": 1.0})


def test_a_place_that_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write .*--workdir"):
        Metrics(tmp_path / "file")


def test_the_bar_without_a_terminal_is_plain_lines_now_and_then() -> None:
    console, out = plain_console()
    now = iter(range(1000))  # each look at the clock is a second
    with Bar(100, 0, console, every_seconds=10, clock=lambda: float(next(now))) as bar:
        for step in range(1, 101):
            bar.update(step, "loss 2.000", 12_345.0, 0.42)
        bar.say("held-out [code] 1.2")
    shown = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()
    assert 3 < len(shown) < 40
    assert shown.pop(0) == "compiling the step …"
    assert shown[0].startswith("step   1/100  loss 2.000  12.3k tokens/s  MFU 42%")
    assert shown[-2].startswith("step 100/100") and "0 s left" in shown[-2]
    assert shown[-1] == "held-out [code] 1.2"


def test_the_bar_on_a_terminal_moves() -> None:
    out = io.StringIO()
    with Bar(10, 4, Console(file=out, force_terminal=True, width=120)) as bar:
        bar.update(5, "loss 2.250", 1e6, 0.5)
        bar.say("a remark")
        bar.note("evaluating")
    assert "loss 2.250  evaluating …" in re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "5/10" in out.getvalue() and "loss 2.250" in out.getvalue() and "a remark" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_takes_long_is_said_and_for_how_long(terminal: bool) -> None:
    out = io.StringIO()
    with waiting("compiling for v5p", Console(file=out, force_terminal=terminal, width=120), every_seconds=0.01):
        time.sleep(0.3 if terminal else 0.05)
    assert "compiling for v5p" in out.getvalue()
    assert ("0:00:00" if terminal else "compiling for v5p, 0 s so far") in out.getvalue()


def test_what_is_over_at_once_is_not_said_where_another_line_counts() -> None:
    out = io.StringIO()
    with waiting("drawing", Console(file=out), at_once=False):
        pass
    assert not out.getvalue()


def test_the_bar_counts_while_it_compiles() -> None:
    out = io.StringIO()
    with Bar(10, 0, Console(file=out, force_terminal=True, width=120)):
        time.sleep(0.3)
    assert "compiling the step, 0 s" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_preparing_tells_what_is_made(terminal: bool) -> None:
    out = io.StringIO()
    with preparing(Console(file=out, force_terminal=terminal, width=120)) as progress:
        progress("tokenizer", 0, 1)
        progress("tokenizer", 1, 1)
        progress("code, train", 3, 3)
    assert "tokenizer" in out.getvalue() and "code, train" in out.getvalue()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.5, "0.5"),
        (950, "950"),
        (999.7, "1k"),
        (12_345, "12.3k"),
        (999_600, "1M"),
        (4.56e6, "4.56M"),
        (2e13, "20T"),
        (math.nan, "?"),
    ],
)
def test_numbers_as_people_say_them(number: float, text: str) -> None:
    assert human(number) == text


def test_times_as_people_say_them() -> None:
    assert [duration(s) for s in (42, 185, 7385, math.nan)] == ["42 s", "3:05", "2:03:05", "?"]
