"""The choices that name a family, cited; sizes are the experiments' business.

A family is a function from sizes to a ModelConfig: nothing else in lm/ knows its name.
"""

from typing import Any

from lm.model.attention import Attention
from lm.model.config import ModelConfig
from lm.model.parts import FeedForward, LayerNorm, RMSNorm
from lm.model.positions import Learned, Rotary


def gpt(
    *, vocab: int, layers: int, width: int, heads: int, context: int, bias: bool = True, **others: Any
) -> ModelConfig:
    """GPT-2 (Radford et al., 2019): learned positions, LayerNorm before each sublayer, tanh gelu, tied head, biases."""
    choices = dict(
        vocab=vocab,
        layers=layers,
        width=width,
        context=context,
        attention=Attention(heads=heads, head_dim=head_size(width, heads), bias=bias),
        ffn=FeedForward(mlp=4 * width, activation="gelu_tanh", bias=bias),
        norm=LayerNorm(bias=bias),
        positions=Learned(),
        tied=True,
    )
    return ModelConfig(**{**choices, **others})


def llama(
    *,
    vocab: int,
    layers: int,
    width: int,
    heads: int,
    mlp: int,
    context: int,
    kv_heads: int = 0,
    theta: float = 10000.0,
    eps: float = 1e-5,
    **others: Any,
) -> ModelConfig:
    """LLaMA (2302.13971), Llama 2 (2307.09288) and 3 (2407.21783): rotary positions, RMSNorm before each sublayer,
    SwiGLU, no biases, an untied head; grouped queries and a larger theta from Llama 2 70B and Llama 3 on."""
    choices = dict(
        vocab=vocab,
        layers=layers,
        width=width,
        context=context,
        attention=Attention(heads=heads, head_dim=head_size(width, heads), kv_heads=kv_heads),
        ffn=FeedForward(mlp=mlp, activation="silu", gated=True),
        norm=RMSNorm(eps=eps),
        positions=Rotary(theta=theta),
    )
    return ModelConfig(**{**choices, **others})


def head_size(width: int, heads: int) -> int:
    """H = D / N, where the family has no other head size."""
    if heads < 1 or width % heads:
        near = sorted((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))[:2]
        raise ValueError(
            f"width={width} is not a multiple of heads={heads}: try heads={' or '.join(map(str, sorted(near)))}"
        )
    return width // heads
