"""Runs of one program side by side: their states are stacked along a leading axis, and one step under `vmap` takes all
of them, each device its share of the runs.

A run takes part through a `VmapSlot`: it requests its step and waits until all have requested theirs; then the step is
computed. What a run gets are slices of the stack, cut out when they are read.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.machine import processes
from lm.run.course import Run, Stepper
from lm.train.program import tabulate_schedule, traced_hyperparameters
from lm.train.state import TrainState

RUNS = "runs"  # the mesh axis of the stack
TIMED = 5  # steps by which one way is measured against the other


def obstacle(runs: Sequence[Run]) -> str:
    """Why these runs, which share a program, cannot go side by side; "" where they can."""
    first = runs[0]
    if processes.count() > 1:
        return "several processes train each run"
    if first.experiment.layout.offload_optimizer:
        return "the optimizer's state is on the host"
    if first.prepared.learner.has_rollout:
        return "each batch is made with the run's own parameters"
    split = [axis for axis, size in first.prepared.mesh.shape.items() if size > 1 and axis != "data"]
    return f"mesh.{split[0]} splits each run over devices" if split else ""


class Vmapped:
    """The stacked states of several runs, and the step of all of them."""

    def __init__(self, runs: Sequence[Run]):
        self.devices, self.program = runs[0].prepared.mesh.devices.flatten(), runs[0].program
        self.slots: list[VmapSlot] = []
        self.state: Any = None
        self.data: Any = None

    def slot(self, run: Run) -> "VmapSlot":
        """A slot of the stack for `run`."""
        self.slots.append(VmapSlot(self, len(self.slots), run))
        return self.slots[-1]

    def stack(self, states: Sequence[TrainState]) -> None:
        """Begin with these states, one a slot, on as many devices as they divide by."""
        size = math.gcd(len(self.devices), len(states))
        self.sharding = NamedSharding(Mesh(self.devices[:size], (RUNS,)), PartitionSpec(RUNS))
        self.jitted = self.program.side_by_side(self.sharding)
        longest = max(len(slot.schedule) for slot in self.slots)
        data = [{**slot.data, "schedule": _padded(slot.schedule, longest)} for slot in self.slots]
        self.data, self.state = self._place(data), self._place(jax.device_get(states))

    def step(self, batches: Sequence[Any]) -> Any:
        """One step of all by their batches, one a slot; the stacked metrics."""
        self.state, metrics = self.jitted(self.state, self._place(batches), self.data)
        return metrics

    def _place(self, trees: Sequence[Any]) -> Any:
        """Trees of host arrays, stacked, each device's share on it."""
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *trees), self.sharding)

    def run_requested_step(self) -> None:
        """Compute the step that runs have requested. One that has ended stays in the stack, on its last batch."""
        if all(slot.request is None for slot in self.slots):
            return
        if self.state is None:
            self.slots = [slot for slot in self.slots if slot.request is not None]  # others ended before they began
            for i, slot in enumerate(self.slots):
                slot.index = i
            self.stack([slot.first for slot in self.slots])
        metrics = self.step([slot.batch for slot in self.slots])
        for slot in self.slots:
            slot.deliver(metrics)


class VmapSlot(Stepper):
    """One run's slot in the stack; for its loop, the way from step to step."""

    def __init__(self, stack: Vmapped, index: int, run: Run):
        self.stack, self.index, self.run = stack, index, run
        e = run.experiment
        self.schedule = tabulate_schedule(e.optimizer, e.steps)
        self.data = {"hyperparameters": traced_hyperparameters(e.optimizer), "seed": np.uint32(e.seed)}
        self.first: Any = None
        self.batch: Any = None
        self.request: dict[str, LazySlice] | None = None

    def compile_ahead(self, batch: Any) -> None:
        """Nothing: what is compiled is the step of all."""

    def step(self, state: Any, batch: Any) -> tuple["VmapSlot", dict[str, "LazySlice"]]:
        """Request a step. The metrics are filled in by `Vmapped.run_requested_step`."""
        self.first = state if self.stack.state is None else None
        self.batch, self.request = batch, {}
        return self, self.request

    def place(self, batch: Any) -> Any:
        """The batch as it is: it is stacked with others on the host."""
        return batch

    def deliver(self, metrics: Any) -> None:
        """Fill in the metrics of the step, where one was requested."""
        if self.request is not None:
            self.request |= {name: LazySlice(values, self.index) for name, values in metrics.items()}
        self.request = None

    def current(self, state: Any) -> TrainState:
        """The run's own state, on its own mesh."""
        if state is not self:
            return state
        shardings = jax.tree.map(lambda x: x.sharding, self.run.state_shapes())
        return jax.device_put(_cut(self.stack.state, self.index), shardings)


@jax.jit
def _cut(stacked: Any, index: int) -> Any:
    """One run's part of what is stacked."""
    return jax.tree.map(lambda x: x[index], stacked)


class LazySlice:
    """One run's number among those of all, cut out when it is read."""

    def __init__(self, values: jax.Array, index: int):
        self.values, self.index = values, index

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(np.asarray(self.values)[self.index], dtype)


def _padded(table: np.ndarray, size: int) -> np.ndarray:
    return np.pad(table, (0, size - len(table)), mode="edge")


def faster(runs: Sequence[Run]) -> tuple[bool, str]:
    """Whether these runs take less time side by side than in turn here, by TIMED steps of each from fresh states; and
    the measurement in words."""
    first = runs[0]
    batches = first.prepared.learner.batches(0)
    batch = next(batches)
    batches.close()
    alone, state = Stepper(first), first.initial_state()

    def turn() -> Any:
        nonlocal state
        state, metrics = alone.step(state, alone.place(batch))
        return metrics

    in_turn = len(runs) * _seconds(turn)
    stack = Vmapped(runs)
    for run in runs:
        stack.slot(run)
    try:
        stack.stack([first.initial_state() for _ in runs])
        side_by_side = _seconds(lambda: stack.step([batch] * len(runs)))
    except jax.errors.JaxRuntimeError as error:  # their states together may be more than a device holds
        return False, f"side by side they cannot: {str(error).splitlines()[0]}"
    words = f"a step of all takes {1000 * in_turn:.1f} ms in turn, {1000 * side_by_side:.1f} ms side by side"
    return side_by_side < in_turn, words


def _seconds(step: Callable[[], Any]) -> float:
    """The median of TIMED steps."""
    jax.block_until_ready(step())  # compiled
    times = []
    for _ in range(TIMED):
        began = time.perf_counter()
        jax.block_until_ready(step())
        times.append(time.perf_counter() - began)
    return statistics.median(times)
