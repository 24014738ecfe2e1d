"""Wall time of a study of short arms in one program, against as many `lm train` commands one after the other.

    python -m benchmarks.studies --keep

Arms are seeds of a small Llama; a study has two processes, with half of the arms each, and a second one all of them in
one. All sides train the same runs on the same cores, write the same folders, and find the data prepared and the
programs of a run before in the compilation cache (`--cold`: each side begins with an empty one). A step's time
is the median over the second half of each run, between its lines of metrics.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import report
from benchmarks.machine import describe
from benchmarks.worker import ROOT

EXPERIMENT = "experiments.ablations.small"
PAGE = """\
from {module} import experiment as base
from lm.study.ablation import Ablation

study = Ablation(base, arms={{"base": {{}}}}, seeds=range({arms}))
"""


def command(*arguments: str, environment: dict[str, str]) -> float:
    """The seconds that an `lm` command takes."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "launch", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"lm {' '.join(arguments)}: {done.stdout[-500:]} {done.stderr[-500:]}")
    return time.perf_counter() - begun


def settings(options: argparse.Namespace) -> list[str]:
    """What makes the runs short, and lets their steps be timed."""
    steps = options.steps
    lean = [
        *("model.layers=1", "model.width=32", "model.ffn.mlp=88"),  # the last evaluation reads all held-out text
        "optimizer.schedule.warmup_steps=2",
        "log_every_steps=1",
        f"eval_every_steps={steps}",
        f"checkpoint_every_steps={steps}",
        "keep_last=1",
    ]
    return ["--set", f"steps={steps}", *lean, "keep_best=0", "prompts=()"]


def apart(arms: int, folder: Path, options: argparse.Namespace, environment: dict[str, str]) -> float:
    """Seconds of so many `lm train` commands, one after the other."""
    return sum(
        command(
            *("train", EXPERIMENT, "--workdir", str(folder / f"apart{arms}" / str(seed)), "--devices", "cpu"),
            *(*settings(options), f"seed={seed}"),
            environment=environment,
        )
        for seed in range(arms)
    )


def together(
    arms: int, folder: Path, options: argparse.Namespace, environment: dict[str, str], workers: int = 0
) -> float:
    """Seconds of one `lm study` of so many arms, its report included, in so many processes (0: nothing is said)."""
    page = f"arms{arms}"
    (folder / f"{page}.py").write_text(PAGE.format(module=EXPERIMENT, arms=arms))
    environment = {**environment, "PYTHONPATH": str(folder)}
    where = ("--workdir", str(folder / f"together{arms}" / str(workers)), "--devices", "cpu")
    processes = ("--workers", str(workers)) if workers else ()
    return command("study", f"{page}:study", *where, *processes, *settings(options), environment=environment)


def step_ms(folder: Path) -> float:
    """The median milliseconds between two lines of metrics, the first half of each run left out; a run beside others
    counts its share."""
    speeds = []
    for file in folder.rglob("metrics.jsonl"):
        found = [json.loads(line).get("tokens_per_second") for line in file.read_text().splitlines()]
        known = [speed for speed in found if speed]
        speeds += known[len(known) // 2 :]
    experiment = json.loads(next(folder.rglob("experiment.json")).read_text())["value"]
    return float(experiment["batch_tokens"] / statistics.median(speeds) * 1000)


@contextlib.contextmanager
def cache(options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """The environment of a side: with a compilation cache of its own, or with that of everybody."""
    with tempfile.TemporaryDirectory() as folder:
        yield {**os.environ, **({"JAX_COMPILATION_CACHE_DIR": folder} if options.cold else {})}


def main() -> None:
    """Measure, print the table, and with --keep write it to RESULTS.md."""
    options = _options()
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        with cache(options) as environment:
            apart(1, folder / "before", options, environment)  # the data and the tokenizer are prepared
        for arms in options.arms:
            times = []
            for side in (apart, together, partial(together, workers=1)):
                with cache(options) as environment:
                    times.append(side(arms, folder, options, environment))
            one, other = step_ms(folder / f"apart{arms}"), step_ms(folder / f"together{arms}" / "1")
            apart_seconds, *studies = times
            shown = [text for s in studies for text in (f"{s:.1f}", f"{apart_seconds / s:.2f}")]
            rows.append([str(arms), f"{apart_seconds:.1f}", *shown, f"{one:.1f}", f"{other:.1f}"])
            print(", ".join(rows[-1]), flush=True)
    studies = ["`lm study`, s", "times sooner", "`--workers 1`, s", "times sooner"]
    columns = ["arms", "`lm train` each, s", *studies, "ms a step apart", "ms a step together"]
    title = f"A study of short runs: {EXPERIMENT}, {options.steps} steps"
    how = "each side with an empty compilation cache" if options.cold else "with what a run before had compiled"
    notes = [f"{time.strftime('%Y-%m-%d')}, once each, {how}.", report.setting(describe(), {})]
    report.show(title, columns, rows, notes)
    if options.keep:
        name = f"studies{' cold' if options.cold else ''}"
        report.keep(name, report.markdown(title, columns, rows, notes))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--arms", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cold", action="store_true", help="an empty compilation cache for each side")
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
