"""Attention: its heads (`Attention`), and the keys and values that it keeps while decoding (`KVCache`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lm.bounds import Count, Natural, NonNegative, Sentinel, check
from lm.model.cache import TokenCache
from lm.model.compute import Compute
from lm.model.context import attend
from lm.model.inputs import EncoderOutput
from lm.model.mixer import LayerInputs, Mixer, Rule
from lm.model.parts import Norm, add_bias, fan_in, matrix, param, zeros
from lm.model.positions import Positions
from lm.model.products import linear, linears
from lm.model.scoring import Scoring, accelerated, cached, cached_before
from lm.model.taps import CROSS, tap, tap_pattern, watches_pattern
from lm.sharding.tracing import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache(TokenCache):
    """The keys [B, K, S, H] and values [B, K, S, Hv] of one layer, and in a decoder with an encoder those of its output
    [B, S, K, H]."""

    cross_k: jax.Array | None = None
    cross_v: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SharedKV:
    """What a layer leaves to later ones that have no keys and values of their own: those that it read in this call, k
    [B, S, K, H] and v [B, S, K, Hv], or with `heads_first` [B, K, S, ...] as its cache has them, at `positions`
    [B, S] (None: in their order)."""

    k: jax.Array
    v: jax.Array
    positions: jax.Array | None = None
    heads_first: bool = field(default=False, metadata=dict(static=True))


@dataclass(frozen=True)
class Attention(Mixer):
    """Attention of `heads` query heads over `kv_heads` key and value heads (0: as many) of size `head_dim`: MHA
    (1706.03762), GQA (2305.13245) and, with one kv head, MQA (1911.02150).

    `bias` adds one to the projections, `out_bias` also to the last; `qk_norm` normalises each head's queries and keys
    before they are rotated (2302.05442); logits are q k times `scale` (0: H^-0.5), bent to within `softcap` (0: as they
    are; Gemma 2, 2408.00118); `sinks` gives each head a learned logit for looking at nothing (gpt-oss)."""

    heads: Count
    head_dim: Count
    kv_heads: Annotated[Natural, Sentinel(0, "as many as heads")] = 0
    bias: bool = False
    out_bias: bool = True
    qk_norm: Norm = Norm()
    scale: Annotated[NonNegative, Sentinel(0, "head_dim^-0.5")] = 0.0
    softcap: Annotated[NonNegative, Sentinel(0, "none")] = 0.0
    sinks: bool = False

    def __post_init__(self) -> None:
        check(self, "attention")
        if self.heads % self.kv:
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
        inputs: LayerInputs,
        positions: Positions,
        cache: KVCache | None,
        compute: Compute,
        depth: int,
    ) -> tuple[jax.Array, KVCache | None]:
        y, cache = self._read(module, x, inputs, positions, cache, compute)
        return self._out(module, "out", y, x.shape[-1], compute, depth), cache

    def _read(
        self,
        module: nn.Module,
        x: jax.Array,
        inputs: LayerInputs,
        positions: Positions,
        cache: KVCache | None,
        compute: Compute,
    ) -> tuple[jax.Array, KVCache | None]:
        """What the heads read, [B, T, N, H]; arguments as of a mixer."""
        q, k, v = self._qkv(module, x, compute)
        q = positions.rotate(self.qk_norm(module, "query_norm", q), inputs.table, compute)
        k = positions.rotate(self.qk_norm(module, "key_norm", k), inputs.table, compute)
        sinks = param(module, "sinks", (self.heads,), ("heads",), zeros) if self.sinks else None
        scoring = Scoring(inputs.mask, inputs.bias, self.softcap, sinks)
        return self._mix(module, "", (q, k, v), scoring, cache, compute, inputs.keeps)

    def _qkv(self, module: nn.Module, x: jax.Array, compute: Compute) -> list[jax.Array]:
        """Queries, keys and values of x [B, T, D], before norms of the first two and positions."""
        return self._project(module, ("query", "key", "value"), x, compute)

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
        scoring = Scoring(encoder.mask, softcap=self.softcap)
        y, _ = self._mix(module, CROSS, (q, k, v), scoring, None, compute)
        return self._out(module, "cross_out", y, x.shape[-1], compute, depth), cache

    def _project(self, module: nn.Module, names: Sequence[str], x: jax.Array, compute: Compute) -> list[jax.Array]:
        """x [B, T, D] times the weights `names`: [B, T, N or K, H] each."""
        D, H = x.shape[-1], self.head_dim
        kinds = [(name, self.heads, "heads") if "query" in name else (name, self.kv, "kv_heads") for name in names]
        weights = [matrix(module, name, (D, n, H), ("embed", axis, "head_dim"), fan_in(D)) for name, n, axis in kinds]
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
        self,
        module: nn.Module,
        prefix: str,
        arrays: Sequence[jax.Array],
        scoring: Scoring,
        cache: KVCache | None,
        compute: Compute,
        keeps: bool = False,
    ) -> tuple[jax.Array, KVCache | None]:
        """The values that queries q [B, T, N, H] read, [B, T, N, H], of k and v [B, S, K, H] behind those in the cache;
        the first tokens of all rows read no cache. `prefix` begins the names of its taps; with `keeps` a SharedKV is
        left to later layers."""
        q, k, v = (tap(module, f"{prefix}attn_{n}", a) for n, a in zip(("query", "key", "value"), arrays, strict=True))
        q = q * (self.scale or self.head_dim**-0.5)
        if cache is not None and not isinstance(scoring.mask.offset, int):
            whole = scoring.bias is not None or any(watches_pattern(module, prefix))
            if accelerated(compute, q.shape[1]) and not whole and not keeps:
                kept, new, scorings, cache = cache.read_before((k, v), scoring)
                y = cached_before(q, kept, new, scorings, compute)  # type: ignore[arg-type]
            else:
                (k, v), scoring, cache = cache.read((k, v), scoring)
                leave(module, SharedKV(k, v, scoring.mask.key_positions, heads_first=True), keeps)
                y = cached(q, k, v, scoring, compute)
                k, v = (a.transpose(0, 2, 1, 3) for a in (k, v))
        else:
            leave(module, SharedKV(k, v), keeps)
            y = attend(q, k, v, scoring, compute)
            cache = None if cache is None else cache.write((k, v), scoring.mask)
        y = tap_pattern(module, prefix, y, (q, k, v), scoring, compute)
        return tap(module, f"{prefix}attn_head", y), cache

    def _out(self, module: nn.Module, name: str, y: jax.Array, D: int, compute: Compute, depth: int) -> jax.Array:
        """[B, T, D] from what the heads read, y [B, T, N, H], with the output weights `name`."""
        N, H = y.shape[2:]
        y = constrain(y, "batch", "seq", "heads", "head_dim")
        out = matrix(module, name, (N, H, D), ("heads", "head_dim", "embed"), fan_in(N * H, (2 * depth) ** -0.5))
        y = linear(y, out, compute, contract=2, back=True)
        y = add_bias(module, f"{name}_bias", y, ("norm",)) if self.bias and self.out_bias else y
        return checkpoint_name(y, "out")

    # ---------------------------------------------------------------- what others ask

    def empty_cache(self, rows: int, length: int, encoder_length: int, window: int, dtype: Any) -> KVCache:
        cross = jnp.zeros((rows, encoder_length, self.kv, self.head_dim), dtype) if encoder_length else None
        sizes = [(self.kv, self.head_dim)] * 2
        return KVCache.empty(rows, length, window, sizes, dtype, cross_k=cross, cross_v=cross)

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


def leave(module: nn.Module, kept: SharedKV, keeps: bool) -> None:
    """Hand `kept` to the stack, which gives it to the layers that read it."""
    if keeps:
        module.sow("shared_kv", "kv", kept, reduce_fn=lambda _, new: new, init_fn=lambda: None)
