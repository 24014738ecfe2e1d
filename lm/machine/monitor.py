"""Monitoring of a run: metrics.jsonl, TensorBoard events, and a progress bar.

metrics.jsonl is the record: one JSON object per line, and after a resume exactly the lines that an uninterrupted run
would have written. TensorBoard gets the same values. The bar is drawn on a terminal; elsewhere (a log file, a batch
job) it is a plain line every few seconds."""

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lm.machine.tracking import Writer

PreparationProgress = Callable[[str, int, int], None]  # (what, done, total)
PLAIN_WIDTH = 120  # columns, where there is no terminal to ask


# ---------------------------------------------------------------- metrics


class Metrics:
    """Writes the metrics of a run to `workdir`/metrics.jsonl, `workdir`/tensorboard and `trackers`.

    The constructor keeps the lines of steps up to `resume_step` (-1: none) and drops the rest: what a killed run wrote
    after the checkpoint that it resumes from, and a truncated last line. Raises ValueError when the disk is full or
    read-only, here and in every method."""

    def __init__(self, workdir: str | Path, resume_step: int = -1, trackers: Sequence[Writer] = ()):
        self.path, self._trackers = Path(workdir) / "metrics.jsonl", trackers
        with _as_value_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            keep_until(self.path, resume_step)
            self._file = self.path.open("a", encoding="utf-8")
            self._events = _Events(self.path.parent / "tensorboard", resume_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the line {"step": step, **values}; a non-finite value becomes null (JSON has none)."""
        line = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        with _as_value_error(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()  # enough for a killed process; flush() below is for a machine that fails
            self._events.write(step, values)
        for tracker in self._trackers:
            tracker.write(step, values)

    def flush(self) -> None:
        """Sync everything written to disk. Call it before a checkpoint is committed."""
        with _as_value_error(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._events.flush()

    def close(self) -> None:
        """`flush`, then close the files."""
        try:
            self.flush()
        finally:
            with _as_value_error(self.path):
                self._file.close()
                self._events.close()
            for tracker in self._trackers:
                tracker.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(workdir: str | Path, name: str = "metrics.jsonl", axes: int = 0) -> list[dict[str, Any]]:
    """The lines of `workdir`/metrics.jsonl, or of another such file, in order; none where there is no file. A truncated
    line is left out, and one with something else than numbers, or than lists of them with at most so many `axes`."""
    return [line for text in _lines(workdir, name) if (line := _read_line(text, axes)) is not None]


def unreadable_lines(workdir: str | Path) -> int:
    """How many lines of `workdir`/metrics.jsonl are damaged; one that is being written is not."""
    return sum(_read_line(text, axes=0) is None for text in _lines(workdir) if text.endswith("\n"))


def _lines(workdir: str | Path, name: str = "metrics.jsonl") -> list[str]:
    path = Path(workdir) / name
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []


def _read_line(text: str, axes: int) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    complete = text.endswith("\n") and isinstance(line, dict) and isinstance(line.get("step"), int)
    return line if complete and all(_is_metric(value, axes) for value in line.values()) else None


def _is_metric(value: Any, axes: int) -> bool:
    if isinstance(value, list):
        return axes > 0 and all(_is_metric(one, axes - 1) for one in value)
    return isinstance(value, int | float | None)


def keep_until(path: Path, step: int) -> None:
    """Rewrite the lines of metrics at `path` atomically, without truncated lines and without those after `step`. Lines
    that stay keep their bytes."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [text for text in lines if (line := _read_line(text, axes=2)) is not None and line["step"] <= step]
    if len(kept) == len(lines):
        return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


class _Events:
    """TensorBoard's event file, by tensorboardX's record writer: its SummaryWriter writes from a thread, which a full
    disk ends, and the run would then wait for it for ever."""

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._new = Event
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{max(resume_step, 0)}")
        start = SessionLog(status=SessionLog.START)  # hides what an earlier part of the run wrote from this step on
        self._writer.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        event = self._new(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name if "/" in name else f"train/{name}", simple_value=value)
        self._writer.write_event(event)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def _as_value_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; free some space there, or choose another --workdir"
        ) from None


# ---------------------------------------------------------------- terminal


def human(number: float) -> str:
    """A number to three digits with an SI suffix: 950, 12.3k, 4.56M, 7.89G."""
    if not math.isfinite(number):
        return "?"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{unit}" if abs(number) < 999.5 * size else f"{number / size:.0f}{unit}"
    return f"{number:.3g}" if abs(number) < 100 else f"{number:.0f}"


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3:05 (minutes) or 2:03:05 (hours)."""
    if not math.isfinite(seconds):
        return "?"
    rounded = round(seconds)
    hours, minutes, rest = rounded // 3600, rounded // 60 % 60, rounded % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def terminal() -> Console:
    """The console of standard output, wide enough for a line where it is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    return console


@contextlib.contextmanager
def waiting(
    what: str, console: Console | None = None, every_seconds: float = 15.0, at_once: bool = True
) -> Iterator[None]:
    """Says that `what` is done, and for how long already: on a terminal a line that counts and goes at the end,
    elsewhere a line at the beginning, if `at_once`, and another every so many seconds."""
    console = console or terminal()
    if console.is_terminal:
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        with Progress(*columns, console=console, refresh_per_second=4, transient=True) as progress:
            progress.add_task(what, total=None)
            yield
        return
    began, over = time.monotonic(), threading.Event()

    def tell() -> None:
        if at_once:
            console.print(f"{what} …", markup=False, soft_wrap=True)
        while not over.wait(every_seconds):
            console.print(f"{what}, {duration(time.monotonic() - began)} so far", markup=False, soft_wrap=True)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def waiting_aside(what: str) -> contextlib.AbstractContextManager[None]:
    """`waiting` on standard error, for a command whose standard output is its result. Where that is no terminal, what
    is refused at once is said alone."""
    return waiting(what, Console(stderr=True), at_once=False)


class _Now(TextColumn):
    """What a bar says of its task: until the first step is done, how long that has taken."""

    def render(self, task: Any) -> Any:
        if task.fields["now"]:
            return super().render(task)
        return Text(f"compiling the step, {duration(task.elapsed or 0)}", "dim")


class Bar:
    """A progress bar of training, as a context manager: step, loss, tokens per second, MFU, time left.

    Args:
      total_steps: of the run.
      start_step: steps done by earlier parts of the run.
      console: where it is printed; by default standard output. Where that is no terminal, the bar is a plain line at
        the first and last step, and otherwise at most every `every_seconds`.
      every_seconds: see `console`.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        console: Console | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._console = console or terminal()
        self._total, self._start, self._every, self._clock = total_steps, start_step, every_seconds, clock
        self._printed_at, self._metrics = -math.inf, ""
        self._first_update: tuple[float, int] | None = None
        self._progress: Progress | None = None
        self._task, self._compiling = TaskID(0), contextlib.ExitStack()
        if self._console.is_terminal:
            self._progress, self._task = self._drawn(start_step)

    def _drawn(self, start_step: int) -> tuple[Progress, TaskID]:
        columns = (SpinnerColumn(), MofNCompleteColumn(), BarColumn(bar_width=None), _Now("{task.fields[now]}"))
        # a redraw takes CPU time, which a model on a small machine wants: four a second look smooth enough
        progress = Progress(*columns, console=self._console, expand=True, refresh_per_second=4)
        return progress, progress.add_task("train", total=self._total, completed=start_step, now="")

    def __enter__(self) -> "Bar":
        if self._progress:
            self._progress.start()
        else:
            self._compiling.enter_context(waiting("compiling the step", self._console))
        return self

    def __exit__(self, *_: object) -> None:
        self._compiling.close()
        if self._progress:
            self._progress.stop()

    def update(self, step: int, metrics: str, tokens_per_second: float, mfu: float) -> None:
        """Step `step` is done. `metrics` is what to show of it, as in "loss 1.234"; `mfu` is a fraction of the device's
        peak, from 0 to 1."""
        self._compiling.close()
        left = f"{duration(self._seconds_left(step))} left"
        # the first step's time is that of compilation
        speed = f"{human(tokens_per_second)} tokens/s  MFU {mfu:.0%}  {left}" if tokens_per_second > 0 else ""
        if self._progress:
            self._metrics = f"[bold]{metrics}[/]"
            self._progress.update(self._task, completed=step, now=f"{self._metrics}  {speed}")
        elif step >= self._total or self._clock() - self._printed_at >= self._every:
            self._printed_at = self._clock()
            number = f"{step:>{len(str(self._total))}}/{self._total}"
            self.say(f"step {number}  {metrics}  {speed}".rstrip())

    def note(self, what: str) -> None:
        """On a terminal, say `what` is done in place of the speed, until the next step is."""
        if self._progress:
            self._progress.update(self._task, now=f"{self._metrics}  [dim]{what} …[/]")

    def _seconds_left(self, step: int) -> float:
        """Extrapolated from the steps since the first update, which leaves compilation out."""
        now = self._clock()
        if self._first_update is None:
            self._first_update = now, step
        since, first = self._first_update
        return (now - since) / (step - first) * (self._total - step) if step > first else math.nan

    def say(self, what: Any) -> None:
        """Print a text, or any renderable of rich, above the bar. Texts are printed literally, without markup."""
        if isinstance(what, str):
            self._console.print(what, markup=False, highlight=False, soft_wrap=True)
        else:
            self._console.print(what)


@contextlib.contextmanager
def preparing(console: Console | None = None) -> Iterator[PreparationProgress]:
    """The `progress(what, done, total)` callback of lm.data.loader.prepare: a bar for each split that is tokenised.
    What is in the cache is not reported, so it has no bar."""
    console = console or terminal()
    if not console.is_terminal:
        yield _plain_progress(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=None)
            # of unknown length: the bar pulses until it is done
            progress.update(tasks[what], completed=done, total=total if total > 1 or done else None)

        yield report


def _plain_progress(console: Console) -> PreparationProgress:
    started: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what not in started:
            started[what] = now
            console.print(f"preparing {what} …", markup=False)
        if done >= total:
            amount = f"{total:,} documents, " if total > 1 else ""
            console.print(f"preparing {what}: {amount}{duration(now - started[what])}", markup=False)

    return report
