"""The step of a run, with the optimizer's hyperparameters as data: runs that differ in those alone share a program.

Learning rate, decay and betas are arguments of the compiled step, the schedule is a table by step, and the seed is an
argument too. So a run computes the same bits alone and in a process with others (lm/run/together.py), and with
another learning rate it takes its program from the compilation cache.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.sharding.rules import Layout
from lm.train.method import Learner
from lm.train.optim import Optimizer
from lm.train.schedule import Constant, Schedule
from lm.train.step import Step, jit_step, step_function, with_mesh

BLOCK = 4096  # steps: a table has a multiple of so many entries, so that runs of other lengths share a program


class TabulatedSchedule:
    """A schedule as a table: the multiplier of the peak at each step, which takes `updates`."""

    def __init__(self, multipliers: Any, updates: int = 1):
        self.multipliers, self.updates = multipliers, updates

    def build(self, peak: Any, total_steps: int) -> Any:
        """Updates so far -> learning rate."""

        def rate(count: Any) -> Any:
            step = count // self.updates if self.updates > 1 else count
            return peak * self.multipliers[jnp.minimum(step, len(self.multipliers) - 1)]

        return rate


def tabulate_schedule(optimizer: Optimizer, steps: int) -> np.ndarray:
    """The schedule of a run of `steps` as multipliers of its peak, float32 [a multiple of BLOCK]."""
    return _multipliers(optimizer.schedule, steps)


@functools.cache
def _multipliers(schedule: Schedule, steps: int) -> np.ndarray:
    table = -(-steps // BLOCK) * BLOCK
    at = np.asarray(schedule.build(1.0, steps)(np.minimum(np.arange(table), steps - 1)), np.float32)
    at.flags.writeable = False
    return at


def learning_rates(optimizer: Optimizer, steps: int) -> np.ndarray:
    """Those that the steps of a run of `steps` take, float32 [a multiple of BLOCK]: on the host, since an operation of
    its own on the device would wait there for the steps that are dispatched already."""
    return np.float32(optimizer.learning_rate) * tabulate_schedule(optimizer, steps)


def traced_hyperparameters(optimizer: Optimizer) -> dict[str, np.float32]:
    """The hyperparameters that are data of the program, by name; one that is 0 is not: without that part the program is
    another."""
    found = {f.name: getattr(optimizer, f.name) for f in dataclasses.fields(optimizer)}
    return {name: np.float32(x) for name, x in found.items() if isinstance(x, float) and x}


class Program:
    """The compiled step of `learner` under `optimizer`, and under those that differ from it in schedule and traced
    hyperparameters alone.

    Args:
      learner, mesh, accumulate, ema, layout: see `build_step`.
      optimizer: one of those that it serves."""

    def __init__(
        self,
        learner: Learner,
        optimizer: Optimizer,
        mesh: Mesh,
        accumulate: int = 1,
        ema: float = 0.0,
        layout: Layout = Layout(),
    ):
        self.learner, self.optimizer, self.mesh = learner, optimizer, mesh
        self.accumulate, self.ema, self.layout = accumulate, ema, layout
        any_length = dataclasses.replace(optimizer, schedule=Constant()).build(BLOCK, learner.axes())
        self.jitted = jit_step(self.step_function, learner, any_length, mesh, ema, layout)
        self._side_by_side: dict[NamedSharding, Any] = {}
        self._fingerprints: dict[int, str] = {}

    def step_function(self, state: Any, batch: Any, data: Mapping[str, Any]) -> Any:
        """What is compiled: (state one step on, metrics). `data` has the "hyperparameters" of the optimizer, the table
        of its "schedule", and the "seed"."""
        schedule: Any = TabulatedSchedule(data["schedule"], math.prod(self.learner.updates))
        rule = dataclasses.replace(self.optimizer, **data["hyperparameters"], schedule=schedule)
        chain = rule.build(BLOCK, self.learner.axes())
        return step_function(self.learner, chain, self.accumulate, self.ema)(state, batch, data["seed"])

    def step(self, optimizer: Optimizer, steps: int, seed: int) -> Step:
        """(state, batch) -> (state one step on, metrics) of a run of `steps`; see `build_step`."""
        data = {
            "hyperparameters": traced_hyperparameters(optimizer),
            "schedule": tabulate_schedule(optimizer, steps),
            "seed": np.uint32(seed),
        }
        placed = jax.device_put(data, NamedSharding(self.mesh, PartitionSpec()))
        return with_mesh(self.mesh, self.jitted, placed, layout=self.layout)

    def side_by_side(self, split: NamedSharding) -> Any:
        """`step_function` of runs that are stacked, each device's share of them on it: compiled once a `split`."""
        if split not in self._side_by_side:
            specs: dict[str, Any] = dict(mesh=split.mesh, in_specs=split.spec, out_specs=split.spec)
            step = jax.shard_map(jax.vmap(self.step_function), **specs, check_vma=False)
            options = self.learner.model.compute.compiler_options
            self._side_by_side[split] = jax.jit(step, donate_argnums=0, compiler_options=options)
        return self._side_by_side[split]

    def fingerprint(self, step: Any, steps: int, state: Any, batch: Any) -> str:
        """16 hex digits of a hash of what is compiled for `step`, that of a run of `steps`, and these arguments."""
        blocks = -(-steps // BLOCK)  # of its runs' shapes, that of the schedule alone differs
        if blocks not in self._fingerprints:
            options = self.learner.model.compute.compiler_options
            text = step.lower(state, batch).as_text() + (repr(options) if options else "")
            self._fingerprints[blocks] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return self._fingerprints[blocks]
