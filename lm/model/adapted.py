"""A frozen matrix with a low-rank change: W + s A B (LoRA, 2106.09685), and with a magnitude of each output (DoRA).

It stands in a tree of parameters in place of the matrix. A product reads W + s A B, made anew of one layer at a time in
the forward and in the backward pass, at r / tokens of the product's FLOPs; x W + s (x A) B would take two thin products
more, and two for the gradient of x. The gradients of A and B come from x and from g, that of the product, as
s x^T (g B^T) and s (x A)^T g: one of the size of W is never computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.model.quantized import Kept, dense

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

    - `base`: an array, or kept in fewer bits (lm/model/quantized.py).
    - `magnitude`: [*stack, *out] of DoRA, the norm of each output's column; None: that of W + scale * A B itself.
    - `key`: [*stack] of the `dropout` of what A reads; None: no dropout."""

    base: jax.Array | Kept
    a: jax.Array
    b: jax.Array
    magnitude: jax.Array | None = None
    key: jax.Array | None = None
    scale: float = 1.0
    dropout: float = field(default=0.0)

    @property
    def dense(self) -> jax.Array:
        """W as an array, float32."""
        return dense(self.base)

    @property
    def shape(self) -> tuple[int, ...]:
        """The matrix's."""
        stack = self._stack
        return *self.a.shape[:-1], *self.b.shape[stack + 1 :]

    @property
    def _stack(self) -> int:
        """Leading axes along which matrices are stacked."""
        return self.a.ndim + self.b.ndim - jax.tree.leaves(self.base)[0].ndim - 2

    @property
    def _sum(self) -> jax.Array:
        """W + scale * A B, in float32."""
        n = self._stack
        over = ((self.a.ndim - 1,), (n,)), (tuple(range(n)), tuple(range(n)))
        return self.dense + self.scale * jax.lax.dot_general(self.a, self.b, over, precision="highest")

    @property
    def merged(self) -> jax.Array:
        """The matrix, of the base's shape."""
        total = self._sum
        if self.magnitude is None:
            return total
        return total * jnp.expand_dims(self.magnitude / self.norms, self._inputs)

    @property
    def norms(self) -> jax.Array:
        """[*stack, *out]: the norms of the columns of W + scale * A B, held constant."""
        return jax.lax.stop_gradient(column_norms(self._sum, self._inputs))

    @property
    def _inputs(self) -> tuple[int, ...]:
        return tuple(range(self._stack, self.a.ndim - 1))

    def product(self, x: jax.Array, y: jax.Array, linear: Product) -> jax.Array:
        """x [B, T, *in] times the matrix: [B, T, *out], of y = x W; with dropout of what A reads.

        The same zeros are in both terms of DoRA that move: y + (m/n - 1) W x' + (m/n) s B A x', where n is held
        constant (2402.09353, section 4.3)."""
        contract, seen = self.a.ndim - 1, self._dropped(x)
        change = self._change(seen, self.a, self.b, linear)
        if self.magnitude is None:
            return y + change
        ratio = (self.magnitude / self.norms).astype(y.dtype)
        return y + (ratio - 1) * linear(seen, self.dense, contract=contract) + ratio * change

    def _change(self, x: jax.Array, a: jax.Array, b: jax.Array, linear: Product) -> jax.Array:
        return linear(linear(x, a, contract=a.ndim - 1) * self.scale, b)

    def learn(self, x: jax.Array, y: jax.Array, linear: Product) -> jax.Array:
        """y = x times the matrix, a constant for the factors, with their gradients."""
        moving = {"a": self.a, "b": self.b, **({} if self.magnitude is None else {"magnitude": self.magnitude})}

        def changed(moving: dict[str, jax.Array], x: jax.Array, y: jax.Array, norms: jax.Array | None) -> jax.Array:
            """y as a function of the factors."""
            change = self._change(x, moving["a"], moving["b"], linear)
            if norms is None:
                return change
            ratio = moving["magnitude"] / norms
            direction = change + jax.lax.stop_gradient(y / ratio - change)
            return (ratio * direction).astype(y.dtype)

        norms = None if self.magnitude is None else self.norms
        return _with_gradients(changed, y, moving, jax.lax.stop_gradient(x), norms)

    def _dropped(self, x: jax.Array) -> jax.Array:
        assert self.key is not None
        keep = jax.random.bernoulli(self.key, 1 - self.dropout, x.shape)
        return jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_gradients(function: Callable[..., jax.Array], y: jax.Array, moving: Any, *given: Any) -> jax.Array:
    """y as it is; its gradient goes to y, and by function(moving, x, y, norms) to `moving`."""
    return y


def _with_gradients_backward(function: Callable[..., jax.Array], saved: Any, g: jax.Array) -> Any:
    y, moving, x, norms = saved
    pull = jax.vjp(lambda moving: function(moving, x, y, norms), moving)[1]
    return g, *pull(g), None, None


_with_gradients.defvjp(lambda function, *given: (given[0], given), _with_gradients_backward)


def column_norms(w: jax.Array, inputs: tuple[int, ...]) -> jax.Array:
    """The Euclidean norm of w over its axes `inputs`."""
    return jnp.sqrt(jnp.sum(jnp.square(w), axis=inputs))


Weight = jax.Array | Adapted


def merged(w: Weight) -> jax.Array:
    """A weight as an array."""
    return w.merged if isinstance(w, Adapted) else w
