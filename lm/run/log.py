"""What a run tells while it goes: its metrics, a bar, the lines of its evaluations, and about.json.

One process tells, whatever their number; the others have a `Silent` in its place.
"""

import datetime
import json
import time
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lm import value
from lm.data.loader import Batches
from lm.experiment import Experiment
from lm.machine import buckets, hardware
from lm.machine.monitor import Bar, Metrics
from lm.model import count
from lm.model.compute import Compute
from lm.run import evaluations, heldout
from lm.run.folder import write_json

MIXTURE_POINTS = 21  # steps at which a run's folder tells the mixture's shares


class Silent:
    """Tells nothing, of a process that is not the first."""

    def say(self, what: Any) -> None:
        """A line that someone may want to read."""

    def observe(self, n: int, values: dict[str, float]) -> None:
        """The metrics of step n."""

    def evaluated(self, n: int, values: dict[str, float]) -> None:
        """What came of held-out text after step n."""

    def flush(self) -> None:
        """Until everything told is on disk: what a checkpoint has behind it is there before it is."""

    def going_on(self, n: int) -> None:
        """Steps go on after n; what came between is not counted as theirs."""

    def away(self, seconds: float) -> None:
        """So many of the last seconds were other runs'."""

    def finish(self) -> None:
        """The run is over."""


class Telling(Silent):
    """Tells all of it, from `about` (what the folder says) on, in `folder`; `began` is when the process did."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        about: dict[str, Any],
        metrics: Metrics,
        bar: Bar,
        sources: list[str],
        step: int,
        began: float,
    ):
        self.experiment, self.folder, self.about, self.sources = experiment, folder, about, sources
        self.metrics, self.bar, self.began = metrics, bar, began
        self.say = bar.say  # type: ignore[method-assign]
        self.clock = Clock(experiment.batch_tokens, step)
        self.flops = count.flops_per_token(experiment.model, experiment.length)
        self.learning_rate = experiment.optimizer.schedule_fn(experiment.steps)
        self.codes_text = "bits_per_byte" in experiment.objective.measures
        write_json(folder / "about.json", about)

    def observe(self, n: int, values: dict[str, float]) -> None:
        e = self.experiment
        if self.clock.first:
            self._first_step(n)
        speed = self.clock.tokens_per_second(n)
        mfu = speed * self.flops / self.about["peak_flops"]
        self.bar.update(n, values["loss"], speed, mfu, None if self.codes_text else values["accuracy"])
        if n % e.log_every_steps == 0 or n == e.steps:
            logged = {
                **{name: values[name] for name in sorted(values) if name not in ("tokens", "total")},
                "learning_rate": float(self.learning_rate(n - 1)),
                "tokens": n * e.batch_tokens,
            }
            self.metrics.write(n, logged | {"tokens_per_second": round(speed, 1), "mfu": round(mfu, 5)})

    def _first_step(self, n: int) -> None:
        self.clock.first = False
        now = time.time()
        self.about["compile_seconds"] = own = now - self.clock.since
        self.say(f"first step finished {now - self.began:.1f} s after the start, {own:.1f} s of them its own")
        self.clock.reset(n)

    def evaluated(self, n: int, values: dict[str, float]) -> None:
        self.metrics.write(n, values)
        self.say(heldout.told(self.experiment, self.sources, n, values, self.about["baselines"]))

    def flush(self) -> None:
        self.metrics.flush()
        buckets.upload(self.folder)

    def going_on(self, n: int) -> None:
        self.clock.reset(n)

    def away(self, seconds: float) -> None:
        self.began += seconds
        self.clock.since = min(self.clock.since + seconds, time.time())

    def finish(self) -> None:
        write_json(self.folder / "about.json", self.about | ended(self.began))


class Clock:
    """Tokens per second since the last reset: what the evaluations and checkpoints between took is not counted."""

    def __init__(self, batch_tokens: int, step: int):
        self.batch_tokens, self.first, self.speed = batch_tokens, True, 0.0
        self.reset(step)

    def reset(self, step: int) -> None:
        """Count from now, after `step`."""
        self.since, self.step = time.time(), step

    def tokens_per_second(self, step: int) -> float:
        """The mean since the last reset; right after one, the last mean before it."""
        if step > self.step:
            self.speed = (step - self.step) * self.batch_tokens / max(time.time() - self.since, 1e-9)
        return self.speed


def about(
    e: Experiment, compute: Compute, mesh: Mesh, data: Batches, state: Any, command: str, began: float
) -> dict[str, Any]:
    """What the folder tells besides the experiment: where it ran, what was counted, what gzip and xz need."""
    peak, source = hardware.peak_flops(compute.matmul)
    points = sorted({round(i * (e.steps - 1) / (MIXTURE_POINTS - 1)) for i in range(MIXTURE_POINTS)})
    return {
        "command": command,
        "started": iso(began),
        "finished": None,
        "seconds": 0.0,
        "compile_seconds": 0.0,
        "environment": hardware.environment(),
        "model": {
            "parameters": count.parameters(e.model),
            "by_part": count.by_part(e.model),
            "flops_per_token": count.flops_per_token(e.model, e.length),
            "state_bytes": count.tree_bytes(state),
        },
        "peak_flops": peak,
        "peak_source": source,
        "compute": value.plain(compute),
        "mesh": dict(mesh.shape),
        "data": {s: {k: vars(a) for k, a in splits.items()} for s, splits in data.summary().items()},
        "shares": [[n, data.shares(n)] for n in points],
        "objective": {"asked": e.objective.target_name, "measures": list(e.objective.measures)},
        "baselines": baselines(e, data),
        "not_evaluated": evaluations.impossible(e),
    }


def ended(began: float) -> dict[str, Any]:
    """What about.json says more of a run that is over, whose last process began then."""
    now = time.time()
    return {"finished": iso(now), "seconds": round(now - began, 1)}


def finish(folder: Path, began: float) -> None:
    """Note that the run in `folder` is over, where it was killed before it could."""
    about = json.loads((folder / "about.json").read_text())
    if not about["finished"]:
        write_json(folder / "about.json", about | ended(began))


def baselines(e: Experiment, data: Batches) -> dict[str, dict[str, float]]:
    """What gzip and xz need, where the model's own bits per byte can be set beside it."""
    return {s: data.compression(s) for s in data.sources if "bits_per_byte" in e.objective.measures}


def iso(seconds: float) -> str:
    """A time of this machine's clock, as text."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
