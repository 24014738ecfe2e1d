"""What a study shows while it runs: on a terminal a live table of its runs, elsewhere a line a finished run."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lm.machine.monitor import duration, terminal
from lm.study.trial import FINISHED, MISSING, STOPPED, Result

Show = Callable[[Sequence[Result]], None]
STATES = {STOPPED: "running", MISSING: "waiting"}
COLOURS = {FINISHED: "green", MISSING: "dim", STOPPED: "cyan"}
MOST_ROWS = 40  # of the table; of a larger study those that are not finished come first


@contextlib.contextmanager
def table(measure: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[Show]:
    """Gives the function to call with all results, again and again."""
    console = console or terminal()
    if not console.is_terminal:
        yield _lines(console, measure)
        return
    began = clock()
    with Live(console=console, refresh_per_second=2) as live:
        yield lambda results: live.update(render(results, measure, clock() - began))


def render(results: Sequence[Result], measure: str, seconds: float) -> Table:
    """The table: a row a run, with how far it is and what it has reached."""
    done = sum(result.finished for result in results)
    title = f"{done} of {len(results)} runs finished, {duration(seconds)}"
    shown = Table("arm", "seed", "state", "step", "loss", f"held-out {measure}", title=title, title_justify="left")
    for column in shown.columns[1:2] + shown.columns[3:]:
        column.justify = "right"
    first = sorted(results, key=lambda r: r.finished) if len(results) > MOST_ROWS else results
    for result in first[:MOST_ROWS]:
        (arm, seed), steps = result.key, result.trial.experiment.steps
        step, loss = result.curve[-1] if result.curve else (0, None)
        reached = result.evaluations[-1][1].get(measure) if result.evaluations else None
        colour = COLOURS.get(result.status, "red")
        shown.add_row(
            *(arm, str(seed)),
            f"[{colour}]{STATES.get(result.status, result.status)}[/]",
            f"{step:,}/{steps:,}" if step else "",
            "" if loss is None else f"{loss:.3f}",
            "" if reached is None else f"{reached:.4f}",
        )
    return shown


def _lines(console: Console, measure: str) -> Show:
    printed: dict[tuple[str, int], str] = {}

    def show(results: Sequence[Result]) -> None:
        for result in results:
            key = result.key
            if result.status in (MISSING, STOPPED) or printed.get(key) == result.status:
                continue
            if printed or not result.finished or any(r.status in (MISSING, STOPPED) for r in results):
                reached = result.measures.get(measure)
                what = f"{measure} {reached:.4f}" if reached is not None else result.reason
                console.print(f"{key[0]}, seed {key[1]}: {result.status}, {what}", markup=False, soft_wrap=True)
            printed[key] = result.status

    return show
