"""Attention: who may look at whom (`Mask`), the heads (`Attention`), and the kernels that compute it.

Every kernel is a function of the same arguments with the same numbers; which one runs is a value (`Compute.attention`).
Logits and softmax are float32.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.compute import Compute
from lm.model.parts import add_bias, fan_in, linear, linears, param
from lm.model.positions import Positions
from lm.sharding import constrain

MINUS_INFINITY = -1e30  # finite, so that a query that may look at nothing gives numbers and no NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Which keys a query may look at: those of its own segment and, when `causal`, those not later than itself.

    `query_segments` [B, T] and `key_segments` [B, S] are whole numbers, 0 for padding; None is one segment. `offset` is
    the index of the first query among the keys: what a cache held before."""

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
    """The keys and values of one layer, [B, S, K, H] each; a stack, [L, B, S, K, H], is scanned with the layers."""

    k: jax.Array
    v: jax.Array

    def write(self, k: jax.Array, v: jax.Array, offset: jax.Array | int) -> "Cache":
        """This cache with k and v [B, T, K, H] at `offset`."""

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), offset, axis=1)

        return Cache(put(self.k, k), put(self.v, v))


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, bias: jax.Array | None, compute: Compute) -> jax.Array:
    """q [B, T, N, H] (scaled already), k and v [B, S, K, H] -> [B, T, N, H], with all logits [B, N, T, S] at once."""
    return blocked(q, k, v, mask, bias, replace(compute, block=q.shape[1]))


def blocked(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, bias: jax.Array | None, compute: Compute
) -> jax.Array:
    """`plain` by blocks of queries, each with only the keys that the causal mask can leave it: about half the work."""
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    # heads before time, once: products over batches of matrices then need no copies of their own
    q = q.astype(compute.matmul).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = (a.astype(compute.matmul).transpose(0, 2, 1, 3) for a in (k, v))
    square = mask.causal and T == S and isinstance(mask.offset, int)
    outs = []
    for start in range(0, T, compute.block):
        stop = min(start + compute.block, T)
        rows, columns = slice(start, stop), slice(0, stop if square else S)
        part = None if bias is None else bias[:, :, rows, columns].reshape(-1, K, N // K, stop - start, columns.stop)
        outs.append(_attend(q[..., rows, :], k[..., columns, :], v[..., columns, :], mask.allowed(rows, columns), part))
    out = jnp.concatenate(outs, axis=3) if len(outs) > 1 else outs[0]
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(compute.dtype)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """q [B, K, G, T, H], k and v [B, K, S, H] -> float32 [B, K, G, T, H]."""
    logits = jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    if allowed is not None:
        logits = jnp.where(allowed[:, None, None], logits, MINUS_INFINITY)
    # dividing [T, H] by the sum afterwards is H / S of the work of dividing the [T, S] probabilities
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out / weights.sum(-1, keepdims=True)


Kernel = Callable[[jax.Array, jax.Array, jax.Array, Mask, jax.Array | None, Compute], jax.Array]
KERNELS: dict[str, Kernel] = {"plain": plain, "blocked": blocked}


@dataclass(frozen=True)
class Attention:
    """Attention of `heads` query heads over `kv_heads` key and value heads (0: as many) of size `head_dim`: MHA
    (1706.03762), GQA (2305.13245) and, with one kv head, MQA (1911.02150). `bias` adds one to the four projections."""

    heads: int
    head_dim: int
    kv_heads: int = 0
    bias: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1 or self.head_dim < 1:
            raise ValueError(f"attention.heads={self.heads}, head_dim={self.head_dim}: expected at least 1 of each")
        if self.kv_heads < 0 or self.heads % self.kv:
            divisors = [d for d in range(1, self.heads + 1) if self.heads % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - self.kv_heads))[:2])
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: try {' or '.join(map(str, near))}"
            )

    @property
    def kv(self) -> int:
        """K, the number of key and value heads."""
        return self.kv_heads or self.heads

    def __call__(
        self,
        module: nn.Module,
        x: jax.Array,
        mask: Mask,
        positions: Positions,
        table: tuple[jax.Array, ...],
        bias: jax.Array | None,
        cache: Cache | None,
        compute: Compute,
        depth: int,
    ) -> tuple[jax.Array, Cache | None]:
        """x [B, T, D] -> [B, T, D] and the cache with this call's keys and values written into it."""
        D, N, K, H = x.shape[-1], self.heads, self.kv, self.head_dim

        kinds = (("query", N, "heads"), ("key", K, "kv_heads"), ("value", K, "kv_heads"))
        weights = [param(module, name, (D, n, H), ("embed", axis, "head_dim"), fan_in(D)) for name, n, axis in kinds]
        q, k, v = linears(x, weights, compute)
        if self.bias:
            q, k, v = (
                add_bias(module, f"{n}_bias", y, (axis, "head_dim"))
                for (n, _, axis), y in zip(kinds, (q, k, v), strict=True)
            )
        q, k, v = (
            constrain(y, "batch", "seq", axis, "head_dim") for (_, _, axis), y in zip(kinds, (q, k, v), strict=True)
        )
        q, k = positions.rotate(q, table), positions.rotate(k, table)
        if cache is not None:
            cache = cache.write(k, v, mask.offset)
            k, v = cache.k, cache.v
        y = KERNELS[compute.attention](q * H**-0.5, k, v, mask, bias, compute)
        y = constrain(y, "batch", "seq", "heads", "head_dim")
        out = param(module, "out", (N, H, D), ("heads", "head_dim", "embed"), fan_in(N * H, (2 * depth) ** -0.5))
        y = linear(y, out, compute, contract=2)
        return (add_bias(module, "out_bias", y, ("norm",)) if self.bias else y), cache
