"""The output decoder: from the residual stream after the last layer to logits over the vocabulary, or to scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.bounds import Count, Natural, NonNegative, Positive, Sentinel, check
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
            x = self.shifted(module, linear(x, kernel, compute))
            x = norm(module, "transform_norm", ACTIVATIONS[self.transform](x))
        if self.scale != 1:
            x = x * self.scale
        kernel = param(module, "kernel", (D, vocab), ("embed", "vocab"), fan_in(D)) if table is None else table.T
        logits = linear(x, kernel, compute).astype(jnp.float32)
        if self.bias:
            logits = add_bias(module, "bias", logits, ("vocab",))
        return self.softcap * jnp.tanh(logits / self.softcap) if self.softcap else logits

    def shifted(self, module: nn.Module, x: jax.Array) -> jax.Array:
        """What `transform` makes of x [..., D], with its bias."""
        return add_bias(module, "transform_bias", x, ("norm",))

    def next_sentence_logits(self, module: nn.Module, x: jax.Array, compute: Compute) -> jax.Array:
        """Float32 logits [B, 2] of the first tokens' x [B, 1, D]: the row's second text follows its first (0), or comes
        from elsewhere (1) (BERT, 1810.04805, section 3.1, task 2)."""
        D = x.shape[-1]
        pooler = param(module, "pooler", (D, D), ("embed", "act_embed"), fan_in(D))
        x = jnp.tanh(add_bias(module, "pooler_bias", linear(x, pooler, compute), ("norm",)))
        kernel = param(module, "next_sentence", (D, 2), ("embed", None), fan_in(D))
        logits = linear(x, kernel, compute).astype(jnp.float32)
        return add_bias(module, "next_sentence_bias", logits, (None,))[:, 0]

    @property
    def of_tokens(self) -> bool:
        """Whether the scores are of each token, and not of a text."""
        return False

    def pool(self, x: jax.Array, is_token: jax.Array) -> jax.Array:
        """Of texts x [B, T, D], padded on the right where `is_token` is false, what is scored: the last token's."""
        return _last(x, is_token)

    def token_scores(self, module: nn.Module, x: jax.Array, norm: Norm) -> jax.Array:
        """Float32 scores [..., n] of x [..., D], by a product in float32: a reward is told from another by less than
        bfloat16 has. At first they are of standard deviation 1 / sqrt(D + 1) a unit of x (2009.01325, appendix B)."""
        D = x.shape[-1]
        kernel = param(module, "score", (D, self.scores), ("embed", None), fan_in(D + 1))
        return exact(x, kernel)

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


@dataclass(frozen=True)
class Unshifted(Output):
    """An output whose `transform` has no bias (ModernBERT, 2412.13663)."""

    def shifted(self, module: nn.Module, x: jax.Array) -> jax.Array:
        return x


def exact(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D] times kernel [D, n] in float32."""
    return jnp.einsum("...d,dn->...n", x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)


def _last(x: jax.Array, is_token: jax.Array) -> jax.Array:
    return x[jnp.arange(len(x)), is_token.sum(1) - 1]


def _mean(x: jax.Array, is_token: jax.Array) -> jax.Array:
    weights = is_token[..., None].astype(jnp.float32)
    return (x.astype(jnp.float32) * weights).sum(1) / weights.sum(1)


# Of texts x [B, T, D], padded on the right where is_token [B, T] is false, what is classified.
POOLINGS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "first": lambda x, is_token: x[:, 0],  # BERT's [CLS]
    "last": _last,
    "mean": _mean,
    "token": lambda x, is_token: x,  # each token by itself
}


@dataclass(frozen=True)
class Classifier(NoOutput):
    """Scores of `scores` classes: of a text, whose states are pooled to one, or with `pooling` "token" of each of its
    tokens.

    What is classified goes through a D x D product with the activation `transform` ("": none; BERT's pooler has tanh,
    1810.04805), which has a bias unless `transform_bias` is false, with `transform_norm` through the model's norm, and
    through a product with the classes, which has one unless `bias` is false."""

    choices: ClassVar[Mapping[str, Any]] = {**Output.choices, "pooling": POOLINGS}

    bias: bool = True
    scores: Count = 2
    pooling: str = "first"
    transform_bias: bool = True
    transform_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {self.pooling!r}: {suggest(self.pooling, POOLINGS)}")

    @property
    def of_tokens(self) -> bool:
        return self.pooling == "token"

    def pool(self, x: jax.Array, is_token: jax.Array) -> jax.Array:
        return POOLINGS[self.pooling](x, is_token)

    def shifted(self, module: nn.Module, x: jax.Array) -> jax.Array:
        return super().shifted(module, x) if self.transform_bias else x

    def token_scores(self, module: nn.Module, x: jax.Array, norm: Norm) -> jax.Array:
        D = x.shape[-1]
        if self.transform:
            kernel = param(module, "transform", (D, D), ("embed", "act_embed"), fan_in(D))
            x = ACTIVATIONS[self.transform](self.shifted(module, exact(x, kernel)))
            x = norm(module, "transform_norm", x) if self.transform_norm else x
        scores = super().token_scores(module, x, norm)
        return add_bias(module, "score_bias", scores, (None,)) if self.bias else scores
