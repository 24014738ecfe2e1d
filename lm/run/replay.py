"""Steps of a run computed again: from a checkpoint, or from the state before the first step, to the same bits."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.machine import buckets, hardware
from lm.machine.cache import cache_dir
from lm.machine.monitor import read_metrics
from lm.model.config import ModelConfig
from lm.page.run_record import RunRecord
from lm.page.words import join_and
from lm.pretrained import read_experiment
from lm.run.course import Run, Stepper
from lm.run.history import read_history
from lm.run.log import NOT_LOGGED
from lm.run.together import program_key
from lm.train.checkpoint import Checkpoints
from lm.train.method import Batch
from lm.train.state import TrainState


class Step(NamedTuple):
    """A step that was computed again: its number from 1, the batch that it learned from, its metrics, and the state
    after it, which the next step donates."""

    n: int
    batch: Batch
    metrics: dict[str, float]
    state: TrainState


class Replay:
    """The run in `folder`, opened to compute its steps again. No process of training is disturbed.

    `like` is another run, opened in this process: where one program serves both, it is compiled once. Raises ValueError
    for a folder that is no run, and where it cannot be prepared here."""

    def __init__(self, folder: Path, like: "Replay | None" = None):
        self.folder, self.record = folder, RunRecord(folder)
        self.experiment = read_experiment(folder)
        hardware.set_cpu_devices(self.experiment.compute.devices)
        hardware.use_compilation_cache(cache_dir())
        hardware.check_backend()
        same = like if like and program_key(like.experiment) == program_key(self.experiment) else None
        self.run: Run = Run(self.experiment, folder, like=same.run if same else None)
        self.stepper = Stepper(self.run)
        self.logged = training_lines(folder, self.record.loss.name)

    @functools.cached_property
    def checkpoints(self) -> Checkpoints:
        """Those of the run."""
        return Checkpoints(buckets.checkpoint_path(self.folder), self.experiment.keep_last, self.experiment.keep_best)

    def start(self, step: int) -> TrainState:
        """The state from which `step` is reached soonest: of the newest checkpoint before it that is intact, or before
        the first step. Raises ValueError where that begins with a model that cannot be read any more."""
        if any(kept < step for kept in self.checkpoints.steps()):
            return self.checkpoints.restore(self.run.state_shapes(), step - 1)[0]
        return self.run.initial_state()

    def steps(self, state: TrainState, last: int) -> Iterator[Step]:
        """The steps after `state`, up to the step `last`."""
        batches = self.run.prepared.learner.batches(int(state.step))
        try:
            for n in range(int(state.step) + 1, last + 1):
                batch = self.run.rollout(n - 1, state, self.stepper.place(next(batches)))
                state, metrics = self.stepper.step(state, batch)
                yield Step(n, batch, {name: float(x) for name, x in jax.device_get(metrics).items()}, state)
        finally:
            batches.close()

    def after(self, step: int) -> TrainState:
        """The state after `step` (0: before the first)."""
        state = self.start(step + 1)
        for computed in self.steps(state, step):
            state = computed.state
        return state

    def before(self, step: int) -> tuple[TrainState, Batch]:
        """The state that `step` starts from, and the batch that it learns from."""
        state = self.after(step - 1)
        return state, self.batch(state, step)

    def batch(self, state: TrainState, step: int) -> Batch:
        """The batch of `step`, which begins with `state`."""
        batches = self.run.prepared.learner.batches(step - 1)
        try:
            return self.run.rollout(step - 1, state, self.stepper.place(next(batches)))
        finally:
            batches.close()

    @functools.cached_property
    def kept(self) -> dict[int, dict[str, int]]:
        """step -> the checksums that the run has of its state."""
        return kept_states(self.folder)

    def has_kept(self, step: int, sums: Mapping[str, int]) -> bool:
        """Whether a state with these checksums is that which the run has of `step`, if it has one."""
        return all(sums.get(name) == checksum for name, checksum in self.kept.get(step, {}).items())

    def unlike(self, step: Step) -> dict[str, tuple[float | None, float]]:
        """The metrics of a step that are not to the bit what the run logged: name -> (logged, computed)."""
        line = self.logged.get(step.n, {})
        pairs = {name: (line[name], x) for name, x in step.metrics.items() if name in line and name not in NOT_LOGGED}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def kept_states(folder: Path) -> dict[int, dict[str, int]]:
    """step -> the checksums of the arrays of a run's state after it: of checkpoints, and of the start, which has those
    of the parameters alone."""
    kept = Checkpoints(buckets.checkpoint_path(folder))
    began = {entry["step"]: entry["initial"] for entry in read_history(folder)[:1] if entry["initial"]}
    try:
        return began | {step: kept.checksums(step) for step in kept.steps()}
    finally:
        kept.close()


def layers_of(model: ModelConfig, name: str) -> list[int]:
    """The layers that an array of parameters has along its first axis, by its path; none where it is of no layer."""
    parts = name.split(".")
    if "layers" not in parts[:-1] or "multi_token" in parts:
        return []
    model = model.encoder_config if "encoder" in parts else model
    slot = model.slots.get(parts[parts.index("layers") + 1])
    return list(slot.layers) if slot else []


def named(model: ModelConfig, name: str, marked: np.ndarray) -> str:
    """An array of parameters by its path, and those of its layers that are marked, [its first axis]."""
    layers = layers_of(model, name)
    if not layers or len(layers) != len(marked):
        return name
    chosen = [layer for layer, one in zip(layers, marked, strict=True) if one]
    return f"{name} of layer{'s' * (len(chosen) > 1)} {join_and(chosen, 6)}"


def span(first: int, last: int) -> str:
    """Steps in words."""
    return f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"


def training_lines(folder: Path, loss: str) -> dict[int, dict[str, Any]]:
    """step -> what a run logged of it; `loss` names a metric that every step has."""
    return {line["step"]: line for line in read_metrics(folder) if loss in line}
