"""The step of a run, with what is a number of its optimizer as data: runs that differ in those alone share a program.

An optimizer's numbers are arguments of the compiled step, its schedule is a table of heights by step, and the seed is a
number too. So a run computes the same bits alone and beside others (lm/study/together.py), and at another learning
rate it finds its program in the compilation cache.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.sharding.rules import Layout
from lm.train.optim import Optimizer
from lm.train.schedule import Constant
from lm.train.step import Step, compiled, one_step, under
from lm.train.task import Task

BLOCK = 4096  # steps: tables have a multiple of so many heights, so that runs of other lengths share a program


class Heights:
    """A schedule whose heights at each step, relative to the peak, are an array."""

    def __init__(self, heights: Any):
        self.heights = heights

    def build(self, peak: Any, total_steps: int) -> Any:
        """step -> learning rate."""
        return lambda step: peak * self.heights[jnp.minimum(step, len(self.heights) - 1)]


def heights(optimizer: Optimizer, steps: int) -> np.ndarray:
    """The schedule of a run of `steps` as shares of its peak, float32 [a multiple of BLOCK]."""
    table = -(-steps // BLOCK) * BLOCK
    at = optimizer.schedule.build(1.0, steps)(jnp.minimum(jnp.arange(table), steps - 1))
    return np.asarray(at, np.float32)


def numbers(optimizer: Optimizer) -> dict[str, np.float32]:
    """Its numbers by name, less those that are 0: that is no such part, and another program."""
    found = {f.name: getattr(optimizer, f.name) for f in dataclasses.fields(optimizer)}
    return {name: np.float32(x) for name, x in found.items() if isinstance(x, float) and x}


class Program:
    """The step of `task` under `optimizer`, and under those that differ from it in numbers and schedule alone."""

    def __init__(
        self,
        task: Task,
        optimizer: Optimizer,
        mesh: Mesh,
        accumulate: int = 1,
        ema: float = 0.0,
        layout: Layout = Layout(),
    ):
        self.task, self.optimizer, self.mesh = task, optimizer, mesh
        self.accumulate, self.ema, self.layout = accumulate, ema, layout
        any_length = dataclasses.replace(optimizer, schedule=Constant()).build(BLOCK, task.axes())
        self.jitted = compiled(self.one_step, task, any_length, mesh, ema, layout)

    def one_step(self, state: Any, batch: Any, data: Mapping[str, Any]) -> Any:
        """What is compiled: (state one step on, metrics), under the numbers, the heights and the seed of `data`."""
        schedule: Any = Heights(data["heights"])
        rule = dataclasses.replace(self.optimizer, **data["numbers"], schedule=schedule)
        chain = rule.build(BLOCK, self.task.axes())
        return one_step(self.task, chain, self.accumulate, self.ema)(state, batch, data["seed"])

    def step(self, optimizer: Optimizer, steps: int, seed: int) -> Step:
        """(state, batch) -> (state one step on, metrics) of a run of `steps`; see `build_step`."""
        data = {"numbers": numbers(optimizer), "heights": heights(optimizer, steps), "seed": np.uint32(seed)}
        placed = jax.device_put(data, NamedSharding(self.mesh, PartitionSpec()))
        return under(self.mesh, self.jitted, placed, layout=self.layout)
