"""What a run logs: metrics, a progress bar, one line for each evaluation, and about.json.

The first process logs; any others have a `NullLogger`.
"""

import datetime
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from lm import value
from lm.data.examples import examples
from lm.data.objective import Replies
from lm.experiment import Experiment
from lm.machine import buckets, hardware
from lm.machine.monitor import Bar, Metrics, human
from lm.model import count
from lm.page.words import plural
from lm.run.extra_evals import too_long_evals
from lm.run.folder import write_json
from lm.run.history import note_program
from lm.run.prepared import Prepared
from lm.train.method import Method
from lm.train.program import learning_rates

EXAMPLES = 3
MIXTURE_POINTS = 21  # steps for which about.json has the shares of the mixture
NOT_LOGGED = ("tokens", "total")  # of a step's metrics; metrics.jsonl has the tokens so far


class NullLogger:
    """Logs nothing: for processes other than the first."""

    def say(self, what: Any) -> None:
        """Print a line above the progress bar."""

    def lowered(self, fingerprint: Callable[[], str]) -> None:
        """The program of the steps, before the first; its fingerprint takes the time to write it as text."""

    def observe(self, n: int, metrics: dict[str, float]) -> None:
        """The metrics of step n."""

    def evaluating(self) -> None:
        """What comes now is no step: held-out data is read."""

    def evaluated(self, n: int, measures: dict[str, float]) -> None:
        """The measures of held-out data after step n."""

    def flush(self) -> None:
        """Return once everything logged is on disk: a checkpoint is never ahead of its log."""

    def resume(self, n: int) -> None:
        """Training continues after a pause at step n, whose time is not part of the throughput."""

    def exclude_time(self, seconds: float) -> None:
        """Do not count the last `seconds`: other runs of the process had them."""

    def finish(self) -> None:
        """The run is over."""


class RunLogger(NullLogger):
    """Logs a run in its folder and on the terminal.

    Args:
      experiment, folder: the run's.
      metadata: the content of about.json (see `run_metadata`).
      metrics: the writer of metrics.jsonl.
      bar: the progress bar, above which lines are printed.
      step: the step that this process starts from.
      time: the run's."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        metadata: dict[str, Any],
        metrics: Metrics,
        bar: Bar,
        step: int,
        time: "WallTime",
    ):
        self.experiment, self.folder, self.metadata = experiment, folder, metadata
        self.metrics, self.bar, self.time = metrics, bar, time
        self.say = bar.say  # type: ignore[method-assign]
        self.clock = Clock(experiment.batch_tokens, step)
        self.flops = experiment.flops_per_token
        self.learning_rates = learning_rates(experiment.optimizer, experiment.steps)
        write_json(folder / "about.json", metadata)

    def lowered(self, fingerprint: Callable[[], str]) -> None:
        note_program(self.folder, fingerprint())

    def observe(self, n: int, metrics: dict[str, float]) -> None:
        e = self.experiment
        if self.clock.first:
            self._first_step(n)
        speed = self.clock.tokens_per_second(n)
        mfu = speed * self.flops / self.metadata["peak_flops"]
        self.bar.update(n, format_step(e.method, metrics), speed, mfu)
        if n % e.log_every_steps == 0 or n == e.steps:
            logged = {
                **{name: metrics[name] for name in sorted(metrics) if name not in NOT_LOGGED},
                "learning_rate": float(self.learning_rates[n - 1]),
                "tokens": n * e.batch_tokens,
            }
            self.metrics.write(n, logged | {"tokens_per_second": round(speed, 1), "mfu": round(mfu, 5)})

    def _first_step(self, n: int) -> None:
        self.clock.first = False
        now = time.time()
        self.metadata["compile_seconds"] = own = now - self.clock.since
        self.say(f"first step finished {now - self.time.began:.1f} s after the start, {own:.1f} s of them its own")
        self.clock.reset(n)

    def evaluating(self) -> None:
        self.bar.note("evaluating")

    def evaluated(self, n: int, measures: dict[str, float]) -> None:
        self.metrics.write(n, measures)
        sources = list(self.experiment.data.mixture.sources)
        self.say(format_eval(self.experiment.method, n, sources, measures, self.metadata["baselines"]))

    def flush(self) -> None:
        self.metrics.flush()
        write_json(self.folder / "about.json", self.metadata | {"seconds": self.time.seconds()})
        buckets.upload(self.folder)

    def resume(self, n: int) -> None:
        self.clock.reset(n)

    def exclude_time(self, seconds: float) -> None:
        self.clock.since = min(self.clock.since + seconds, time.time())

    def finish(self) -> None:
        write_json(self.folder / "about.json", self.metadata | ended(self.time))


def format_step(method: Method, metrics: Mapping[str, float]) -> str:
    """A step's metrics for the bar: the method's first measure, and its headline where a step has it."""
    shown = dict.fromkeys(m for m in (method.measures[0], method.headline) if m.name in metrics)
    return "  ".join(f"{measure.title} {measure.format(metrics[measure.name])}" for measure in shown)


def format_eval(
    method: Method,
    step: int,
    sources: list[str],
    measures: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
) -> str:
    """One line for the terminal: the headline measure of each source, and in brackets its baselines, or without
    baselines the other measures.

    Args:
      method: whose measures these are.
      step: after which the model was evaluated.
      sources: of the data.
      measures: "eval/SOURCE/MEASURE" -> value.
      baselines: source -> {name: value in the headline measure}."""
    shown, parts = method.headline, []
    for source in sources:
        values = {m: measures[f"eval/{source}/{m.name}"] for m in method.measures}
        others = [f"{name} {shown.format(x)}" for name, x in baselines.get(source, {}).items()]
        others = others or [f"{m.title} {m.format(x)}" for m, x in values.items() if m != shown]
        brackets = f" ({', '.join(others)})" if others else ""
        parts.append(f"{source} {shown.format(values[shown])}{brackets}")
    return f"step {step}: held-out {shown.title}: {'; '.join(parts)}"


class Clock:
    """Tokens per second since the last reset, so that evaluations and checkpoints are not counted."""

    def __init__(self, batch_tokens: int, step: int):
        self.batch_tokens, self.first, self.speed = batch_tokens, True, 0.0
        self.reset(step)

    def reset(self, step: int) -> None:
        """Measure from now on, after `step`."""
        self.since, self.step = time.time(), step

    def tokens_per_second(self, step: int) -> float:
        """The mean since the last reset; right after one, the mean before it."""
        if step > self.step:
            self.speed = (step - self.step) * self.batch_tokens / max(time.time() - self.since, 1e-9)
        return self.speed


class WallTime:
    """Wall time of a run, in seconds, over all processes that trained it one after the other.

    A checkpoint keeps the time until it (`saved`), and the process that resumes from it adds its own: the time of
    steps that were lost with a killed process is not part of it."""

    def __init__(self) -> None:
        self.began = self.started = time.time()
        self.before = 0.0

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Continue from what a checkpoint has of it, nothing of a version that kept none."""
        self.before, self.started = saved.get("seconds", 0.0), saved.get("started", self.began)

    def exclude(self, seconds: float) -> None:
        """Do not count the last `seconds`: other runs of the process had them."""
        self.began += seconds

    def seconds(self) -> float:
        """So far."""
        return round(self.before + time.time() - self.began, 1)

    def saved(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"seconds": self.seconds(), "started": self.started}


def announcement(experiment: Experiment, folder: Path) -> str:
    """The first line of a run in `folder`: what is trained, on what, where, and from which step."""
    e, device = experiment, jax.devices()[0]
    kept = buckets.checkpoint_steps(folder)
    parameters = count.parameters(e.model) + e.trains.added(e.model)
    devices = f"{jax.device_count()} x {device.device_kind}" if device.platform != "cpu" else hardware.cpu()
    shared = f" as {jax.device_count()} devices" if device.platform == "cpu" and jax.device_count() > 1 else ""
    done = max(kept, default=0)
    todo = f"{plural(e.steps, 'step')} of {e.batch_tokens:,} tokens"
    begin = f"goes on after step {done:,} of {e.steps:,}" if done < e.steps else f"all {e.steps:,} steps are done"
    return (
        f"{e.name}: {human(parameters)} parameters on {devices}{shared}, in {buckets.display_path(folder)}: "
        f"{begin if kept else todo}"
    )


def run_metadata(
    prepared: Prepared, state: Any, command: str, started: float, peak: tuple[float, str]
) -> dict[str, Any]:
    """The content of about.json: environment, sizes and FLOPs, the data, the method's measures and its baselines.

    Args:
      prepared: the run's experiment, data and method.
      state: the training state, or its shapes.
      command: the command line.
      started: when the run was, in seconds of time.time().
      peak: FLOP/s of all devices, and the source of the figure.

    Returns: JSON data."""
    e, data, method = prepared.experiment, prepared.data, prepared.experiment.method
    points = sorted({round(i * (e.steps - 1) / (MIXTURE_POINTS - 1)) for i in range(MIXTURE_POINTS)})
    return {
        "command": command,
        "started": iso(started),
        "finished": None,
        "seconds": 0.0,
        "compile_seconds": 0.0,
        "environment": hardware.environment(),
        "model": {
            "parameters": count.parameters(e.model),
            "by_part": count.by_part(e.model),
            "flops_per_token": e.flops_per_token,
            "state_bytes": count.tree_bytes(state),
        },
        "peak_flops": peak[0],
        "peak_source": peak[1],
        "compute": value.plain(prepared.compute),
        "mesh": dict(prepared.mesh.shape),
        "data": {s: {k: vars(a) for k, a in splits.items()} for s, splits in data.summary().items()},
        "remarks": data.remarks(),
        "examples": examples(data, EXAMPLES) if isinstance(data.objective, Replies) else [],
        "shares": [[n, data.shares(n)] for n in points],
        "method": {
            "target_name": method.target_name,
            "headline": method.headline.name,
            "greedy_samples": method.greedy_samples,
            "measures": [asdict(measure) for measure in method.measures],
        },
        "extra_measures": [asdict(m) for one in e.evaluations.values() if one.method for m in one.method.measures],
        "baselines": prepared.learner.baselines(data),
        "not_evaluated": too_long_evals(e),
    }


def ended(wall_time: WallTime) -> dict[str, Any]:
    """What a run adds to about.json at its end: when, and its wall time."""
    return {"finished": iso(time.time()), "seconds": wall_time.seconds()}


def finish(folder: Path, wall_time: WallTime) -> None:
    """Record in about.json that the run in `folder` has ended, unless it says so."""
    about = json.loads((folder / "about.json").read_text())
    if not about["finished"]:
        write_json(folder / "about.json", about | ended(wall_time))


def iso(seconds: float) -> str:
    """A time in seconds of time.time() as ISO 8601, in this machine's time zone."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
