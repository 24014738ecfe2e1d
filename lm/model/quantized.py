"""Matrices kept in fewer bits, and read as float32: the frozen base under adapters (QLoRA, 2305.14314).

A product makes the matrix anew of one layer at a time, forward and backward, so that what stays in memory is the kept
form. Its arrays have the axes of the matrix, stacked layers and experts first, and are sharded as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.parametrisation import Axes, matrix_dims

# The 16 values of NormalFloat: quantiles of a normal distribution, scaled to [-1, 1] (2305.14314, appendix E).
NORMAL_FLOAT = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
BLOCK = 64  # weights that share a scale


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kept:
    """A matrix as it is kept. `axes` gives the logical axes of its arrays from those of the matrix."""

    @classmethod
    def of(cls, w: jax.Array, axes: Axes) -> "Kept":
        """The matrix w as it is kept."""
        raise NotImplementedError

    @classmethod
    def axes(cls, axes: Axes) -> Mapping[str, tuple[str | None, ...]]:
        """Array -> its logical axes, of a matrix with `axes`."""
        raise NotImplementedError

    @property
    def dense(self) -> jax.Array:
        """The matrix, float32."""
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BFloat16(Kept):
    """Rounded to bfloat16."""

    values: jax.Array

    @classmethod
    def of(cls, w: jax.Array, axes: Axes) -> "BFloat16":
        return cls(w.astype(jnp.bfloat16))

    @classmethod
    def axes(cls, axes: Axes) -> Mapping[str, tuple[str | None, ...]]:
        return {"values": tuple(axes)}

    @property
    def dense(self) -> jax.Array:
        return self.values.astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8PerChannel(Kept):
    """Whole numbers from -127 to 127 times a scale for each output, the largest of its weights over 127."""

    values: jax.Array
    scale: jax.Array  # of the matrix's axes, its inputs of size 1

    @classmethod
    def of(cls, w: jax.Array, axes: Axes) -> "Int8PerChannel":
        scale = jnp.abs(w).max(matrix_dims(axes)[0], keepdims=True) / 127
        return cls(jnp.round(w / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale)

    @classmethod
    def axes(cls, axes: Axes) -> Mapping[str, tuple[str | None, ...]]:
        inputs = matrix_dims(axes)[0]
        return {"values": tuple(axes), "scale": tuple(None if i in inputs else axis for i, axis in enumerate(axes))}

    @property
    def dense(self) -> jax.Array:
        return self.values.astype(jnp.float32) * self.scale


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NF4(Kept):
    """Indices in NORMAL_FLOAT, two in a byte, times the largest absolute value of each BLOCK of weights, counted along
    the last axis: a shorter axis is one block, and its last block may be shorter. Scales are float32; the paper's
    double quantisation is left out."""

    codes: jax.Array  # uint8, the last axis halved: the first of two weights in the high bits
    absmax: jax.Array  # the last axis in blocks

    @classmethod
    def of(cls, w: jax.Array, axes: Axes) -> "NF4":
        blocks = -(-w.shape[-1] // BLOCK)
        padded = jnp.pad(jnp.abs(w), [(0, 0)] * (w.ndim - 1) + [(0, blocks * BLOCK - w.shape[-1])])
        absmax = padded.reshape(*w.shape[:-1], blocks, BLOCK).max(-1)
        levels = np.asarray(NORMAL_FLOAT, np.float32)
        scaled = w / jnp.where(absmax > 0, absmax, 1).repeat(BLOCK, axis=-1)[..., : w.shape[-1]]
        nearest = jnp.searchsorted((levels[1:] + levels[:-1]) / 2, scaled).astype(jnp.uint8)
        return cls(nearest[..., ::2] << 4 | nearest[..., 1::2], absmax)

    @classmethod
    def axes(cls, axes: Axes) -> Mapping[str, tuple[str | None, ...]]:
        return {"codes": tuple(axes), "absmax": (*axes[:-1], None)}

    @property
    def dense(self) -> jax.Array:
        pairs = jnp.stack([self.codes >> 4, self.codes & 15], axis=-1)
        levels = jnp.asarray(NORMAL_FLOAT, jnp.float32)[pairs.reshape(*self.codes.shape[:-1], -1)]
        return levels * self.absmax.repeat(BLOCK, axis=-1)[..., : levels.shape[-1]]


class Storage(NamedTuple):
    """How a matrix is kept in a tree of arrays.

    - `keep`: (the matrix, its logical axes) -> what is kept, an array or a dict of arrays.
    - `axes`: the axes of the matrix -> those of what is kept.
    - `read`: what is kept -> what `dense` makes the matrix of."""

    keep: Callable[[jax.Array, Axes], Any]
    axes: Callable[[Axes], Any]
    read: Callable[[Any], Any]


def _storage(kind: type[Kept]) -> Storage:
    return Storage(lambda w, axes: vars(kind.of(w, axes)), kind.axes, lambda kept: kind(**kept))


STORED: Mapping[str, Storage] = {
    "float32": Storage(lambda w, axes: w, lambda axes: axes, lambda kept: kept),
    "bfloat16": _storage(BFloat16),
    "int8": _storage(Int8PerChannel),
    "nf4": _storage(NF4),
}


def dense(w: Any) -> jax.Array:
    """A matrix as an array, float32, however it is kept."""
    return w.dense if isinstance(w, Kept) else w
