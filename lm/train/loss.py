"""The pretraining loss: cross-entropy and z-loss, a chunk of the sequence at a time.

The head's logits are the largest array of a small model's step: at a vocabulary of 128k one sequence of 8,192 tokens
has 4 GB of them. So the loss goes over the sequence by chunks, and since it is a sum, each chunk's gradient is taken in
the same visit, while its logits are at hand: nothing of size [B, T, V] ever exists and nothing is computed twice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.sharding import constrain, size

Metrics = dict[str, jax.Array]
ChunkLoss = Callable[[Any, jax.Array, Any], tuple[jax.Array, Metrics]]


def cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, Metrics]:
    """The sum over tokens of weight x (-log p(target) + z_loss x log(Z)^2) in nats, and its parts.

    logits [B, T, V] float32, targets [B, T] int32, weights [B, T] float32. The z term (2204.02311, section 5) keeps the
    softmax's normaliser Z near 1."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nll = jnp.sum(weights * (log_z - chosen))
    total = nll + z_loss * jnp.sum(weights * jnp.square(log_z)) if z_loss else nll
    right = jnp.sum(weights * (chosen >= logits.max(-1)))
    return total, {"loss": nll, "accuracy": right}


def by_chunks(chunk_loss: ChunkLoss, params: Any, x: jax.Array, rest: Any, chunk: int) -> tuple[jax.Array, Metrics]:
    """The sum of chunk_loss(params, x[:, c], rest[:, c]) over chunks c of `chunk` tokens of axis 1 (0: all at once).

    x is [B, T, D]; `rest` a tree of [B, T] arrays that need no gradient. Where a mesh splits the sequence, each device
    goes over its own part of it, all at the same time."""
    parts = size("context") if x.shape[1] % size("context") == 0 else 1
    T = x.shape[1] // parts
    if chunk <= 0 or T <= chunk:
        return chunk_loss(params, x, rest)
    chunks = -(-T // chunk)
    length = -(-T // chunks)

    def split(a: jax.Array) -> jax.Array:
        a = a.reshape(a.shape[0], parts, T, *a.shape[2:])
        padded = jnp.pad(a, [(0, 0), (0, 0), (0, chunks * length - T)] + [(0, 0)] * (a.ndim - 3))  # of weight 0
        a = jnp.moveaxis(padded.reshape(a.shape[0], parts, chunks, length, *a.shape[3:]), 2, 0)
        return constrain(
            a.reshape(chunks, a.shape[1], -1, *a.shape[4:]), *(None, "batch", "seq", "act_embed")[: a.ndim - 1]
        )

    return _summed(chunk_loss, params, split(x), jax.tree.map(split, rest))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(chunk_loss: ChunkLoss, params: Any, xs: jax.Array, rests: Any) -> tuple[jax.Array, Metrics]:
    def body(total: Any, c: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, chunk_loss(params, *c)), None

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(chunk_loss, params, xs[0], _first(rests)))
    return jax.lax.scan(body, zero, (xs, rests))[0]


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda a: a[0], tree)


def _summed_forward(chunk_loss: ChunkLoss, params: Any, xs: jax.Array, rests: Any) -> tuple[Any, Any]:
    def body(total: Any, c: Any) -> tuple[Any, jax.Array]:
        x, rest = c
        loss, pull, metrics = jax.vjp(lambda p, x: chunk_loss(p, x, rest), params, x, has_aux=True)
        dparams, dx = pull(jnp.ones_like(loss))
        return jax.tree.map(jnp.add, total, ((loss, metrics), dparams)), dx

    shape = jax.eval_shape(chunk_loss, params, xs[0], _first(rests))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shape, params))
    (out, dparams), dxs = jax.lax.scan(body, zero, (xs, rests))
    return out, (dparams, dxs, rests)


def _summed_backward(chunk_loss: ChunkLoss, saved: Any, cotangent: Any) -> tuple[Any, jax.Array, Any]:
    dparams, dxs, rests = saved
    scale = lambda a: (a * cotangent[0]).astype(a.dtype)  # noqa: E731
    return jax.tree.map(scale, dparams), scale(dxs), jax.tree.map(_no_gradient, rests)


def _no_gradient(a: jax.Array) -> Any:
    integer = not jnp.issubdtype(a.dtype, jnp.floating)
    return np.zeros(a.shape, jax.dtypes.float0) if integer else jnp.zeros_like(a)


_summed.defvjp(_summed_forward, _summed_backward)
