"""Residual wiring: how the sublayers of a layer (attention, cross-attention, feed-forward) join the residual stream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
from flax import linen as nn

from lm.bounds import Positive, check
from lm.model.compute import Compute
from lm.model.parts import Norm, ones, param
from lm.model.taps import tap
from lm.value import late

Sublayer = Callable[[jax.Array], jax.Array]
OUTPUTS = {"attention": "attn_out", "cross": "cross_attn_out", "ffn": "mlp_out"}  # sublayer -> the tap of its output
AFTER = {"attention": "resid_mid", "cross": "resid_cross", "ffn": "resid_post"}  # and of the residual stream behind it


@dataclass(frozen=True)
class Wiring:
    """No wiring but composition; the base class and contract of all."""

    @property
    def branch_scale(self) -> float:
        """By what a branch's output is multiplied before it joins the residual stream."""
        return 1.0

    def __call__(self, module: nn.Module, norm: Norm, x: jax.Array, sublayers: Mapping[str, Sublayer]) -> jax.Array:
        """x [B, T, D] through the named sublayers, in their order."""
        for name, sublayer in sublayers.items():
            x = tap(module, AFTER[name], tap(module, OUTPUTS[name], sublayer(x)))
        return x

    def final(self, module: nn.Module, norm: Norm, x: jax.Array) -> jax.Array:
        """x after the last layer, as the head wants it."""
        return norm(module, "norm", x)

    @property
    def token_size(self) -> int:
        """P, the numbers that each layer is given of a token beside the residual stream; 0: none."""
        return 0

    def token_inputs(
        self, module: nn.Module, tokens: jax.Array, x: jax.Array, vocab: int, layers: int, norm: Norm, compute: Compute
    ) -> jax.Array | None:
        """Of tokens [B, T] and their embedding x [B, T, D] what each layer is given of them, [L, B, T, P]; None for
        nothing. Arguments as of the model."""
        return None

    def token_branch(self, module: nn.Module, x: jax.Array, own: jax.Array, compute: Compute) -> jax.Array:
        """What the residual stream x [B, T, D] gets of what this layer is given, `own` [B, T, P]."""
        raise AssertionError("a layer that is given nothing of its tokens")

    def stem_products(self, width: int, layers: int) -> float:
        """Forward FLOPs a token of `token_inputs`."""
        return 0.0


@dataclass(frozen=True)
class PreNorm(Wiring):
    """x + f(norm(x)) (GPT-2, 2002.04745)."""

    def __call__(self, module: nn.Module, norm: Norm, x: jax.Array, sublayers: Mapping[str, Sublayer]) -> jax.Array:
        for name, sublayer in sublayers.items():
            y = tap(module, OUTPUTS[name], sublayer(norm(module, f"{name}_norm", x)))
            x = tap(module, AFTER[name], x + y)
        return x


@dataclass(frozen=True)
class ScaledPreNorm(PreNorm):
    """x + scale * f(norm(x)): residual branches of another size (Granite's residual_multiplier)."""

    scale: Positive = 1.0

    def __post_init__(self) -> None:
        check(self, "wiring")

    def __call__(self, module: nn.Module, norm: Norm, x: jax.Array, sublayers: Mapping[str, Sublayer]) -> jax.Array:
        return super().__call__(module, norm, x, {name: self._scaled(f) for name, f in sublayers.items()})

    def _scaled(self, sublayer: Sublayer) -> Sublayer:
        return lambda x: sublayer(x) * self.scale

    @property
    def branch_scale(self) -> float:
        return self.scale


@dataclass(frozen=True)
class ReorderedNorm(Wiring):
    """x + norm(f(x)): a branch reads the stream as it is, and is normalised before it joins it (2111.09883; OLMo 2,
    2501.00656)."""

    def __call__(self, module: nn.Module, norm: Norm, x: jax.Array, sublayers: Mapping[str, Sublayer]) -> jax.Array:
        for name, sublayer in sublayers.items():
            y = tap(module, OUTPUTS[name], sublayer(x))
            x = tap(module, AFTER[name], x + norm(module, f"{name}_post_norm", y))
        return x


@dataclass(frozen=True)
class BareAttention(Wiring):
    """`PreNorm` in a layer whose attention reads x as it is: the first one, where the embedding is normalised already
    (ModernBERT, 2412.13663)."""

    def __call__(self, module: nn.Module, norm: Norm, x: jax.Array, sublayers: Mapping[str, Sublayer]) -> jax.Array:
        attention, *others = sublayers.items()
        x = tap(module, AFTER["attention"], x + tap(module, OUTPUTS["attention"], attention[1](x)))
        return PreNorm()(module, norm, x, dict(others))


@dataclass(frozen=True)
class PostNorm(Wiring):
    """norm(x + f(x)), and nothing after the last layer (1706.03762, BERT)."""

    def __call__(self, module: nn.Module, norm: Norm, x: jax.Array, sublayers: Mapping[str, Sublayer]) -> jax.Array:
        for name, sublayer in sublayers.items():
            x = norm(module, f"{name}_norm", x + tap(module, OUTPUTS[name], sublayer(x)))
            x = tap(module, AFTER[name], x)
        return x

    def final(self, module: nn.Module, norm: Norm, x: jax.Array) -> jax.Array:
        return x


@dataclass(frozen=True)
class Sandwich(Wiring):
    """x + norm(f(norm(x))), each norm with its own scale (2105.13290; Gemma 2, 2408.00118)."""

    def __call__(self, module: nn.Module, norm: Norm, x: jax.Array, sublayers: Mapping[str, Sublayer]) -> jax.Array:
        for name, sublayer in sublayers.items():
            y = tap(module, OUTPUTS[name], sublayer(norm(module, f"{name}_norm", x)))
            x = tap(module, AFTER[name], x + norm(module, f"{name}_post_norm", y))
        return x


@dataclass(frozen=True)
class ScaledSandwich(Wiring):
    """`Sandwich`, and what a layer leaves is multiplied by a learned number of its own; a branch of what the layer is
    given of its tokens (lm/model/per_layer.py) reads x as it is (Gemma 4).

    `ffn_norm` is the norm before the feed-forward, where that is another than the model's: none, `Norm()`, before one
    that has its own (lm/model/normed_experts.py)."""

    ffn_norm: Norm | None = late()

    def __call__(self, module: nn.Module, norm: Norm, x: jax.Array, sublayers: Mapping[str, Sublayer]) -> jax.Array:
        branches = {name: f for name, f in sublayers.items() if name != "token"}
        *_, last = branches
        for name, sublayer in branches.items():
            before = self.ffn_norm if self.ffn_norm and name == "ffn" else norm
            y = tap(module, OUTPUTS[name], sublayer(before(module, f"{name}_norm", x)))
            x = x + norm(module, f"{name}_post_norm", y)
            x = x if name == last else tap(module, AFTER[name], x)
        if "token" in sublayers:
            x = x + norm(module, "per_layer_post_norm", sublayers["token"](x))
        scale = param(module, "layer_scale", (1,), (None,), ones)
        return tap(module, AFTER[last], x * scale.astype(x.dtype))


@dataclass(frozen=True)
class Parallel(Wiring):
    """x + the sum of every f(norm(x)), one norm for all (GPT-J; PaLM, 2204.02311)."""

    def __call__(self, module: nn.Module, norm: Norm, x: jax.Array, sublayers: Mapping[str, Sublayer]) -> jax.Array:
        y = norm(module, "norm", x)
        for name, sublayer in sublayers.items():
            x = tap(module, AFTER[name], x + tap(module, OUTPUTS[name], sublayer(y)))
        return x
