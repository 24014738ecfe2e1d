"""Runs of one program side by side: their states are stacked along a leading axis, and one step under `vmap` takes all
of them on, each device its share of the runs.

A run takes part as a `Seat`. It asks for its step and goes on only when all have asked, since then the step is made.
What it is given are parts of the stack, cut out when somebody looks.
"""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.machine import processes
from lm.run.course import Run, Stepper
from lm.train.program import tabulate_schedule, traced_hyperparameters
from lm.train.state import TrainState

RUNS = "runs"  # the mesh axis of the stack
TRIED = 5  # steps by which one way is measured against the other


def unable(runs: Sequence[Run]) -> str:
    """Why these runs, which share a program, cannot go side by side; nothing, where they can."""
    own = runs[0]
    if processes.count() > 1:
        return "several processes train each run"
    if own.experiment.layout.offload_optimizer:
        return "the optimizer's state is on the host"
    if own.prepared.learner.has_rollout:
        return "each batch is made with the run's own parameters"
    split = [axis for axis, size in own.prepared.mesh.shape.items() if size > 1 and axis != "data"]
    return f"mesh.{split[0]} splits each run over devices" if split else ""


class Vmapped:
    """The stacked states of several runs, and the step of all of them."""

    def __init__(self, runs: Sequence[Run]):
        self.devices, self.one = runs[0].prepared.mesh.devices.flatten(), runs[0].program.step_function
        self.seats: list[Seat] = []
        self.state: Any = None
        self.data: Any = None

    def seat(self, run: Run) -> "Seat":
        """A place for `run` in the stack."""
        self.seats.append(Seat(self, len(self.seats), run))
        return self.seats[-1]

    def stack(self, states: Sequence[TrainState]) -> None:
        """Begin with these states, one a seat, on as many devices as they divide by."""
        size = math.gcd(len(self.devices), len(states))
        mesh, split = Mesh(self.devices[:size], (RUNS,)), PartitionSpec(RUNS)
        self.placing = NamedSharding(mesh, split)
        step = jax.shard_map(jax.vmap(self.one), mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
        self.jitted = jax.jit(step, donate_argnums=0)
        most = max(len(seat.schedule) for seat in self.seats)
        data = [{**seat.data, "schedule": _extended(seat.schedule, most)} for seat in self.seats]
        self.data, self.state = self._placed(data), self._placed(jax.device_get(states))

    def step(self, batches: Sequence[Any]) -> Any:
        """Take all on by their batches, one a seat; the stacked metrics."""
        self.state, metrics = self.jitted(self.state, self._placed(batches), self.data)
        return metrics

    def _placed(self, trees: Sequence[Any]) -> Any:
        """Trees of host arrays, stacked, each device's share on it."""
        return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *trees), self.placing)

    def go(self) -> None:
        """Make the step that runs have asked for. One that has ended stays in the stack, on its last batch."""
        if all(seat.asked is None for seat in self.seats):
            return
        if self.state is None:
            self.seats = [seat for seat in self.seats if seat.asked is not None]  # others had ended before they began
            for i, seat in enumerate(self.seats):
                seat.number = i
            self.stack([seat.first for seat in self.seats])
        metrics = self.step([seat.batch for seat in self.seats])
        for seat in self.seats:
            seat.answer(metrics)


class Seat(Stepper):
    """One run's place: in the eyes of its loop, a way from step to step."""

    def __init__(self, whole: Vmapped, number: int, run: Run):
        self.whole, self.number, self.run = whole, number, run
        e = run.experiment
        self.schedule = tabulate_schedule(e.optimizer, e.steps)
        self.data = {"hyperparameters": traced_hyperparameters(e.optimizer), "seed": np.uint32(e.seed)}
        self.first: Any = None
        self.batch: Any = None
        self.asked: dict[str, Part] | None = None

    def step(self, state: Any, batch: Any) -> tuple["Seat", dict[str, "Part"]]:
        """Ask for a step. The metrics are there once `Vmapped.go` has been called."""
        self.first = state if self.whole.state is None else None
        self.batch, self.asked = batch, {}
        return self, self.asked

    def place(self, batch: Any) -> Any:
        """The batch as it is: it is stacked with others on the host."""
        return batch

    def answer(self, metrics: Any) -> None:
        """What came of the step."""
        if self.asked is not None:
            self.asked |= {name: Part(values, self.number) for name, values in metrics.items()}
        self.asked = None

    def current(self, state: Any) -> TrainState:
        """The run's own state, on its own mesh."""
        if state is not self:
            return state
        placed = jax.tree.map(lambda x: x.sharding, self.run.state_shapes())
        return jax.device_put(jax.tree.map(lambda x: x[self.number], self.whole.state), placed)


class Part:
    """One run's number among those of all, read when it is asked for."""

    def __init__(self, values: jax.Array, number: int):
        self.values, self.number = values, number

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(np.asarray(self.values)[self.number], dtype)


def _extended(table: np.ndarray, size: int) -> np.ndarray:
    return np.pad(table, (0, size - len(table)), mode="edge")


def faster(runs: Sequence[Run]) -> tuple[bool, str]:
    """Whether these runs take less time side by side than in turn here, by TRIED steps of each from fresh states; and
    what was measured, in words."""
    own = runs[0]
    batches = own.prepared.learner.batches(0)
    batch = next(batches)
    batches.close()
    alone, state = Stepper(own), own.initial_state()

    def turn() -> Any:
        nonlocal state
        state, metrics = alone.step(state, alone.place(batch))
        return metrics

    in_turn = len(runs) * _seconds(turn)
    whole = Vmapped(runs)
    for run in runs:
        whole.seat(run)
    try:
        whole.stack([own.initial_state() for _ in runs])
        abreast = _seconds(lambda: whole.step([batch] * len(runs)))
    except jax.errors.JaxRuntimeError as error:  # their states together may be more than a device holds
        return False, f"side by side they cannot: {str(error).splitlines()[0]}"
    words = f"a step of all takes {1000 * in_turn:.1f} ms in turn, {1000 * abreast:.1f} ms side by side"
    return abreast < in_turn, words


def _seconds(step: Any) -> float:
    jax.block_until_ready(step())  # compiled
    found = []
    for _ in range(TRIED):
        began = time.perf_counter()
        jax.block_until_ready(step())
        found.append(time.perf_counter() - began)
    return statistics.median(found)
