"""The pretraining loss: cross-entropy and z-loss, a chunk of the sequence at a time.

The head's logits are the largest array of a small model's step: at a vocabulary of 128k one sequence of 8,192 tokens
has 4 GB of them. So the loss is scanned over chunks of the sequence, and since it is a sum, each chunk's gradient is
taken in the same pass, while its logits exist: no array is [B, T, V], and nothing is computed twice.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from lm.sharding.collectives import manual_data_parallel
from lm.sharding.tracing import axis_size, constrain, splits_evenly

Metrics = dict[str, jax.Array]
ChunkLoss = Callable[[Any, jax.Array, Any], tuple[jax.Array, Metrics]]


def cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float = 0.0
) -> tuple[jax.Array, Metrics]:
    """The sum over tokens of weight x (-log p(target) + z_loss x log(Z)^2) in nats, and its parts.

    logits [B, T, V] float32, targets [B, T] int32, weights [B, T] float32. The z term (2204.02311, section 5) keeps the
    softmax's normaliser Z near 1."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    at = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    chosen = jnp.where(at, logits, 0.0).sum(-1)  # a gather's gradient would scatter into all logits once more
    nll = jnp.sum(weights * (log_z - chosen))
    total = nll + z_loss * jnp.sum(weights * jnp.square(log_z)) if z_loss else nll
    right = jnp.sum(weights * (chosen >= logits.max(-1)))
    return total, {"loss": nll, "accuracy": right}


def chunked_loss(
    chunk_loss: ChunkLoss,
    params: Any,
    x: jax.Array,
    rest: Any,
    chunk: int,
    axes: Any = None,
    dtypes: Any = (jnp.float32, jnp.float32),
) -> tuple[jax.Array, Metrics]:
    """The sum of chunk_loss(params, x[:, c], rest[:, c]) over chunks c of the sequence.

    Where a mesh splits the rows or the sequence, each device scans its own part; given `axes`, the parameters are
    gathered once before the first chunk, and their gradients summed over the devices once after the last.

    Args:
      chunk_loss: (params, x, rest) of one chunk -> (loss, metrics), both sums over its tokens.
      params: a tree of arrays.
      x: [B, T, D] hidden states.
      rest: a tree of [B, T] arrays that need no gradient.
      chunk: tokens of a sequence at a time (0: all at once).
      axes: the logical axes of `params`.
      dtypes: of the parameters when gathered, and of their gradients when summed over devices."""
    if axes is not None and chunk > 0 and splits_evenly(*x.shape[:2]):
        leaves = tuple(jax.tree.leaves(axes, is_leaf=lambda a: isinstance(a, tuple)))
        return _per_device(chunk_loss, chunk, leaves, tuple(dtypes), params, x, rest)
    parts = axis_size("context") if x.shape[1] % axis_size("context") == 0 else 1
    if chunk <= 0 or x.shape[1] // parts <= chunk:
        return chunk_loss(params, x, rest)
    split = partial(_split, chunk, parts)
    return _scan_chunks(chunk_loss, params, split(x), jax.tree.map(split, rest))


def map_chunks(function: Callable[..., Any], chunk: int, *arrays: jax.Array) -> Any:
    """function(*arrays), a tree of arrays [B, T, ...], of `arrays` [B, T, ...] by chunks of at most `chunk` tokens of a
    sequence (0: all at once), one at a time in memory; the backward pass computes each again."""
    B, T = arrays[0].shape[:2]
    parts = axis_size("context") if T % axis_size("context") == 0 else 1
    if chunk <= 0 or T // parts <= chunk:
        return function(*arrays)

    def join(a: jax.Array) -> jax.Array:
        by_part = jnp.moveaxis(a.reshape(len(a), B, parts, -1, *a.shape[3:]), 0, 2)
        return by_part.reshape(B, parts, -1, *a.shape[3:])[:, :, : T // parts].reshape(B, T, *a.shape[3:])

    split = tuple(_split(chunk, parts, a) for a in arrays)
    return jax.tree.map(join, jax.lax.map(jax.checkpoint(lambda chunks: function(*chunks)), split))


def _split(chunk: int, parts: int, a: jax.Array) -> jax.Array:
    """a [B, T, ...] as chunks [C, B, t, ...] of at most `chunk` tokens of each of `parts` parts of T."""
    T = a.shape[1] // parts
    chunks = -(-T // chunk)
    length = -(-T // chunks)
    a = a.reshape(a.shape[0], parts, T, *a.shape[2:])
    padded = jnp.pad(a, [(0, 0), (0, 0), (0, chunks * length - T)] + [(0, 0)] * (a.ndim - 3))  # of weight 0
    a = jnp.moveaxis(padded.reshape(a.shape[0], parts, chunks, length, *a.shape[3:]), 2, 0)
    return constrain(
        a.reshape(chunks, a.shape[1], -1, *a.shape[4:]), *(None, "batch", "seq", "act_embed")[: a.ndim - 1]
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan_chunks(chunk_loss: ChunkLoss, params: Any, xs: jax.Array, rests: Any) -> tuple[jax.Array, Metrics]:
    def body(total: Any, c: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, chunk_loss(params, *c)), None

    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(chunk_loss, params, xs[0], _first(rests)))
    return jax.lax.scan(body, zero, (xs, rests))[0]


def _float32_zeros(a: jax.Array) -> jax.Array:
    return jnp.zeros(a.shape, jnp.promote_types(a.dtype, jnp.float32))


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda a: a[0], tree)


def _scan_chunks_forward(chunk_loss: ChunkLoss, params: Any, xs: jax.Array, rests: Any) -> tuple[Any, Any]:
    def body(total: Any, c: Any) -> tuple[Any, jax.Array]:
        x, rest = c
        loss, pull, metrics = jax.vjp(lambda p, x: chunk_loss(p, x, rest), params, x, has_aux=True)
        dparams, dx = pull(jnp.ones_like(loss))
        return jax.tree.map(jnp.add, total, ((loss, metrics), dparams)), dx

    shape = jax.eval_shape(chunk_loss, params, xs[0], _first(rests))
    # gradients of parameters add up in float32, whatever these are in
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape), jax.tree.map(_float32_zeros, params)
    (out, dparams), dxs = jax.lax.scan(body, zero, (xs, rests))
    return out, (dparams, dxs, rests)


def _scan_chunks_backward(chunk_loss: ChunkLoss, saved: Any, cotangent: Any) -> tuple[Any, jax.Array, Any]:
    dparams, dxs, rests = saved
    scale = lambda a: (a * cotangent[0]).astype(a.dtype)  # noqa: E731
    return jax.tree.map(scale, dparams), scale(dxs), jax.tree.map(_no_gradient, rests)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _per_device(
    chunk_loss: ChunkLoss, chunk: int, axes: Any, dtypes: Any, params: Any, x: jax.Array, rest: Any
) -> tuple[jax.Array, Metrics]:
    leaves, treedef = jax.tree.flatten(params)
    tree: Any = treedef

    def own(leaves: Any, rows: Any) -> Any:
        x, rest = rows
        return chunked_loss(chunk_loss, tree.unflatten(leaves), x, rest, chunk), [], ()

    dtype, sums = dtypes
    run = manual_data_parallel(own, axes, dtype, sums, has_gradients=False)
    return cast(tuple[jax.Array, Metrics], run(leaves, (x, rest))[0])


def _per_device_forward(
    chunk_loss: ChunkLoss, chunk: int, axes: Any, dtypes: Any, params: Any, x: Any, rest: Any
) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    tree: Any = treedef

    def own(leaves: Any, rows: Any) -> Any:
        split, (B, T, D) = partial(_split, chunk, 1), rows[0].shape
        out, (gradients, dxs, _) = _scan_chunks_forward(
            chunk_loss, tree.unflatten(leaves), split(rows[0]), jax.tree.map(split, rows[1])
        )
        dx = jnp.moveaxis(dxs, 0, 1).reshape(B, -1, D)[:, :T]
        return out, jax.tree.leaves(gradients), dx

    out, gradients, dx = manual_data_parallel(own, axes, *dtypes)(leaves, (x, rest))
    # the layers go backward when these are joined with the other devices': until then the head's are whole, in float32
    gradients, dx = jax.lax.optimization_barrier((gradients, dx))
    return out, (tree.unflatten(gradients), dx, rest)


def _no_gradient(a: jax.Array) -> Any:
    integer = not jnp.issubdtype(a.dtype, jnp.floating)
    return np.zeros(a.shape, jax.dtypes.float0) if integer else jnp.zeros_like(a)


_scan_chunks.defvjp(_scan_chunks_forward, _scan_chunks_backward)
_per_device.defvjp(_per_device_forward, lambda *given: _scan_chunks_backward(*given[:1], *given[4:]))
