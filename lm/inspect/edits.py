"""Edits: what a place of the model is given instead of its own value, as values (ablation, patching, steering)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from lm.model.taps import EditFn, axes

Numbers = int | Sequence[int] | jax.Array | None


@dataclass(frozen=True, eq=False)
class Edit:
    """The base class of edits: a place, and its layers, heads (of queries; for keys and values of their own) and
    positions (of queries; for keys and values of keys) that are edited: a number, several, or None for all. It changes
    nothing itself."""

    place: str
    layers: Numbers = None
    heads: Numbers = None
    positions: Numbers = None

    def __call__(self, x: jax.Array, layer: Any) -> jax.Array:
        """x, one layer's value at the place, with the edit."""
        return jnp.where(self.mask(x, layer), self.new(x, layer), x)

    def new(self, x: jax.Array, layer: Any) -> jax.Array:
        """What x is edited to where `mask` is true."""
        return x

    def check(self, layers: int) -> None:
        """Raise ValueError for a layer that a stack of so many has not."""
        if self.layers is None or isinstance(self.layers, jax.Array):
            return
        for layer in (self.layers,) if isinstance(self.layers, int) else self.layers:
            if not 0 <= layer < layers:
                raise ValueError(f"{self.place} of layer {layer}: this model has layers 0 to {layers - 1}")

    def mask(self, x: jax.Array, layer: Any) -> jax.Array:
        """Booleans that broadcast to x: where it is edited."""
        names = axes(self.place)
        mask = _among(layer, self.layers).reshape((1,) * x.ndim)
        for numbers, letters in ((self.heads, "NK"), (self.positions, "TS")):
            if numbers is None:
                continue
            axis = next((i for i, name in enumerate(names) if name in letters), None)
            if axis is None:
                raise ValueError(f"{self.place} has no heads: leave heads out, or edit attn_head")
            own = _among(jnp.arange(x.shape[axis]), numbers)
            mask = mask & own.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        return mask


def _among(index: Any, numbers: Numbers) -> jax.Array:
    """Whether each of `index` is one of `numbers`."""
    if numbers is None:
        return jnp.ones_like(index, bool)
    return (jnp.asarray(index)[..., None] == jnp.atleast_1d(jnp.asarray(numbers))).any(-1)


@dataclass(frozen=True, eq=False)
class Zero(Edit):
    """Zero ablation."""

    def new(self, x: jax.Array, layer: Any) -> jax.Array:
        return jnp.zeros_like(x)


@dataclass(frozen=True, eq=False)
class Replace(Edit):
    """`values` instead of x: [L, ...] as `look` reads them, of all layers; an axis of size 1 serves all of it.

    Of another text it is activation patching (2202.05262), of a mean over texts mean ablation, of rows in another order
    resample ablation (2304.14997)."""

    values: Any = None

    def new(self, x: jax.Array, layer: Any) -> jax.Array:
        return _of_layer(self.values, layer)

    def check(self, layers: int) -> None:
        super().check(layers)
        _check_values(self.place, self.values, layers)


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """x plus `values`, [L, ...] or one vector over the last axis: steering (2308.10248)."""

    values: Any = None

    def new(self, x: jax.Array, layer: Any) -> jax.Array:
        values = jnp.asarray(self.values)
        return x + (values if values.ndim == 1 else _of_layer(values, layer)).astype(x.dtype)

    def check(self, layers: int) -> None:
        super().check(layers)
        _check_values(self.place, self.values, layers)


def _check_values(place: str, values: Any, layers: int) -> None:
    """Raise ValueError for values of some layers, of which none says which they are."""
    shape = jnp.shape(values)
    if len(shape) > 1 and shape[0] not in (1, layers):
        raise ValueError(
            f"{place} has values of {shape[0]} layers, and this model {layers}: give one of each layer, or a first "
            "axis of 1 for all (in some layers of this model there is no such place)"
        )


def _of_layer(values: Any, layer: Any) -> jax.Array:
    values = jnp.asarray(values)
    return values[0] if values.shape[0] == 1 else values[layer]


def by_place(edits: Sequence[Edit]) -> dict[str, EditFn]:
    """The edits of each place as one, in their order."""
    places: dict[str, list[Edit]] = {}
    for edit in edits:
        places.setdefault(edit.place, []).append(edit)

    def together(several: list[Edit]) -> EditFn:
        return lambda x, layer: reduce(lambda y, edit: edit(y, layer), several, x)

    return {name: together(several) for name, several in places.items()}
