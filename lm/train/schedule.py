"""Learning-rate schedules as frozen values: a warm-up, then a shape, in steps.

A schedule contains neither the peak nor the length of the run: the optimizer passes both, so that a sweep changes one
number and the schedule follows.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
import optax

from lm.bounds import Fraction, Natural, Sentinel, check
from lm.value import suggest


def _require(valid: bool, message: str) -> None:
    if not valid:
        raise ValueError(message)


def _array_namespace(x: Any) -> Any:
    """The module whose functions take this array, by the array API standard: numpy or jax.numpy."""
    return x.__array_namespace__()


# A decay's shape: the fraction of it that is over, in [0, 1] -> the multiplier, 1 to 0.
SHAPES: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: 0.5 * (1 + _array_namespace(x).cos(math.pi * x)),  # arXiv:1608.03983
    "sqrt": lambda x: 1 - _array_namespace(x).sqrt(x),  # Haegele et al. 2024, arXiv:2405.18392
    "square": lambda x: 1 - x * x,
}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate by step: a linear warm-up over `warmup_steps`, then the subclass's shape.

    Step 0 has peak / (warmup_steps + 1), step `warmup_steps` the peak; a decay would reach its final value at step
    `total_steps`, one after the last. So no step is spent at a rate of zero."""

    warmup_steps: Annotated[Natural, Sentinel(0, "none")] = 0

    def __post_init__(self) -> None:
        check(self)

    def build(self, peak: float, total_steps: int) -> optax.Schedule:
        """step (an int, or an array of them) -> learning rate (float32), for a run of `total_steps`. An array of
        NumPy's gives one of NumPy's, and nothing is compiled for it.

        Raises ValueError when the schedule does not fit in the run."""
        self.check(total_steps)

        def learning_rate(step: Any) -> Any:
            now = (step if isinstance(step, np.ndarray) else jnp.asarray(step)).astype(np.float32)
            warmup = ((now + 1) / (self.warmup_steps + 1)).clip(max=1.0)
            return peak * warmup * self.after(now, total_steps)

        return learning_rate

    def check(self, total_steps: int) -> None:
        """Raises ValueError when a run of `total_steps` is too short."""
        _require(total_steps >= 1, f"a run of {total_steps} steps: expected at least 1")
        _require(
            self.warmup_steps <= total_steps,
            f"warmup_steps={self.warmup_steps} is longer than the run of {total_steps} steps: "
            "warm up for less or train longer",
        )

    def branch_step(self, total_steps: int) -> int:
        """The step whose state a longer run can go on from, where that is not the last: 0 where there is none."""
        return 0

    def after(self, step: Any, total_steps: int) -> Any:
        """The fraction of the peak at `step` (float32, of JAX or NumPy), warm-up apart: 1 until the warm-up is over."""
        return 1.0

    def _fall(self, step: Any, start: float, end: float, shape: str, final: float) -> Any:
        done = ((step - start) / max(end - start, 1)).clip(0.0, 1.0)
        return final + (1 - final) * SHAPES[shape](done)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """The peak, from the end of the warm-up on."""


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the peak to `final` x peak at the end of the run (arXiv:1608.03983)."""

    final: Fraction = 0.1

    def after(self, step: Any, total_steps: int) -> Any:
        return self._fall(step, self.warmup_steps, total_steps, "cosine", self.final)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """A line from the peak to `final` x peak at the end of the run."""

    final: Fraction = 0.0

    def after(self, step: Any, total_steps: int) -> Any:
        return self._fall(step, self.warmup_steps, total_steps, "linear", self.final)


@dataclasses.dataclass(frozen=True)
class WSD(Schedule):
    """Warm-up, stable, decay: the peak until the last `decay_steps`, then down to `final` x peak.

    With decay_steps=0 the decay takes `decay_fraction` of the run. arXiv:2404.06395; the shapes: arXiv:2405.18392."""

    choices: ClassVar[Mapping[str, Any]] = {"shape": SHAPES}

    decay_steps: Annotated[Natural, Sentinel(0, "decay_fraction of the run")] = 0
    decay_fraction: Fraction = 0.2
    final: Fraction = 0.0
    shape: str = "sqrt"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.shape in SHAPES, f"shape={self.shape!r} is no shape of a decay: {suggest(self.shape, SHAPES)}")

    def decay_length(self, total_steps: int) -> int:
        """How many steps of a run of `total_steps` the decay takes."""
        return self.decay_steps or round(self.decay_fraction * total_steps)

    def branch_step(self, total_steps: int) -> int:
        """Where the decay begins."""
        return total_steps - self.decay_length(total_steps)

    def check(self, total_steps: int) -> None:
        super().check(total_steps)
        decay = self.decay_length(total_steps)
        _require(
            self.warmup_steps + decay <= total_steps,
            f"warmup_steps={self.warmup_steps} and {decay} steps of decay do not fit in the run of {total_steps} steps"
            ": shorten one or train longer",
        )

    def after(self, step: Any, total_steps: int) -> Any:
        return self._fall(step, self.branch_step(total_steps), total_steps, self.shape, self.final)


@dataclasses.dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """peak x sqrt(warmup_steps / step): no end of the run in it. Vaswani et al. 2017, arXiv:1706.03762, section 5.3."""

    def after(self, step: Any, total_steps: int) -> Any:
        warmup = max(self.warmup_steps, 1)
        return _array_namespace(step).sqrt(warmup / step.clip(min=warmup))
