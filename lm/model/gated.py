"""Attention whose output passes a gate, as the hybrids of Qwen have it beside their linear layers."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lm.model.attention import Attention, KVCache
from lm.model.compute import Compute
from lm.model.mixer import LayerInputs, Mixer
from lm.model.parts import fan_in, matrix
from lm.model.positions import Positions
from lm.model.products import linear
from lm.sharding.tracing import constrain


@dataclass(frozen=True)
class GatedAttention(Attention):
    """`Attention` in which each number that a head has read is multiplied by the sigmoid of a gate, a product of the
    token's own x (2505.06708; Qwen3-Next)."""

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
        D, heads = x.shape[-1], ("heads", "head_dim")
        weight = matrix(module, "out_gate", (D, self.heads, self.head_dim), ("embed", *heads), fan_in(D))
        gate = checkpoint_name(constrain(linear(x, weight, compute), "batch", "seq", *heads), "query")
        y = y * jax.nn.sigmoid(gate.astype(jnp.float32)).astype(y.dtype)
        return self._out(module, "out", y, D, compute, depth), cache

    cross = Mixer.cross  # the gate is of layers that read their own row

    def products(self, width: int) -> dict[str, float]:
        plain = super().products(width)
        return {**plain, "query": 2 * plain["query"]}

    def activations(self, tensor: int = 1) -> dict[str, float]:
        plain = super().activations(tensor)
        return {**plain, "query": 2 * plain["query"]}
