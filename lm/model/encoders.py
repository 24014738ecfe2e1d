"""Families of encoders later than BERT: choices that name one, cited, as in lm/model/families.py."""

from typing import Any

from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig, Rewired
from lm.model.families import head_size
from lm.model.output import Unshifted
from lm.model.parts import FeedForward, LayerNorm, Norm
from lm.model.positions import Rotary


def modernbert(
    *,
    vocab: int,
    layers: int,
    width: int,
    heads: int,
    mlp: int,
    context: int,
    window: int = 65,
    theta: float = 160000.0,
    local_theta: float = 10000.0,
    every: int = 3,
    eps: float = 1e-5,
    **others: Any,
) -> ModelConfig:
    """ModernBERT (2412.13663): an encoder with rotary positions, LayerNorm without biases before each sublayer but the
    first, which reads the normalised embedding, gated gelu, and windows (of `window` keys on a side, the query's own
    among them) in all layers but each third, with a theta of their own."""
    norm: Norm = LayerNorm(eps=eps, bias=False)
    local = LayerKind(window=window, positions=Rotary(local_theta))
    choices: dict[str, Any] = dict(
        vocab=vocab,
        layers=layers,
        width=width,
        context=context,
        attention=Attention(heads, head_size(width, heads)),
        ffn=FeedForward(mlp=mlp, activation="gelu", gated=True),
        norm=norm,
        positions=Rotary(theta),
        pattern=((local,) * (every - 1) + (LayerKind(),))[: max(1, layers - 1)],
        first_layers=(Rewired(),),
        output=Unshifted(bias=True, transform="gelu"),
        tied=True,
        embed_norm=norm,
        causal=False,
    )
    return ModelConfig(**{**choices, **others})
