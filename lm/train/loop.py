"""The training loop: it passes the state from step to step and never waits for the device.

The metrics of a step are read two steps later, on CPUs at once. Where the run pauses (for an evaluation, a checkpoint,
the end), outstanding metrics are read first, so that no state is kept whose loss was not finite.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lm.train.loss import Metrics
from lm.train.method import Batch
from lm.train.state import TrainState
from lm.train.step import Rollout, Step

AHEAD = 2


def steps_ahead() -> int:
    """How many calls of a step are dispatched before the result of the first of them is read: on CPUs none, where a
    call returns when its program has run (`hardware.run_steps_in_turn`)."""
    return 0 if jax.default_backend() == "cpu" else AHEAD


class NotFinite(ValueError):
    """The loss or the gradient of a `step` was infinite or not a number, in all processes of the run."""

    shared = True

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def train(
    state: TrainState,
    step: Step,
    batches: Iterator[Batch],
    rollout: Rollout,
    steps: int,
    observe: Callable[[int, dict[str, float]], None],
    should_pause: Callable[[int], bool],
    on_pause: Callable[[int, TrainState], bool],
) -> Iterator[TrainState]:
    """Train until `steps`, and yield the state of each step once that is dispatched.

    Args:
      state: the state to start from; the first step donates it.
      step: (state, batch) -> (state one step on, metrics).
      batches: on the devices, one a step, from the state's step on.
      rollout: (step, state, batch) -> the batch to train on, from the state that the step starts from.
      steps: the last step.
      observe: gets (n, metrics) of every step n, in order, up to `steps_ahead` late.
      should_pause: whether to pause after step n.
      on_pause: gets (n, state) in a pause, when no metrics are outstanding; True ends the run.

    Raises NotFinite, naming the step whose loss or gradient was not finite."""
    outstanding: deque[tuple[int, Metrics]] = deque()
    ahead = steps_ahead()

    def read(most: int) -> None:
        while len(outstanding) > most:
            n, metrics = outstanding.popleft()
            values = {name: float(v) for name, v in jax.device_get(metrics).items()}
            if not math.isfinite(values["total"]) or not math.isfinite(values["grad_norm"]):
                raise NotFinite(
                    f"step {n}: the loss is {values['total']} and the gradient's norm {values['grad_norm']}", n
                )
            observe(n, values)

    for n in range(int(state.step) + 1, steps + 1):
        state, metrics = step(state, rollout(n - 1, state, next(batches)))
        outstanding.append((n, metrics))
        yield state
        paused = should_pause(n)
        read(0 if paused else ahead)
        if paused and on_pause(n, state):
            break
    read(0)


def as_batches(source: Iterator[Batch], place: Callable[[Batch], Any]) -> Iterator[Any]:
    """Host batches, each placed on the devices."""
    for batch in source:
        yield place(batch)
