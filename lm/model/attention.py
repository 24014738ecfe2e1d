"""Attention: who may look at whom (`Mask`), the heads (`Attention`), and the kernels that compute it.

Every kernel is a function of the same arguments with the same numbers; which one runs is a value (`Compute.attention`).
Logits and softmax are float32.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.compute import Compute
from lm.model.parts import add_bias, fan_in, linear, param
from lm.model.positions import Positions
from lm.sharding import constrain

MINUS_INFINITY = -1e30  # finite, so that a query that may look at nothing gives numbers and no NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Which keys a query may look at: those of its own segment and, when `causal`, those that are not later than itself.

    `query_segments` [B, T] and `key_segments` [B, S] are whole numbers, 0 for padding; None is one segment. `offset` is the index of
    the first query among the keys: what a cache held before."""

    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    offset: jax.Array | int = 0
    causal: bool = dataclasses.field(default=True, metadata=dict(static=True))

    def allowed(self, queries: slice, keys: slice) -> jax.Array | None:
        """The [B or 1, T, S] booleans of these queries and keys (slices with a stop), or None where all are allowed."""
        allowed = None
        if self.causal:
            q = jnp.arange(queries.start or 0, queries.stop)[:, None] + self.offset
            allowed = (jnp.arange(keys.start or 0, keys.stop)[None, :] <= q)[None]
        if self.query_segments is not None and self.key_segments is not None:
            same = self.query_segments[:, queries, None] == self.key_segments[:, None, keys]
            allowed = same if allowed is None else allowed & same
        return allowed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The keys and values of one layer, [B, S, K, H] each. A stack of them, [L, B, S, K, H], is scanned with the layers."""

    k: jax.Array
    v: jax.Array

    def write(self, k: jax.Array, v: jax.Array, offset: jax.Array | int) -> "Cache":
        """This cache with k and v [B, T, K, H] at `offset`."""
        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), offset, axis=1)

        return Cache(put(self.k, k), put(self.v, v))


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, bias: jax.Array | None, compute: Compute) -> jax.Array:
    """q [B, T, N, H] (scaled already), k and v [B, S, K, H] -> [B, T, N, H], with all logits [B, N, T, S] at once."""
    everything = slice(0, q.shape[1]), slice(0, k.shape[1])
    return _attend(q, k, v, mask.allowed(*everything), bias, compute)


def blocked(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, bias: jax.Array | None, compute: Compute) -> jax.Array:
    """`plain` by blocks of queries, each of which sees only the keys that the causal mask can leave it: half the work."""
    T, block = q.shape[1], compute.block
    if not mask.causal or T != k.shape[1] or T <= block or not isinstance(mask.offset, int):
        return plain(q, k, v, mask, bias, compute)
    outs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        rows, columns = slice(start, stop), slice(0, stop)
        part = None if bias is None else bias[:, :, rows, columns]
        outs.append(_attend(q[:, rows], k[:, columns], v[:, columns], mask.allowed(rows, columns), part, compute))
    return jnp.concatenate(outs, axis=1)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | None, bias: jax.Array | None, compute: Compute
) -> jax.Array:
    B, T, N, H = q.shape
    K = k.shape[2]
    q, k, v = (a.astype(compute.matmul) for a in (q.reshape(B, T, K, N // K, H), k, v))
    logits = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.reshape(bias.shape[0], K, N // K, T, -1)
    if allowed is not None:
        logits = jnp.where(allowed[:, None, None], logits, MINUS_INFINITY)
    # dividing [T, H] by the sum afterwards is H / S of the work of dividing the [T, S] probabilities
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1)
    out = jnp.einsum("bkgts,bskh->btkgh", weights.astype(compute.matmul), v, preferred_element_type=jnp.float32)
    out = out / total.transpose(0, 3, 1, 2)[..., None]
    return out.reshape(B, T, N, H).astype(compute.dtype)


Kernel = Callable[[jax.Array, jax.Array, jax.Array, Mask, jax.Array | None, Compute], jax.Array]
KERNELS: dict[str, Kernel] = {"plain": plain, "blocked": blocked}


@dataclass(frozen=True)
class Attention:
    """Attention of `heads` query heads over `kv_heads` key and value heads (0: as many) of size `head_dim`: MHA (1706.03762), GQA
    (2305.13245) and, with one kv head, MQA (1911.02150). `bias` adds one to the four projections."""

    heads: int
    head_dim: int
    kv_heads: int = 0
    bias: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1 or self.head_dim < 1:
            raise ValueError(f"attention.heads={self.heads}, head_dim={self.head_dim}: expected at least 1 of each")
        if self.kv_heads < 0 or self.heads % self.kv:
            divisors = [d for d in range(1, self.heads + 1) if self.heads % d == 0]
            near = sorted(divisors, key=lambda d: abs(d - self.kv_heads))[:2]
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: try {' or '.join(map(str, sorted(near)))}")

    @property
    def kv(self) -> int:
        """K, the number of key and value heads."""
        return self.kv_heads or self.heads

    def __call__(
        self, module: nn.Module, x: jax.Array, mask: Mask, positions: Positions, table: tuple[jax.Array, ...],
        bias: jax.Array | None, cache: Cache | None, compute: Compute, depth: int,
    ) -> tuple[jax.Array, Cache | None]:
        """x [B, T, D] -> [B, T, D] and the cache with this call's keys and values written into it."""
        D, N, K, H = x.shape[-1], self.heads, self.kv, self.head_dim

        def project(name: str, heads: int, axis: str) -> jax.Array:
            y = linear(x, param(module, name, (D, heads, H), ("embed", axis, "head_dim"), fan_in(D)), compute)
            y = add_bias(module, f"{name}_bias", y, (axis, "head_dim")) if self.bias else y
            return constrain(y, "batch", "seq", axis, "head_dim")

        q, k, v = project("query", N, "heads"), project("key", K, "kv_heads"), project("value", K, "kv_heads")
        q, k = positions.rotate(q, table), positions.rotate(k, table)
        if cache is not None:
            cache = cache.write(k, v, mask.offset)
            k, v = cache.k, cache.v
        y = KERNELS[compute.attention](q * H**-0.5, k, v, mask, bias, compute)
        y = constrain(y, "batch", "seq", "heads", "head_dim")
        out = param(module, "out", (N, H, D), ("heads", "head_dim", "embed"), fan_in(N * H, (2 * depth) ** -0.5))
        y = linear(y, out, compute, contract=2)
        return (add_bias(module, "out_bias", y, ("norm",)) if self.bias else y), cache
