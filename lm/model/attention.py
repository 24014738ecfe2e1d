"""Attention: its heads (`Attention`), and the keys and values that it keeps while decoding (`KVCache`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lm.model.compute import Compute
from lm.model.context import attend
from lm.model.inputs import EncoderOutput
from lm.model.mixer import LayerInputs, Mixer, Rule
from lm.model.parts import Norm, add_bias, fan_in, param, zeros
from lm.model.positions import Positions
from lm.model.products import linear, linears
from lm.model.scoring import Mask, Scoring, cached
from lm.sharding.tracing import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """The keys k [B, K, S, H] and values v [B, K, S, Hv] of one layer, heads first, and in a decoder with an encoder
    those of its output. Token p of a row is at place p, or in a `ring` at p mod S: a windowed layer keeps its last S
    tokens."""

    k: jax.Array
    v: jax.Array
    cross_k: jax.Array | None = None
    cross_v: jax.Array | None = None
    ring: bool = field(default=False, metadata=dict(static=True))

    @property
    def size(self) -> int:
        """S, the places of a row."""
        return self.k.shape[2]

    def positions(self, length: jax.Array) -> jax.Array:
        """The tokens [B, S] at each place, of rows of `length` [B] tokens; negative where there is none yet."""
        last = length[:, None] - 1
        return last - (last - jnp.arange(self.size)) % self.size

    def write(self, k: jax.Array, v: jax.Array, mask: Mask) -> "KVCache":
        """This cache with k and v [B, T, K, H] behind the mask's offset; padding is on the right."""
        T, offset = k.shape[1], mask.offset
        new = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        if isinstance(offset, int) and T <= self.size:
            places: Any = (slice(None), slice(None), slice(offset, offset + T))
        elif T == 1 or not self.ring:
            rows, at = jnp.arange(k.shape[0])[:, None], _by_row(offset, k.shape[0])[:, None] + jnp.arange(T)
            places = rows, slice(None), at % self.size if self.ring else at  # padding beyond the end is dropped
            new = k, v  # indexed by two arrays apart, the places come first: [B, T, K, H]
        else:
            return self._roll(new, offset, mask)
        k, v = (old.at[places].set(a.astype(old.dtype)) for old, a in zip((self.k, self.v), new, strict=True))
        return replace(self, k=k, v=v)

    def _roll(self, new: tuple[jax.Array, jax.Array], offset: jax.Array | int, mask: Mask) -> "KVCache":
        """The last of what is kept and `new` [B, K, T, H], where several tokens may share a place."""
        start = _by_row(offset, new[0].shape[0])
        wanted = self.positions(start + _real(mask, new[0].shape[2], len(start))) - start[:, None]  # [B, S]
        at = jnp.clip(wanted, 0)[:, None, :, None]
        k, v = (
            jnp.where((wanted >= 0)[:, None, :, None], jnp.take_along_axis(a.astype(old.dtype), at, axis=2), old)
            for old, a in zip((self.k, self.v), new, strict=True)
        )
        return replace(self, k=k, v=v)

    def attend(
        self, q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute
    ) -> tuple[jax.Array, "KVCache"]:
        """Queries q [B, T, N, H] (scaled already) read this cache and the new k and v [B, T, K, H], which come behind
        it: [B, T, N, Hv], and the cache with them."""
        mask, new = scoring.mask, self.write(k, v, scoring.mask)
        if not self.ring:
            return cached(q, new.k, new.v, scoring, compute), new
        offset, T = _by_row(mask.offset, q.shape[0]), q.shape[1]
        if T == 1:
            return cached(q, new.k, new.v, scoring.at(new.positions(offset + 1)), compute), new
        after = offset[:, None] + jnp.arange(T)
        positions = jnp.concatenate([self.positions(offset), after], axis=1)
        k, v = (
            jnp.concatenate([old, a.transpose(0, 2, 1, 3).astype(old.dtype)], axis=2)
            for old, a in ((self.k, k), (self.v, v))
        )
        return cached(q, k, v, scoring.at(positions), compute), new


def _by_row(offset: jax.Array | int, rows: int) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(offset, jnp.int32), (rows,))


def _real(mask: Mask, T: int, rows: int) -> jax.Array:
    """How many of T tokens are no padding, [B]."""
    segments = mask.query_segments
    return jnp.full((rows,), T) if segments is None else (segments > 0).sum(1)


@dataclass(frozen=True)
class Attention(Mixer):
    """Attention of `heads` query heads over `kv_heads` key and value heads (0: as many) of size `head_dim`: MHA
    (1706.03762), GQA (2305.13245) and, with one kv head, MQA (1911.02150).

    `bias` adds one to the projections, `out_bias` also to the last; `qk_norm` normalises each head's queries and keys
    before they are rotated (2302.05442); logits are q k times `scale` (0: H^-0.5), bent to within `softcap` (0: as they
    are; Gemma 2, 2408.00118); `sinks` gives each head a learned logit for looking at nothing (gpt-oss)."""

    heads: int
    head_dim: int
    kv_heads: int = 0
    bias: bool = False
    out_bias: bool = True
    qk_norm: Norm = Norm()
    scale: float = 0.0
    softcap: float = 0.0
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
        if self.softcap < 0 or self.scale < 0:
            raise ValueError(f"attention.softcap={self.softcap}, scale={self.scale}: expected 0 (none) or more")

    @property
    def kv(self) -> int:
        """K, the number of key and value heads."""
        return self.kv_heads or self.heads

    def __call__(
        self,
        module: nn.Module,
        x: jax.Array,
        inputs: LayerInputs,
        positions: Positions,
        cache: KVCache | None,
        compute: Compute,
        depth: int,
    ) -> tuple[jax.Array, KVCache | None]:
        q, k, v = self._project(module, ("query", "key", "value"), x, compute)
        q = positions.rotate(self.qk_norm(module, "query_norm", q), inputs.table, compute)
        k = positions.rotate(self.qk_norm(module, "key_norm", k), inputs.table, compute)
        sinks = param(module, "sinks", (self.heads,), ("heads",), zeros) if self.sinks else None
        scoring = Scoring(inputs.mask, inputs.bias, self.softcap, sinks)
        y, cache = self._mix(q, k, v, scoring, cache, compute)
        return self._out(module, "out", y, x.shape[-1], compute, depth), cache

    def cross(
        self,
        module: nn.Module,
        x: jax.Array,
        encoder: EncoderOutput,
        cache: KVCache | None,
        compute: Compute,
        depth: int,
    ) -> tuple[jax.Array, KVCache | None]:
        """x [B, T, D] reading the encoder's output, or the keys and values of it that an earlier call left in the
        cache. The parameters begin with cross_."""
        (q,) = self._project(module, ("cross_query",), x, compute)
        if encoder.x is not None:
            k, v = self._project(module, ("cross_key", "cross_value"), encoder.x, compute)
            cache = None if cache is None else replace(cache, cross_k=k, cross_v=v)
        else:
            assert cache is not None and cache.cross_k is not None and cache.cross_v is not None
            k, v = cache.cross_k, cache.cross_v
        y, _ = self._mix(q, k, v, Scoring(encoder.mask, softcap=self.softcap), None, compute)
        return self._out(module, "cross_out", y, x.shape[-1], compute, depth), cache

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

    def _mix(
        self, q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, cache: KVCache | None, compute: Compute
    ) -> tuple[jax.Array, KVCache | None]:
        """The values that queries q [B, T, N, H] read, [B, T, N, H], of k and v [B, S, K, H] behind those in the cache;
        the first tokens of all rows read no cache."""
        q = q * (self.scale or self.head_dim**-0.5)
        if cache is not None and not isinstance(scoring.mask.offset, int):
            return cache.attend(q, k, v, scoring, compute)
        y = attend(q, k, v, scoring, compute)
        return y, None if cache is None else cache.write(k, v, scoring.mask)

    def _out(self, module: nn.Module, name: str, y: jax.Array, D: int, compute: Compute, depth: int) -> jax.Array:
        """[B, T, D] from what the heads read, y [B, T, N, H], with the output weights `name`."""
        N, H = y.shape[2:]
        y = constrain(y, "batch", "seq", "heads", "head_dim")
        out = param(module, name, (N, H, D), ("heads", "head_dim", "embed"), fan_in(N * H, (2 * depth) ** -0.5))
        y = linear(y, out, compute, contract=2, back=True)
        y = add_bias(module, f"{name}_bias", y, ("norm",)) if self.bias and self.out_bias else y
        return checkpoint_name(y, "out")

    # ---------------------------------------------------------------- what others ask

    def empty_cache(self, rows: int, length: int, encoder_length: int, window: int, dtype: Any) -> KVCache:
        room = jnp.zeros((rows, self.kv, min(length, window or length), self.head_dim), dtype)
        cross = jnp.zeros((rows, encoder_length, self.kv, self.head_dim), dtype) if encoder_length else None
        return KVCache(room, room, cross, cross, ring=0 < window < length)

    def flops(self, keys: float) -> float:
        return 4 * self.heads * self.head_dim * keys

    def products(self, width: int) -> dict[str, float]:
        query, key = (2.0 * width * n * self.head_dim for n in (self.heads, self.kv))
        return dict(query=query, key=key, value=key, out=query)

    def activations(self, tensor: int = 1) -> dict[str, float]:
        query, key = self.heads * self.head_dim / tensor, float(max(self.kv // tensor, 1) * self.head_dim)
        return dict(query=query, key=key, value=key, attention=query)

    def sizes(self) -> dict[str, tuple[str, int]]:
        return {"heads": ("heads", self.heads), "kv_heads": ("kv_heads", self.kv)}

    @property
    def rotary_dim(self) -> int:
        return self.head_dim

    def check(self, positions: Positions) -> None:
        positions.check(self.head_dim)

    def scaled(self, rule: Rule) -> "Attention":
        return replace(self, scale=rule.attention_scale(self.scale, self.head_dim))
