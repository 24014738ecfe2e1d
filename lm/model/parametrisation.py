"""Parametrisations: what first values, multipliers and learning rates owe to the size of a model.

In the standard one only the first values know the size, and the best learning rate falls as a model is widened. Under
muP it stays where it is: found at a small width, it is used at a large one. A parametrisation gives numbers to the
model and the growth of each axis to whoever needs it (the optimizers); it adds nothing to what is computed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import jax

from lm.bounds import Count, Natural, Sentinel, check

Axes = Sequence[str | None]

STACKED = ("layers", "experts", "conv")  # axes along which whole matrices, or a convolution's vectors, are stacked


class MultipliedAxes(tuple[str | None, ...]):
    """The logical axes of a parameter, and of each the `multipliers`: how many times as long it is
    as in the base model."""

    multipliers: tuple[float, ...]

    def __new__(cls, names: Axes, multipliers: Sequence[float]) -> "MultipliedAxes":
        made = super().__new__(cls, names)
        made.multipliers = tuple(multipliers)
        return made


def matrix_dims(axes: Axes) -> tuple[tuple[int, ...], ...]:
    """The dimensions of one stacked matrix, grouped by the side they belong to. A vector has one group or none.

    ("layers", "embed", "heads", "head_dim") -> ((1,), (2, 3))."""
    groups: list[tuple[int, ...]] = []
    for i, axis in enumerate(axes):
        if axis in STACKED:
            continue
        after_heads = axis == "head_dim" and i > 0 and axes[i - 1] in ("heads", "kv_heads")
        if after_heads:
            groups[-1] += (i,)
        else:
            groups.append((i,))
    return tuple(groups)


def fan_multipliers(axes: Axes) -> tuple[float, float]:
    """How many times as many inputs and outputs a parameter has as in the base model; a vector has outputs alone."""
    if not isinstance(axes, MultipliedAxes):
        return 1.0, 1.0
    *_, inputs, outputs = 1.0, 1.0, *(math.prod(axes.multipliers[i] for i in side) for side in matrix_dims(axes))
    return inputs, outputs


class Sized(Protocol):
    """What a parametrisation reads of a ModelConfig."""

    @property
    def width(self) -> int: ...

    @property
    def attention(self) -> Any: ...

    @property
    def slots(self) -> Mapping[str, Any]: ...

    @property
    def encoder(self) -> Any: ...


@dataclass(frozen=True)
class Parametrisation:
    """The standard one: variance 1/fan-in, H^-0.5, one learning rate. The base class and contract of all."""

    def check(self, cfg: Sized) -> None:
        """Raise ValueError where it says nothing of a model like `cfg`."""

    def axes(self, names: Axes, shape: Sequence[int], cfg: Sized) -> tuple[str | None, ...]:
        """The axes of a parameter of `cfg` with that shape, and what it has to say of their growth."""
        return tuple(names)

    def scale_init(self, value: jax.Array, axes: Axes) -> jax.Array:
        """The first value of a parameter, of the one that was drawn."""
        return value

    def attention_scale(self, scale: float, head_dim: int) -> float:
        """What attention multiplies q k by, where a model says `scale` (0: H^-0.5)."""
        return scale

    def output_scale(self, scale: float, width: int, tied: bool) -> float:
        """What the output multiplies the residual stream by, where a model says `scale`."""
        return scale


@dataclass(frozen=True)
class MuP(Parametrisation):
    """The maximal update parametrisation (2203.03466), relative to a base model: at its sizes it is the standard one.

    A side that grows with the model is wide, all others (vocabulary, positions, experts) are not. With m the growth of
    a wide side, over the base (table 3; in brackets the form of table 8, which a shared embedding needs):

        from            to wide            wide to wide       wide to not wide
        first values    as they are        variance 1/fan-in  variance 1/fan-in^2    (tied: as they are)
        multiplier      1                  1                  1                      (tied: 1/m)
        Adam's rate     1                  1/m                1/m                    (tied: 1)

    and attention's logits are q k / H instead of q k / H^0.5. Each optimizer says its own rates (lm/train/optim.py).

    `base_width` is the base's; `base_mlp`, `base_heads`, `base_kv_heads` and `base_head_dim` its F, N, K and H, where 0
    says that F and N H have grown with the width, K with N but from no less than 1 (a single key for all heads has not
    grown), and that H has not. Numbers of the model that the user ties to the width (T5's output scale, Gemma's
    `embed_scale`) are to stay those of the base."""

    base_width: Count
    base_mlp: Annotated[Natural, Sentinel(0, "it has grown with the width")] = 0
    base_heads: Annotated[Natural, Sentinel(0, "they have grown with the width")] = 0
    base_kv_heads: Annotated[Natural, Sentinel(0, "they have grown with heads")] = 0
    base_head_dim: Annotated[Natural, Sentinel(0, "it has not grown")] = 0

    def __post_init__(self) -> None:
        check(self, "parametrisation")

    def check(self, cfg: Sized) -> None:
        mixers = {type(slot.mixer).__name__ for slot in cfg.slots.values() if not hasattr(slot.mixer, "kv")}
        if mixers or cfg.encoder:
            what = " and ".join(sorted(mixers)) or "an encoder of another width"
            raise ValueError(f"MuP says nothing of {what}: use Parametrisation(), the standard one")

    def axes(self, names: Axes, shape: Sequence[int], cfg: Sized) -> tuple[str | None, ...]:
        return MultipliedAxes(names, [self._growth(name, size, cfg) for name, size in zip(names, shape, strict=True)])

    def _growth(self, name: str | None, size: int, cfg: Sized) -> float:
        wider = cfg.width / self.base_width
        head = cfg.attention.head_dim / self.base_head_dim if self.base_head_dim else 1.0
        heads, kv = cfg.attention.heads / self.base_heads if self.base_heads else wider / head, cfg.attention.kv
        by_axis = {
            "embed": wider,
            "act_embed": wider,
            "norm": wider if size == cfg.width else head,  # vectors: of the residual stream, or of a head
            "mlp": size / self.base_mlp if self.base_mlp else wider,
            "heads": heads,
            "kv_heads": kv / self.base_kv_heads if self.base_kv_heads else min(heads, kv),
            "head_dim": head,
        }
        return by_axis.get(name or "", 1.0)

    def scale_init(self, value: jax.Array, axes: Axes) -> jax.Array:
        inputs, outputs = fan_multipliers(axes)
        return value * inputs**-0.5 if inputs != 1 and outputs == 1 else value

    def attention_scale(self, scale: float, head_dim: int) -> float:
        if not self.base_head_dim:
            return scale
        return (scale or self.base_head_dim**-0.5) * (self.base_head_dim / head_dim)

    def output_scale(self, scale: float, width: int, tied: bool) -> float:
        return scale * (self.base_width / width) if tied else scale
