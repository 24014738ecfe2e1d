"""The coordinate check: whether activations move as much at every width (2203.03466, appendix D.1).

A model is trained for a few steps at several widths, and what it computes for one batch is compared with what it
computed before the first: at each place the mean absolute change of a coordinate. Under muP that is about the same at
every width; in the standard parametrisation it grows with it, and so the best learning rate falls.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lm.coordinates.activations import activations
from lm.coordinates.drift import Analysis, Row, analyse
from lm.coordinates.report import write_report
from lm.data.loader import Batches, prepare
from lm.experiment import Experiment
from lm.machine.monitor import preparing
from lm.model.config import ModelConfig
from lm.model.parametrisation import Parametrisation
from lm.model.transformer import Transformer
from lm.model.widths import attention_of, name_of, widened
from lm.sharding.batches import place_batch
from lm.sharding.mesh import make_mesh
from lm.train.schedule import Constant
from lm.train.state import TrainState
from lm.train.step import Step, build_init, build_step


@dataclass(frozen=True)
class Coordinates:
    """The check of `base` at `widths`, over `steps` steps of its optimizer at its peak rate.

    At each width the feed-forward grows in proportion, and so do the `grows`: "heads" (of one size) or the "head_dim"
    (of as many). A place drifts where the exponent of the width in its change exceeds `tolerance` (see drift.analyse).
    With `twin` the same is measured in the standard parametrisation too, for comparison; it is not judged."""

    base: Experiment
    widths: tuple[int, ...] = (64, 128, 256, 512)
    steps: int = 5
    seeds: Iterable[int] = range(3)
    tolerance: float = 0.35
    grows: str = "heads"
    twin: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(set(self.widths)) < 2 or sorted(set(self.widths)) != list(self.widths):
            raise ValueError(f"widths={self.widths}: expected at least two, rising, for instance (64, 128, 256)")
        if not self.seeds or self.steps < 1 or self.tolerance <= 0:
            raise ValueError(
                f"seeds={self.seeds}, steps={self.steps}, tolerance={self.tolerance}: "
                "expected at least one seed, one step, and a number above 0"
            )
        for width in self.widths:
            widened(self.base.model, width, self.grows)

    @property
    def summary(self) -> str:
        """Its size in a few words."""
        return f"{len(self.widths)} widths, {self.steps} steps"

    def trials(self, results: Sequence[Any] = ()) -> list[Any]:
        """None: what is trained here leaves no run behind."""
        return []

    def report(self, folder: Path) -> Analysis:
        """`run`; raises ValueError where activations drift."""
        analysis = run(self, folder)
        print(f"report: {folder / 'report.html'}")
        if analysis.drift:
            each = ", ".join(
                f"{s.place} (exponent {s.change:+.2f}, at first {s.at_first:+.2f})" for s in analysis.drift
            )
            raise ValueError(f"activations drift with the width in {analysis.judged}: {each}; see {folder}/report.html")
        return analysis


def run(study: Coordinates, folder: Path) -> Analysis:
    """Measure, and write coordinates.csv and report.html in `folder`."""
    analysis = measure(study)
    write_report(folder, study.base.name, analysis, _trained(study))
    return analysis


def _trained(study: Coordinates) -> list[tuple[str, str]]:
    model, seeds = study.base.model, tuple(study.seeds)
    grown = {"heads": f"number of heads, of size {attention_of(model).head_dim}", "head_dim": "size of the heads"}
    return [
        ("parametrisation", repr(model.parametrisation)),
        ("optimizer", repr(replace(study.base.optimizer, schedule=Constant()))),
        ("widened", f"width, feed-forward, {grown[study.grows]}; {model.layers} layers"),
        ("seeds", ", ".join(map(str, seeds))),
    ]


# ---------------------------------------------------------------- measuring


def measure(study: Coordinates) -> Analysis:
    """Train and measure at every width."""
    e = study.base
    rules = [e.model.parametrisation]
    if study.twin and rules[0] != Parametrisation():
        rules.append(Parametrisation())
    with preparing() as progress:
        data = prepare(e.data, e.length, e.rows, e.seed, e.method.objective, None, progress, e.model.has_encoder)
    rows: list[Row] = []
    for rule in rules:
        for width in study.widths:
            print(f"{name_of(rule)}: width {width}", flush=True)
            wide = replace(widened(e.model, width, study.grows), parametrisation=rule, dropout=0.0)
            rows += _at_width(study, wide, data)
    return analyse(rows, name_of(rules[0]), study.tolerance)


def _at_width(study: Coordinates, cfg: ModelConfig, data: Batches) -> Iterator[Row]:
    """The rows of one model, of all seeds: compiled once."""
    e, rule = study.base, name_of(cfg.parametrisation)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    model = Transformer(cfg, replace(e.compute, unroll=1).resolve())  # so few steps are mostly compilation
    learner = e.build(model, data)
    optimizer = replace(e.optimizer, schedule=Constant()).build(study.steps, learner.axes())
    start, step = build_init(learner, optimizer, mesh), build_step(learner, optimizer, mesh, 0, e.accumulate)
    look = jax.jit(partial(activations, model))
    batches = [place_batch(data.batch(n), mesh) for n in range(study.steps)]
    for seed in study.seeds:
        for n, (sizes, changes) in enumerate(_course(start(seed), step, look, batches)):
            for name in sizes:
                yield Row(rule, cfg.width, seed, n, name, float(sizes[name]), float(changes[name]))


def _course(state: TrainState, step: Step, look: Any, batches: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """(mean size, mean change) by place, on the first batch, before the first step and after each."""

    @jax.jit
    def compared(now: Any, first: Any) -> tuple[Any, Any]:
        now, first = jax.tree.map(lambda x: x.astype(jnp.float32), (now, first))
        mean = lambda x: jnp.abs(x).mean()  # noqa: E731
        return jax.tree.map(mean, now), jax.tree.map(lambda a, b: mean(a - b), now, first)

    first = look(state.params, batches[0])
    yield jax.device_get(compared(first, first))
    for batch in batches:
        state, _ = step(state, batch)
        yield jax.device_get(compared(look(state.params, batches[0]), first))
