"""Attention whose values are normalised too, or are the keys; and attention that has no keys and values of its own, but
reads those of an earlier layer (cross-layer attention, 2405.12981; Gemma 3n and 4)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.bounds import Natural
from lm.model.attention import Attention, SharedKV
from lm.model.compute import Compute
from lm.model.mixer import LayerInputs, Mixer
from lm.model.parts import Norm, RMSNorm
from lm.model.positions import Positions
from lm.model.scoring import Scoring, cached
from lm.model.taps import tap


@dataclass(frozen=True)
class NormedValues(Attention):
    """`Attention` whose heads' values are normalised by `value_norm`; with `keys_are_values` they have no weights of
    their own, and are the keys as they were before `qk_norm` and positions (Gemma 4)."""

    value_norm: Norm = RMSNorm()
    keys_are_values: bool = False

    cross = Mixer.cross

    def _qkv(self, module: nn.Module, x: jax.Array, compute: Compute) -> list[jax.Array]:
        names = ("query", "key") if self.keys_are_values else ("query", "key", "value")
        q, k, *v = self._project(module, names, x, compute)
        return [q, k, self.value_norm(module, "value_norm", v[0] if v else k)]

    def products(self, width: int) -> dict[str, float]:
        plain = super().products(width)
        return {**plain, "value": 0.0} if self.keys_are_values else plain


@dataclass(frozen=True)
class SharedAttention(Attention):
    """`Attention` of queries alone: keys and values are those of the layer `source`, one of the first, as that layer
    reads them, of its own tokens and of those in its cache."""

    source: Natural = 0

    cross = Mixer.cross

    @property
    def reads_layer(self) -> int | None:
        return self.source

    def _read(
        self,
        module: nn.Module,
        x: jax.Array,
        inputs: LayerInputs,
        positions: Positions,
        cache: Any,
        compute: Compute,
    ) -> tuple[jax.Array, Any]:
        (q,) = self._project(module, ("query",), x, compute)
        q = positions.rotate(self.qk_norm(module, "query_norm", q), inputs.table, compute)
        kept, scoring = inputs.shared_kv[self.source], Scoring(inputs.mask, inputs.bias, self.softcap)
        if not kept.heads_first:
            y, _ = self._mix(module, "", (q, kept.k, kept.v), scoring, None, compute)
            return y, cache
        scoring = scoring if kept.positions is None else scoring.at(kept.positions)
        q = tap(module, "attn_query", q) * (self.scale or self.head_dim**-0.5)
        return tap(module, "attn_head", cached(q, kept.k, kept.v, scoring, compute)), cache

    def example_of_shared(self, dtype: Any) -> SharedKV:
        one = jnp.zeros((1, 1, self.kv, self.head_dim), dtype)
        return SharedKV(one, one)

    def empty_cache(self, rows: int, length: int, encoder_length: int, window: int, dtype: Any) -> Any:
        return ()

    def products(self, width: int) -> dict[str, float]:
        plain = super().products(width)
        return dict(query=plain["query"], out=plain["out"])

    def activations(self, tensor: int = 1) -> dict[str, float]:
        plain = super().activations(tensor)
        return dict(query=plain["query"], attention=plain["attention"])
