"""Low-rank adapters: LoRA (2106.09685), rsLoRA (2312.03732), DoRA (2402.09353)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from lm.bounds import Count, Decay, Positive, Sentinel, check
from lm.model.adapted import Adapted, column_norms
from lm.model.config import ModelConfig
from lm.model.count import shapes
from lm.model.parametrisation import STACKED, Axes, matrix_dims
from lm.model.quantized import STORED, Storage
from lm.train.method import Learner
from lm.train.optim import is_table
from lm.tune.partial import Partial
from lm.tune.paths import axes_of, by_path, is_matrix, select
from lm.tune.trains import Trains
from lm.value import suggest

RANK = "lora_rank"
SCORE = "head/score"


@dataclass(frozen=True)
class LoRA(Trains):
    """To each matrix W that `where` chooses a change s A B of rank `rank` is learned, where s = `alpha` / rank; W and
    all else stay as they are.

    The change is 0 at first: A is uniform within 1 / sqrt(its inputs) and B zero; of a table that is looked up by row A
    is zero and B normal, as in the authors' loralib. Of stacked layers and experts each has factors of its own.

    - `where`: the matrices, by path (lm/tune/paths.py); by default all of the layers, a vision tower's too: those of
      the tower alone are "vision/layers/.*", those of the text alone "(?<!vision/)layers/.*".
    - `full`: parameters that are trained themselves besides, a new output for instance; empty: none. An output of
      scores always is, as in PEFT: where a model of texts is the start, it is new.
    - `rslora`: s = alpha / sqrt(rank) (2312.03732), under which gradients keep their size as the rank grows.
    - `dropout`: of what A reads.
    - `base`: how the matrices that are adapted are kept: float32, bfloat16, int8 (a scale for each output) or nf4
      (QLoRA, 2305.14314; lm/model/quantized.py). What is learned, decoded and exported as a model is the kept matrix
      with its change, in float32; an adapter that is exported alone is still to this base, not to the one before."""

    choices: ClassVar[Mapping[str, Any]] = {"base": STORED}

    rank: Count = 8
    alpha: Positive = 16.0
    where: str = "layers/.*"
    full: str = ""
    rslora: bool = False
    dropout: Annotated[Decay, Sentinel(0, "none")] = 0.0
    base: str = "float32"

    def __post_init__(self) -> None:
        check(self, "trains")
        if self.base not in STORED:
            raise ValueError(f"trains.base={self.base!r}: {suggest(self.base, STORED)}")

    @property
    def storage(self) -> Storage:
        """How the matrices that it adapts are kept."""
        return STORED[self.base]

    @property
    def scale(self) -> float:
        """s, by which A B is multiplied."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def check(self, model: ModelConfig) -> None:
        sizes = by_path(shapes(model))
        for path in sorted(self._adapted(axes_of(model))):
            if self.base == "nf4" and (last := sizes[path].shape[-1]) % 2:
                raise ValueError(
                    f"trains.base={self.base!r} keeps two weights in a byte, and the last axis of {path} has {last}: "
                    "take int8, or leave it out of trains.where"
                )

    def frozen(self, model: ModelConfig) -> frozenset[str]:
        return frozenset(axes_of(model)) - self._full(axes_of(model))

    def added(self, model: ModelConfig) -> int:
        axes, sizes = axes_of(model), by_path(shapes(model))
        return sum(self._added(sizes[path].shape, axes[path]) for path in self._adapted(axes))

    def _added(self, shape: tuple[int, ...], axes: Axes) -> int:
        inputs, outputs = (math.prod(shape[i] for i in side) for side in matrix_dims(axes))
        return math.prod(shape) // (inputs * outputs) * self.rank * (inputs + outputs)

    def _adapted(self, axes: Mapping[str, Axes]) -> frozenset[str]:
        return select("trains.where", self.where, axes, is_matrix) - self._full(axes)

    def _full(self, axes: Mapping[str, Axes]) -> frozenset[str]:
        chosen = select("trains.full", self.full, axes) if self.full else frozenset[str]()
        return chosen | ({SCORE} & axes.keys())

    def wrap(self, learner: Learner) -> Learner:
        axes = by_path(learner.axes())
        return Partial(learner, self._full(axes), self, self._adapted(axes))

    def factor_axes(self, axes: Axes) -> dict[str, tuple[str | None, ...]]:
        """The logical axes of the factors of a matrix with `axes`, by name."""
        stack, inputs, outputs = _sides(axes)
        return {"lora_a": (*stack, *inputs, RANK), "lora_b": (*stack, RANK, *outputs)}

    def factors(self, w: jax.Array, axes: Axes, key: jax.Array) -> dict[str, jax.Array]:
        """The first values of the factors of the matrix w. Traced."""
        stack, inputs, outputs = _sides(w.shape, axes)
        a, b = (*stack, *inputs, self.rank), (*stack, self.rank, *outputs)
        if is_table(axes):
            return {"lora_a": jnp.zeros(a), "lora_b": jax.random.normal(key, b)}
        most = math.prod(inputs) ** -0.5
        return {"lora_a": jax.random.uniform(key, a, minval=-most, maxval=most), "lora_b": jnp.zeros(b)}

    def adapt(self, w: Any, factors: Mapping[str, jax.Array], axes: Axes, key: jax.Array | None) -> Adapted:
        """The matrix w, as it is stored, with its change; `key` is of its dropout."""
        stack = _sides(factors["lora_a"].shape, self.factor_axes(axes)["lora_a"])[0]
        keys = None if key is None else jax.random.split(key, stack) if stack else key
        magnitude = factors.get("magnitude")
        return Adapted(w, factors["lora_a"], factors["lora_b"], magnitude, keys, self.scale, self.dropout)


@dataclass(frozen=True)
class DoRA(LoRA):
    """Weight-decomposed LoRA (2402.09353): W + s A B gives the direction of each output's column, and its norm is a
    parameter `magnitude`, at first that of W. The norm that is divided by is held constant in gradients (4.3)."""

    def _added(self, shape: tuple[int, ...], axes: Axes) -> int:
        stack, _, outputs = _sides(shape, axes)
        return super()._added(shape, axes) + math.prod(stack) * math.prod(outputs)

    def factor_axes(self, axes: Axes) -> dict[str, tuple[str | None, ...]]:
        stack, _, outputs = _sides(axes)
        return super().factor_axes(axes) | {"magnitude": (*stack, *outputs)}

    def factors(self, w: jax.Array, axes: Axes, key: jax.Array) -> dict[str, jax.Array]:
        return super().factors(w, axes, key) | {"magnitude": column_norms(w, matrix_dims(axes)[0])}


def _sides(of: Sequence[Any], axes: Axes | None = None) -> tuple[tuple, tuple, tuple]:
    """(stack, inputs, outputs) of a matrix's axes, or of its shape."""
    axes = of if axes is None else axes
    inputs, outputs = (tuple(of[i] for i in side) for side in matrix_dims(axes))
    return tuple(x for x, name in zip(of, axes, strict=True) if name in STACKED), inputs, outputs
