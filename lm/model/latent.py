"""Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1): the keys and values of all heads are products of
one small latent a token, and a cache keeps that latent alone."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lm.bounds import Count, Natural, NonNegative, Sentinel, check
from lm.model.adapted import Weight, merged
from lm.model.cache import TokenCache
from lm.model.compute import Compute
from lm.model.context import attend
from lm.model.mixer import LayerInputs, Mixer
from lm.model.parts import Norm, RMSNorm, fan_in, matrix
from lm.model.positions import Positions
from lm.model.products import cast, linear, linears
from lm.model.scoring import Scoring, cached, plain, product
from lm.model.taps import tap, tap_pattern
from lm.sharding.tracing import constrain

HEADS = ("batch", "seq", "heads", "head_dim")
LATENT = ("batch", "seq", None)


@dataclass(frozen=True)
class LatentAttention(Mixer):
    """Attention of `heads` heads whose keys and values are products of a latent of `kv_lora_rank` numbers a token; with
    `q_lora_rank` above 0 the queries are products of a latent of their own.

    A head's queries and keys have `qk_nope_head_dim` numbers without a position and `qk_rope_head_dim` that positions
    rotate, which all heads' keys share; its values have `v_head_dim`. `norm` normalises the latents; logits are q k
    times `scale` (0: (qk_nope_head_dim + qk_rope_head_dim)^-0.5)."""

    heads: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    kv_lora_rank: Count
    q_lora_rank: Annotated[Natural, Sentinel(0, "queries have no latent")] = 0
    norm: Norm = RMSNorm()
    scale: Annotated[NonNegative, Sentinel(0, "(qk_nope_head_dim + qk_rope_head_dim)^-0.5")] = 0.0

    def __post_init__(self) -> None:
        check(self, "attention")
        if self.qk_rope_head_dim % 2:
            odd = self.qk_rope_head_dim
            raise ValueError(f"attention.qk_rope_head_dim={odd} is odd: positions rotate pairs, try {odd + 1}")

    @property
    def qk_head_dim(self) -> int:
        """The size of a head's queries and keys."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def __call__(
        self,
        module: nn.Module,
        x: jax.Array,
        inputs: LayerInputs,
        positions: Positions,
        cache: TokenCache | None,
        compute: Compute,
        depth: int,
    ) -> tuple[jax.Array, TokenCache | None]:
        q, latent = self._project(module, x, inputs, positions, compute)
        q = tap(module, "attn_query", q)
        sizes = dict(key=self.qk_nope_head_dim, value=self.v_head_dim)
        up = [self._up(module, name, self.kv_lora_rank, "rank", size) for name, size in sizes.items()]
        scoring = Scoring(inputs.mask, inputs.bias)
        if cache is None or isinstance(inputs.mask.offset, int):  # the first tokens of all rows read no cache
            k, v = self._expand(latent, up, compute)
            k, v = tap(module, "attn_key", k), tap(module, "attn_value", v)
            y = tap_pattern(module, "", attend(q, k, v, scoring, compute), (q, k, v), scoring, compute)
            cache = None if cache is None else cache.write((latent,), inputs.mask)
        else:
            (kept,), scoring, cache = cache.read((latent,), scoring)
            if self.absorbs(x.shape[1]):
                y = self._absorbed(q, kept, up, scoring, compute)
            else:
                y = plain(q, *self._expand(kept.transpose(0, 2, 1, 3), up, compute), scoring, compute)
        return self._out(module, tap(module, "attn_head", y), x.shape[-1], compute, depth), cache

    def absorbs(self, queries: int) -> bool:
        """Whether so many queries behind a cache read latents, with the up-projections absorbed in queries and outputs
        (section 2.1.2), and not keys and values, which are computed again of every token in the cache.

        One query is bound by bytes. Absorbed, it reads the latents twice, for logits and values; expanded, the keys and
        values of all heads are written and read too: at DeepSeek-V2-Lite's sizes 1,152 numbers a token in the cache
        against 10,816. Many queries are bound by FLOPs, and a latent is longer than a head's key and value: from the
        number on at which that costs as much as the expansion (171 there) keys and values are computed."""
        head = self.qk_nope_head_dim + self.v_head_dim
        return queries * (2 * self.kv_lora_rank - head) < self.kv_lora_rank * head

    def _up(self, module: nn.Module, name: str, inputs: int, axis: str, size: int) -> Weight:
        return matrix(module, name, (inputs, self.heads, size), (axis, "heads", "head_dim"), fan_in(inputs))

    def _project(
        self, module: nn.Module, x: jax.Array, inputs: LayerInputs, positions: Positions, compute: Compute
    ) -> tuple[jax.Array, jax.Array]:
        """Of x [B, T, D] the queries [B, T, N, H], scaled, and what a cache keeps, [B, T, 1, kv_lora_rank + H of the
        rotated part]: the latent and the rotated key, side by side."""
        D, R = x.shape[-1], self.q_lora_rank
        source = (R, "rank") if R else (D, "embed")
        sizes = dict(query=self.qk_nope_head_dim, query_rope=self.qk_rope_head_dim)
        query = [self._up(module, name, *source, size) for name, size in sizes.items()]
        down = [
            matrix(module, "kv_down", (D, self.kv_lora_rank), ("embed", "rank"), fan_in(D)),
            matrix(module, "key_rope", (D, self.qk_rope_head_dim), ("embed", "head_dim"), fan_in(D)),
        ]
        first = [matrix(module, "query_down", (D, R), ("embed", "rank"), fan_in(D))] if R else query
        *qs, latent, k = linears(x, [*first, *down], compute)
        if R:
            low = checkpoint_name(constrain(qs[0], *LATENT), "query")
            qs = linears(self.norm(module, "query_norm", low), query, compute)
        nope, q = (checkpoint_name(constrain(a, *HEADS), "query") for a in qs)
        latent, k = (checkpoint_name(constrain(a, *LATENT), "key") for a in (latent, k))
        latent = self.norm(module, "kv_norm", latent)
        q, k = (positions.rotate(a, inputs.table, compute) for a in (q, k[:, :, None]))
        scale = self.scale or self.qk_head_dim**-0.5
        return jnp.concatenate([nope, q], -1) * scale, jnp.concatenate([latent[:, :, None], k], -1)

    def _expand(self, latent: jax.Array, up: list[Weight], compute: Compute) -> tuple[jax.Array, jax.Array]:
        """The keys [B, S, N, H] and values [B, S, N, Hv] of what a cache keeps, [B, S, 1, ...]."""
        latent, rope = jnp.split(latent, [self.kv_lora_rank], axis=-1)
        parts = zip(("key", "value"), linears(latent[:, :, 0], up, compute), strict=True)
        k, v = (checkpoint_name(constrain(a, *HEADS), name) for name, a in parts)
        rope = jnp.broadcast_to(rope, (*k.shape[:3], self.qk_rope_head_dim))
        return jnp.concatenate([k, rope], -1), v

    def _absorbed(
        self, q: jax.Array, kept: jax.Array, up: list[Weight], scoring: Scoring, compute: Compute
    ) -> jax.Array:
        """What queries q [B, T, N, H] read, [B, T, N, Hv], of what a cache keeps, [B, 1, S, ...]: one head that is key
        and value to all, since q (latent Wk) = (q Wk) latent and p (latent Wv) = (p latent) Wv. The rotated key is read
        with the values and dropped: a slice of the cache would be a copy."""
        key, value = (cast(merged(w), compute.matmul, compute) for w in up)
        nope, rope = jnp.split(q, [self.qk_nope_head_dim], axis=-1)
        nope = product("btnh,cnh->btnc", nope.astype(compute.matmul), key).astype(compute.dtype)
        y = cached(jnp.concatenate([nope, rope], -1), kept, kept, scoring, compute)[..., : self.kv_lora_rank]
        return product("btnc,cnh->btnh", y.astype(compute.matmul), value).astype(compute.dtype)

    def _out(self, module: nn.Module, y: jax.Array, D: int, compute: Compute, depth: int) -> jax.Array:
        N, H = y.shape[2:]
        out = matrix(module, "out", (N, H, D), ("heads", "head_dim", "embed"), fan_in(N * H, (2 * depth) ** -0.5))
        return checkpoint_name(linear(constrain(y, *HEADS), out, compute, contract=2, back=True), "out")

    # ---------------------------------------------------------------- what others ask

    def empty_cache(self, rows: int, length: int, encoder_length: int, window: int, dtype: Any) -> TokenCache:
        return TokenCache.empty(rows, length, window, [(1, self.kv_lora_rank + self.qk_rope_head_dim)], dtype)

    def flops(self, keys: float) -> float:
        return 2 * self.heads * (self.qk_head_dim + self.v_head_dim) * keys

    def products(self, width: int) -> dict[str, float]:
        N, C, R = self.heads, self.kv_lora_rank, self.q_lora_rank
        query = width * R + R * N * self.qk_head_dim if R else width * N * self.qk_head_dim
        key = width * (C + self.qk_rope_head_dim) + C * N * self.qk_nope_head_dim
        weights = dict(query=query, key=key, value=C * N * self.v_head_dim, out=N * self.v_head_dim * width)
        return {name: 2.0 * size for name, size in weights.items()}

    def activations(self, tensor: int = 1) -> dict[str, float]:
        heads = self.heads / tensor
        key = heads * self.qk_nope_head_dim + self.kv_lora_rank + self.qk_rope_head_dim
        value = heads * self.v_head_dim
        return dict(query=heads * self.qk_head_dim + self.q_lora_rank, key=key, value=value, attention=value)

    def sizes(self) -> dict[str, tuple[str, int]]:
        ranks = dict(kv_lora_rank=self.kv_lora_rank, q_lora_rank=self.q_lora_rank)
        return {"heads": ("heads", self.heads)} | {name: ("rank", n) for name, n in ranks.items() if n}

    @property
    def rotary_dim(self) -> int:
        return self.qk_rope_head_dim

    def check(self, positions: Positions) -> None:
        positions.check(self.qk_rope_head_dim)
