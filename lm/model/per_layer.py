"""Per-layer embeddings (Gemma 3n and 4): each layer is given a small vector of each token beside the residual stream,
of a table of its own and of the token's embedding, and has a branch that reads it.

The table is large and its rows are small: P numbers a layer and token, where the residual stream has D.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import linen as nn

from lm.bounds import Count, check
from lm.model.compute import Compute
from lm.model.parts import ACTIVATIONS, Norm, fan_in, matrix, normal, param
from lm.model.products import linear, look_up
from lm.model.wiring import ScaledSandwich
from lm.sharding.tracing import constrain
from lm.value import suggest


@dataclass(frozen=True)
class PerLayerEmbedding(ScaledSandwich):
    """`ScaledSandwich` with a third branch: x + norm(out(act(gate(x)) * e)), where e [B, T, P] is what this layer is
    given of the tokens, of `size` P."""

    choices: ClassVar = {"activation": ACTIVATIONS}

    size: Count = 256
    activation: str = "gelu_tanh"

    def __post_init__(self) -> None:
        check(self, "wiring")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.activation!r}: {suggest(self.activation, ACTIVATIONS)}")

    @property
    def token_size(self) -> int:
        return self.size

    def stem_products(self, width: int, layers: int) -> float:
        return 2.0 * width * layers * self.size

    def token_inputs(
        self, module: nn.Module, tokens: jax.Array, x: jax.Array, vocab: int, layers: int, norm: Norm, compute: Compute
    ) -> jax.Array | None:
        (B, T), D, P = tokens.shape, x.shape[-1], self.size
        axes = ("embed", None, "head_dim")
        weight = matrix(module, "per_layer_projection", (D, layers, P), axes, fan_in(D))
        projected = norm(module, "per_layer_norm", linear(x, weight, compute) * D**-0.5)
        table = param(module, "per_layer_tokens", (vocab, layers * P), ("vocab", "embed"), normal(P**-0.5))
        own = look_up(table, tokens, x.dtype).reshape(B, T, layers, P) * P**0.5
        return ((projected + own) * 2**-0.5).transpose(2, 0, 1, 3)

    def token_branch(self, module: nn.Module, x: jax.Array, own: jax.Array, compute: Compute) -> jax.Array:
        D, P = x.shape[-1], self.size
        gate = matrix(module, "per_layer_gate", (D, P), ("embed", "head_dim"), fan_in(D))
        hidden = ACTIVATIONS[self.activation](linear(x, gate, compute)) * own
        out = matrix(module, "per_layer_out", (P, D), ("head_dim", "embed"), fan_in(P))
        return linear(constrain(hidden, "batch", "seq", "head_dim"), out, compute, back=True)
