"""Weights of 8 bits: whole numbers from -127 to 127 and a scale for each output, the largest of its weights over 127
(LLM.int8(), 2208.07339, section 2.1, where the inputs are rounded too; here they stay float32).

A token reads a quarter of the bytes. XLA's CPU compiler would write out all weights as float32 before each product; a
kernel in C (int8.c) multiplies them as they are.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp

from lm.machine import native
from lm.model.compute import Compute

FEW = 64  # rows up to which the kernel is faster than float32 products of weights that are written out
TARGET = "lm_int8_product"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """A matrix of `shape` [*in, *out], as `values` [O, I], int8, times `scale` [O]: outputs and inputs flattened. As a
    `table` it is [O, I] itself: an embedding as the output's weights."""

    values: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = field(metadata=dict(static=True))
    table: bool = field(default=False, metadata=dict(static=True))

    @property
    def T(self) -> "Int8":
        """The same outputs of the same inputs, from [I, O] as a table [O, I], or back."""
        return replace(self, shape=self.shape[::-1], table=not self.table)

    def product(self, x: jax.Array, contract: int, compute: Compute) -> jax.Array:
        """x [B, T, *in] times this -> [B, T, *out] in `compute.dtype`, over the last `contract` axes of x; multiplied
        and summed in float32. A row's bits are the same whatever rows are beside it, at a fixed shape."""
        lead, (outputs, inputs) = x.shape[: x.ndim - contract], self.values.shape
        x = x.astype(jnp.float32).reshape(-1, inputs)
        if len(x) <= FEW:
            y = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct((len(x), outputs), jnp.float32))(
                x, self.values, self.scale
            )
        else:
            y = x @ self.values.astype(jnp.float32).T * self.scale
        return y.reshape(*lead, *self.shape[contract:]).astype(compute.dtype)

    def rounded(self) -> jax.Array:
        """The weights that it stands for, float32, of its shape."""
        weights = self.values.astype(jnp.float32) * self.scale[:, None]
        return weights if self.table else weights.T.reshape(self.shape)


@partial(jax.jit, static_argnums=1)
def quantize(w: jax.Array, contract: int = 1) -> Int8:
    """Weights w [*in, *out], of `contract` axes of inputs, in 8 bits."""
    flat = w.reshape(math.prod(w.shape[:contract]), -1).T
    scale = jnp.abs(flat).max(1) / 127
    values = jnp.round(flat / jnp.where(scale > 0, scale, 1)[:, None])
    return Int8(values.astype(jnp.int8), scale, w.shape)


@cache
def has_kernel() -> bool:
    """Whether there is a kernel for `product`: it is built now if need be, and known to XLA from here on."""
    library = native.library(Path(__file__).with_name("int8.c"), jax.ffi.include_dir())
    if library is None:
        return False
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.lm_int8_product), platform="cpu")
    return True
