"""Weights of 8 bits: whole numbers from -127 to 127 and a scale for each output, the largest of its weights over 127
(LLM.int8(), 2208.07339, section 2.1, where the inputs are rounded too; here they stay float32).

A token reads a quarter of the bytes. XLA's CPU compiler would write out all weights as float32 before each product; the
kernel of lm/model/native.py multiplies them as they are.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from lm.model.native import Streamed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8(Streamed):
    """A matrix as `values` [O, I], int8, times `scale` [O]."""

    scale: jax.Array = field(default_factory=lambda: jnp.ones(0))

    @property
    def scales(self) -> tuple[jax.Array, ...]:
        return (self.scale,)

    def rounded(self) -> jax.Array:
        weights = self.values.astype(jnp.float32) * self.scale[:, None]
        return weights.T.reshape(self.shape) if self.by_output else weights


@partial(jax.jit, static_argnums=1)
def quantize(w: jax.Array, contract: int = 1) -> Int8:
    """Weights w [*in, *out], of `contract` axes of inputs, in 8 bits."""
    flat = w.reshape(math.prod(w.shape[:contract]), -1).T
    scale = jnp.abs(flat).max(1) / 127
    values = jnp.round(flat / jnp.where(scale > 0, scale, 1)[:, None])
    return Int8(values.astype(jnp.int8), w.shape, True, scale)
