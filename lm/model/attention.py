"""Attention: its heads (`Attention`), and what it remembers while decoding (`Cache`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lm.model.compute import Compute
from lm.model.context import attend
from lm.model.parts import Norm, add_bias, fan_in, param, zeros
from lm.model.positions import Positions
from lm.model.products import linear, linears
from lm.model.scoring import Mask, Scoring
from lm.sharding.tracing import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The keys and values of one layer, [B, S, K, H] each, and in a decoder with an encoder those of its output; a
    stack of layers has a leading axis, and is scanned with them."""

    k: jax.Array
    v: jax.Array
    memory_k: jax.Array | None = None
    memory_v: jax.Array | None = None

    def write(self, k: jax.Array, v: jax.Array, offset: jax.Array | int) -> "Cache":
        """This cache with k and v [B, T, K, H] at `offset`."""

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), offset, axis=1)

        return replace(self, k=put(self.k, k), v=put(self.v, v))


@dataclass(frozen=True)
class Attention:
    """Attention of `heads` query heads over `kv_heads` key and value heads (0: as many) of size `head_dim`: MHA
    (1706.03762), GQA (2305.13245) and, with one kv head, MQA (1911.02150).

    `bias` adds one to the projections, `out_bias` also to the last; `qk_norm` normalises each head's queries and keys
    before they are turned (2302.05442); logits are q k times `scale` (0: H^-0.5), bent to within `cap` (0: as they are;
    Gemma 2, 2408.00118); `sinks` gives each head a learned logit for looking at nothing (gpt-oss)."""

    heads: int
    head_dim: int
    kv_heads: int = 0
    bias: bool = False
    out_bias: bool = True
    qk_norm: Norm = Norm()
    scale: float = 0.0
    cap: float = 0.0
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1 or self.head_dim < 1:
            raise ValueError(f"attention.heads={self.heads}, head_dim={self.head_dim}: expected at least 1 of each")
        if self.kv_heads < 0 or self.heads % self.kv:
            divisors = [d for d in range(1, self.heads + 1) if self.heads % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - self.kv_heads))[:2])
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: try {' or '.join(map(str, near))}"
            )
        if self.cap < 0 or self.scale < 0:
            raise ValueError(f"attention.cap={self.cap}, scale={self.scale}: expected numbers above 0, or 0 for none")

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
        q, k, v = self._project(module, ("query", "key", "value"), x, compute)
        q = positions.rotate(self.qk_norm(module, "query_norm", q), table)
        k = positions.rotate(self.qk_norm(module, "key_norm", k), table)
        if cache is not None:
            cache = cache.write(k, v, mask.offset)
            k, v = cache.k, cache.v
        sinks = param(module, "sinks", (self.heads,), ("heads",), zeros) if self.sinks else None
        scoring = Scoring(mask, bias, self.cap, sinks)
        return self._attend(module, "out", x.shape[-1], q, k, v, scoring, compute, depth), cache

    def cross(
        self,
        module: nn.Module,
        x: jax.Array,
        memory: jax.Array | None,
        mask: Mask,
        cache: Cache | None,
        compute: Compute,
        depth: int,
    ) -> tuple[jax.Array, Cache | None]:
        """x [B, T, D] looking at the encoder's output `memory` [B, S, D], or, where that is None, at the keys and
        values of it that an earlier call left in the cache. Its parameters begin with cross_."""
        (q,) = self._project(module, ("cross_query",), x, compute)
        if memory is not None:
            k, v = self._project(module, ("cross_key", "cross_value"), memory, compute)
            cache = None if cache is None else replace(cache, memory_k=k, memory_v=v)
        else:
            assert cache is not None and cache.memory_k is not None and cache.memory_v is not None
            k, v = cache.memory_k, cache.memory_v
        scoring = Scoring(mask, cap=self.cap)
        return self._attend(module, "cross_out", x.shape[-1], q, k, v, scoring, compute, depth), cache

    def _project(self, module: nn.Module, names: Sequence[str], x: jax.Array, compute: Compute) -> list[jax.Array]:
        """x [B, T, D] times the weights `names`: [B, T, N or K, H] each."""
        D, H = x.shape[-1], self.head_dim
        kinds = [(name, self.heads, "heads") if "query" in name else (name, self.kv, "kv_heads") for name in names]
        weights = [param(module, name, (D, n, H), ("embed", axis, "head_dim"), fan_in(D)) for name, n, axis in kinds]
        ys = linears(x, weights, compute)
        if self.bias:
            ys = [
                add_bias(module, f"{name}_bias", y, (axis, "head_dim"))
                for (name, _, axis), y in zip(kinds, ys, strict=True)
            ]
        return [
            checkpoint_name(constrain(y, "batch", "seq", axis, "head_dim"), name.removeprefix("cross_"))
            for (name, _, axis), y in zip(kinds, ys, strict=True)
        ]

    def _attend(
        self,
        module: nn.Module,
        name: str,
        D: int,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        scoring: Scoring,
        compute: Compute,
        depth: int,
    ) -> jax.Array:
        """[B, T, D] from q [B, T, N, H], k and v [B, S, K, H], with the output weights `name`."""
        N, H = q.shape[2:]
        y = attend(q * (self.scale or H**-0.5), k, v, scoring, compute)
        y = constrain(y, "batch", "seq", "heads", "head_dim")
        out = param(module, name, (N, H, D), ("heads", "head_dim", "embed"), fan_in(N * H, (2 * depth) ** -0.5))
        y = linear(y, out, compute, contract=2, back=True)
        y = add_bias(module, f"{name}_bias", y, ("norm",)) if self.bias and self.out_bias else y
        return checkpoint_name(y, "out")
