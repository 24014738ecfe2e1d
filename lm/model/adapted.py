"""A frozen matrix with a low-rank change: W + s A B (LoRA, 2106.09685), and with a magnitude of each output (DoRA).

It stands in a tree of parameters in place of the matrix. `linear` multiplies with the factors, x W + s (x A) B, so that
neither W + s A B nor a gradient of W's size is ever computed; who needs the matrix itself takes `merged`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

Product = Callable[..., jax.Array]  # (x [..., *in], w [*in, *out], contract=len(in)) -> [..., *out]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "a", "b", "magnitude", "key"],
    meta_fields=["scale", "dropout"],
)
@dataclass(frozen=True)
class Adapted:
    """W + scale * A B; `base` W [*stack, *in, *out], `a` [*stack, *in, r], `b` [*stack, r, *out], where the stack is of
    layers and experts.

    - `magnitude`: [*stack, *out] of DoRA, the norm of each output's column; None: that of W + scale * A B itself.
    - `key`: [*stack] of the `dropout` of what A reads; None: no dropout."""

    base: jax.Array
    a: jax.Array
    b: jax.Array
    magnitude: jax.Array | None = None
    key: jax.Array | None = None
    scale: float = 1.0
    dropout: float = field(default=0.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The matrix's."""
        return self.base.shape

    @property
    def _stack(self) -> int:
        """Leading axes along which matrices are stacked."""
        return self.a.ndim + self.b.ndim - self.base.ndim - 2

    @property
    def _sum(self) -> jax.Array:
        """W + scale * A B, in float32."""
        n = self._stack
        over = ((self.a.ndim - 1,), (n,)), (tuple(range(n)), tuple(range(n)))
        return self.base + self.scale * jax.lax.dot_general(self.a, self.b, over, precision="highest")

    @property
    def merged(self) -> jax.Array:
        """The matrix, of the base's shape."""
        total = self._sum
        if self.magnitude is None:
            return total
        ratio = self.magnitude / jax.lax.stop_gradient(column_norms(total, self._inputs))
        return total * jnp.expand_dims(ratio, self._inputs)

    @property
    def _inputs(self) -> tuple[int, ...]:
        return tuple(range(self._stack, self.a.ndim - 1))

    def product(self, x: jax.Array, y: jax.Array, linear: Product) -> jax.Array:
        """x [B, T, *in] times the matrix: [B, T, *out], of y = x W.

        With dropout the same zeros are in both terms of DoRA that move: y + (m/n - 1) W x' + (m/n) s B A x', where n is
        held constant (2402.09353, section 4.3)."""
        assert not self._stack, self.base.shape
        contract, seen = self.a.ndim - 1, self._dropped(x)
        change = linear(linear(seen, self.a, contract=contract) * self.scale, self.b)
        if self.magnitude is None:
            return y + change
        norms = column_norms(jax.lax.stop_gradient(self._sum), self._inputs)
        ratio = (self.magnitude / norms).astype(y.dtype)
        if self.key is None:
            return ratio * (y + change)
        return y + (ratio - 1) * linear(seen, self.base, contract=contract) + ratio * change

    def _dropped(self, x: jax.Array) -> jax.Array:
        if self.key is None:
            return x
        keep = jax.random.bernoulli(self.key, 1 - self.dropout, x.shape)
        return jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)


def column_norms(w: jax.Array, inputs: tuple[int, ...]) -> jax.Array:
    """The Euclidean norm of w over its axes `inputs`."""
    return jnp.sqrt(jnp.sum(jnp.square(w), axis=inputs))


Weight = jax.Array | Adapted


def merged(w: Weight) -> jax.Array:
    """A weight as an array."""
    return w.merged if isinstance(w, Adapted) else w


def base_of(w: Weight) -> jax.Array:
    """A weight without its change."""
    return w.base if isinstance(w, Adapted) else w
