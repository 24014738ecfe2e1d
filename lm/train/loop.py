"""The training loop: it hands the state from step to step and never waits for the device.

A step's metrics are read when the device is two steps further on. Where the run stops to look (an evaluation, a
checkpoint, the end), what is outstanding is read first, so that no state is kept whose loss was not a number.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lm.train.loss import Metrics
from lm.train.state import TrainState
from lm.train.step import Step
from lm.train.task import Batch

AHEAD = 2  # steps that may be under way while their metrics are not read yet


class NotFinite(ValueError):
    """The loss of a step was infinite or not a number."""


def train(
    state: TrainState,
    step: Step,
    batches: Iterator[Batch],
    steps: int,
    observe: Callable[[int, dict[str, float]], None],
    pause: Callable[[int], bool],
    visit: Callable[[int, TrainState], bool],
) -> Iterator[TrainState]:
    """Train until `steps`, and give the state of each as soon as it is under way. `observe(n, metrics)` gets the
    metrics of every step, late; where `pause(n)` says so, `visit(n, state)` is called after step n with nothing
    outstanding, and ends the run by returning True.

    Raises NotFinite, naming the step."""
    waiting: deque[tuple[int, Metrics]] = deque()

    def read(most: int) -> None:
        while len(waiting) > most:
            n, metrics = waiting.popleft()
            values = {name: float(v) for name, v in jax.device_get(metrics).items()}
            if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
                raise NotFinite(f"step {n}: the loss is {values['loss']} and the gradient's norm {values['grad_norm']}")
            observe(n, values)

    for n in range(int(state.step) + 1, steps + 1):
        state, metrics = step(state, next(batches))
        waiting.append((n, metrics))
        yield state
        paused = pause(n)
        read(0 if paused else AHEAD)
        if paused and visit(n, state):
            break
    read(0)


def as_batches(source: Iterator[Batch], place: Callable[[Batch], Any]) -> Iterator[Any]:
    """Host batches, each placed on the devices."""
    for batch in source:
        yield place(batch)
