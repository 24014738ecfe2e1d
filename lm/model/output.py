"""The output decoder: from the residual stream after the last layer to logits over the vocabulary, or to scores."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.bounds import Natural, NonNegative, Positive, Sentinel, check
from lm.model.compute import Compute
from lm.model.parametrisation import Parametrisation
from lm.model.parts import ACTIVATIONS, Norm, add_bias, fan_in, param
from lm.model.products import linear
from lm.value import suggest


@dataclass(frozen=True)
class Output:
    """One product with the vocabulary. `scale` multiplies what it reads (T5 and PaLM: D^-0.5), `softcap` bends the
    logits to softcap * tanh(logits / softcap) (Gemma 2, 2408.00118), `bias` adds one a token; `transform` names the
    activation of a D x D product and norm that come before (BERT, 1810.04805). With `next_sentence` there is a second
    output, two logits a row, beside that over the vocabulary; with `scores` another, of so many numbers a token (the
    reward of a reward model, the values of a policy, the classes of a classifier)."""

    choices: ClassVar[Mapping[str, Any]] = {"transform": ("", *ACTIVATIONS)}

    scale: Positive = 1.0
    softcap: Annotated[NonNegative, Sentinel(0, "none")] = 0.0
    bias: bool = False
    transform: str = ""
    next_sentence: bool = False
    scores: Annotated[Natural, Sentinel(0, "none")] = 0

    def __post_init__(self) -> None:
        check(self, "output")
        if self.transform and self.transform not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.transform!r}: {suggest(self.transform, ACTIVATIONS)}")

    def __call__(
        self, module: nn.Module, x: jax.Array, vocab: int, table: jax.Array | None, norm: Norm, compute: Compute
    ) -> jax.Array:
        """Float32 logits [B, T, V] of x [B, T, D]; `table` [V, D] is the embedding where it is the output too."""
        D = x.shape[-1]
        if self.transform:
            kernel = param(module, "transform", (D, D), ("embed", "act_embed"), fan_in(D))
            x = add_bias(module, "transform_bias", linear(x, kernel, compute), ("norm",))
            x = norm(module, "transform_norm", ACTIVATIONS[self.transform](x))
        if self.scale != 1:
            x = x * self.scale
        kernel = param(module, "kernel", (D, vocab), ("embed", "vocab"), fan_in(D)) if table is None else table.T
        logits = linear(x, kernel, compute).astype(jnp.float32)
        if self.bias:
            logits = add_bias(module, "bias", logits, ("vocab",))
        return self.softcap * jnp.tanh(logits / self.softcap) if self.softcap else logits

    def next_sentence_logits(self, module: nn.Module, x: jax.Array, compute: Compute) -> jax.Array:
        """Float32 logits [B, 2] of the first tokens' x [B, 1, D]: the row's second text follows its first (0), or comes
        from elsewhere (1) (BERT, 1810.04805, section 3.1, task 2)."""
        D = x.shape[-1]
        pooler = param(module, "pooler", (D, D), ("embed", "act_embed"), fan_in(D))
        x = jnp.tanh(add_bias(module, "pooler_bias", linear(x, pooler, compute), ("norm",)))
        kernel = param(module, "next_sentence", (D, 2), ("embed", None), fan_in(D))
        logits = linear(x, kernel, compute).astype(jnp.float32)
        return add_bias(module, "next_sentence_bias", logits, (None,))[:, 0]

    def token_scores(self, module: nn.Module, x: jax.Array) -> jax.Array:
        """Float32 scores [..., n] of x [..., D], by a product in float32: a reward is told from another by less than
        bfloat16 has. At first they are of standard deviation 1 / sqrt(D + 1) a unit of x (2009.01325, appendix B)."""
        D = x.shape[-1]
        kernel = param(module, "score", (D, self.scores), ("embed", None), fan_in(D + 1))
        return jnp.einsum("...d,dn->...n", x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)

    def logit_count(self, vocab: int) -> int:
        """The logits a token."""
        return vocab

    def scaled(self, rule: Parametrisation, width: int, tied: bool) -> "Output":
        """The output that computes the same in the standard parametrisation."""
        return replace(self, scale=rule.output_scale(self.scale, width, tied))


@dataclass(frozen=True)
class NoOutput(Output):
    """No vocabulary at the end: the hidden states themselves, float32 [B, T, D] (a sentence encoder), or with `scores`
    those beside them (a reward model)."""

    def __call__(
        self, module: nn.Module, x: jax.Array, vocab: int, table: jax.Array | None, norm: Norm, compute: Compute
    ) -> jax.Array:
        return x.astype(jnp.float32)

    def logit_count(self, vocab: int) -> int:
        return 0

    def scaled(self, rule: Parametrisation, width: int, tied: bool) -> Output:
        return self
