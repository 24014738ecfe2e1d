"""The choices that name a family, cited; sizes are the experiments' business.

A family is a function from sizes to a ModelConfig: nothing else in lm/ knows its name. Any field of ModelConfig can be
given by name, and is then taken instead of the family's.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig, Vision
from lm.model.experts import Experts
from lm.model.latent import LatentAttention
from lm.model.mixer import Mixer
from lm.model.output import NoOutput, Output
from lm.model.parts import FeedForward, LayerNorm, Norm, RMSNorm
from lm.model.positions import Learned, Positions, Relative, Rotary
from lm.model.scaling import Scaling, YaRN
from lm.model.wiring import Parallel, PostNorm, Sandwich

UNSCALED = Scaling()
GPT_OSS_SCALING = YaRN(factor=32.0, original_context=4096, truncate=False)


def _family(choices: Mapping[str, Any], others: Mapping[str, Any]) -> ModelConfig:
    return ModelConfig(**{**choices, **others})


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
    return _family(choices, others)


def gpt_oss(
    *,
    vocab: int,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    mlp: int,
    experts: int,
    context: int,
    top_k: int = 4,
    window: int = 128,
    theta: float = 150000.0,
    scaling: Scaling = GPT_OSS_SCALING,
    eps: float = 1e-5,
    load_balance_weight: float = 0.9,
    **others: Any,
) -> ModelConfig:
    """gpt-oss (2508.10925): experts in every layer, weighted by the softmax of the chosen logits, with biases and a
    clamped gate; attention sinks; windows in every second layer; YaRN."""
    choices = dict(
        vocab=vocab,
        layers=layers,
        width=width,
        context=context,
        attention=Attention(heads, head_dim, kv_heads, bias=True, sinks=True),
        ffn=Experts(
            mlp=mlp,
            activation="quick_gelu",
            gated=True,
            bias=True,
            clamp=7.0,
            offset=1.0,
            experts=experts,
            top_k=top_k,
            router_bias=True,
            load_balance_weight=load_balance_weight,
        ),
        norm=RMSNorm(eps=eps),
        positions=Rotary(theta, scaling),
        pattern=(LayerKind(window=window), LayerKind()),
    )
    return _family(choices, others)


def llama(
    *,
    vocab: int,
    layers: int,
    width: int,
    heads: int,
    mlp: int,
    context: int,
    kv_heads: int = 0,
    head_dim: int = 0,
    theta: float = 10000.0,
    scaling: Scaling = UNSCALED,
    eps: float = 1e-5,
    **others: Any,
) -> ModelConfig:
    """LLaMA (2302.13971), Llama 2 (2307.09288) and 3 (2407.21783): rotary positions, RMSNorm before each sublayer,
    SwiGLU, no biases, an untied head; grouped queries and a larger theta from Llama 2 70B and Llama 3 on, scaled
    rotation from 3.1 on, a tied head at its small sizes."""
    choices = dict(
        vocab=vocab,
        layers=layers,
        width=width,
        context=context,
        attention=Attention(heads, head_dim or head_size(width, heads), kv_heads),
        ffn=FeedForward(mlp=mlp, activation="silu", gated=True),
        norm=RMSNorm(eps=eps),
        positions=Rotary(theta, scaling),
    )
    return _family(choices, others)


def mistral(*, window: int = 4096, **others: Any) -> ModelConfig:
    """Mistral 7B (2310.06825): Llama's choices with a sliding window in every layer (0: none, from version 0.2 on)."""
    return llama(**{"pattern": (LayerKind(window=window),), **others})


def mixtral(
    *,
    mlp: int,
    experts: int = 8,
    top_k: int = 2,
    load_balance_weight: float = 0.02,
    router_z_weight: float = 0.001,
    **others: Any,
) -> ModelConfig:
    """Mixtral (2401.04088): Llama's choices with experts in every layer, of which two are chosen and weighted by the
    softmax of their logits."""
    ffn = Experts(
        mlp=mlp,
        activation="silu",
        gated=True,
        experts=experts,
        top_k=top_k,
        load_balance_weight=load_balance_weight,
        router_z_weight=router_z_weight,
    )
    return llama(**{"mlp": mlp, "theta": 1e6, "ffn": ffn, **others})


def qwen3(*, eps: float = 1e-6, theta: float = 1e6, **others: Any) -> ModelConfig:
    """Qwen 3 (2505.09388): Llama's choices, with RMSNorm on each head's queries and keys and a head size of its own."""
    cfg = llama(eps=eps, theta=theta, **others)
    return _replaced(cfg, others, attention=_with_attention(cfg, qk_norm=RMSNorm(eps=eps)))


def deepseek_v2(
    *,
    heads: int,
    kv_lora_rank: int = 512,
    q_lora_rank: int = 0,
    qk_nope_head_dim: int = 128,
    qk_rope_head_dim: int = 64,
    v_head_dim: int = 128,
    eps: float = 1e-6,
    **others: Any,
) -> ModelConfig:
    """DeepSeek-V2's dense layers (2405.04434): Llama's choices with multi-head latent attention. Its experts, and V3's,
    are a value of `ffn`: SharedExperts (lm/model/shared_experts.py)."""
    sizes = heads, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, kv_lora_rank, q_lora_rank
    return llama(**{"heads": heads, "head_dim": v_head_dim, "eps": eps, "attention": LatentAttention(*sizes), **others})


def siglip(
    *, layers: int, width: int, heads: int, mlp: int, patches: int, eps: float = 1e-6, **others: Any
) -> ModelConfig:
    """SigLIP's tower (2303.15343), a vision transformer (2010.11929): learned positions of its `patches`, LayerNorm
    before each sublayer, tanh gelu, biases; every patch sees every other."""
    choices = dict(
        vocab=1,
        layers=layers,
        width=width,
        context=patches,
        attention=Attention(heads=heads, head_dim=head_size(width, heads), bias=True),
        ffn=FeedForward(mlp=mlp, activation="gelu_tanh", bias=True),
        norm=LayerNorm(eps=eps),
        positions=Learned(),
        output=NoOutput(),
        causal=False,
    )
    return _family(choices, others)


def gemma3_vision(image_token: int = 262144, begin_token: int = 255999, end_token: int = 256000) -> Vision:
    """The vision of Gemma 3's 4B, 12B and 27B (2503.19786): SigLIP's 400M tower at 896 pixels, of whose 4,096 patches
    256 tokens are made."""
    return Vision(
        tower=siglip(layers=27, width=1152, heads=16, mlp=4304, patches=64 * 64),
        image_size=896,
        patch_size=14,
        image_token=image_token,
        begin_token=begin_token,
        end_token=end_token,
        separator="\n\n",
        pool=4,
        projector_norm=RMSNorm(eps=1e-6, plus_one=True),
    )


def paligemma_vision(size: int = 224, image_token: int = 257152) -> Vision:
    """The vision of PaliGemma (2407.07726): SigLIP's 400M tower at `size` pixels, a token a patch; image and prompt are
    a prefix, read in both directions."""
    return Vision(
        tower=siglip(layers=27, width=1152, heads=16, mlp=4304, patches=(size // 14) ** 2),
        image_size=size,
        patch_size=14,
        image_token=image_token,
        projector_bias=True,
        prefix=True,
        resample="bicubic",
    )


def gemma(
    *,
    vocab: int,
    layers: int,
    width: int,
    heads: int,
    head_dim: int,
    mlp: int,
    context: int,
    kv_heads: int = 0,
    theta: float = 10000.0,
    eps: float = 1e-6,
    **others: Any,
) -> ModelConfig:
    """Gemma (2403.08295): RMSNorm with scale 1 + w, the embedding times the square root of its width and tied, gated
    tanh gelu, a head size apart from the width."""
    choices = dict(
        vocab=vocab,
        layers=layers,
        width=width,
        context=context,
        attention=Attention(heads, head_dim, kv_heads),
        ffn=FeedForward(mlp=mlp, activation="gelu_tanh", gated=True),
        norm=RMSNorm(eps=eps, plus_one=True),
        positions=Rotary(theta),
        tied=True,
        embed_scale=width**0.5,
    )
    return _family(choices, others)


def gemma2(
    *, window: int = 4096, query_scale: float = 0.0, softcap: float = 50.0, output_softcap: float = 30.0, **others: Any
) -> ModelConfig:
    """Gemma 2 (2408.00118): Gemma with norms around each sublayer, windows in every second layer, logits of attention
    and of the output bent to within a cap; `query_scale` 0 is H^-0.5."""
    cfg = gemma(**others)
    attention = _with_attention(cfg, softcap=softcap, scale=query_scale)
    kinds = (LayerKind(window=window), LayerKind())
    return _replaced(
        cfg,
        others,
        attention=attention,
        wiring=Sandwich(),
        output=Output(softcap=output_softcap),
        pattern=kinds[: cfg.layers],
    )


def gemma3(
    *,
    window: int = 512,
    query_scale: float = 0.0,
    theta: float = 1e6,
    local_theta: float = 10000.0,
    scaling: Scaling = UNSCALED,
    every: int = 6,
    **others: Any,
) -> ModelConfig:
    """Gemma 3 (2503.19786): Gemma 2 without caps, with RMSNorm on queries and keys, and five windowed layers with a
    theta of their own to each full one (`every` 6)."""
    cfg = gemma(theta=theta, **others)
    attention = _with_attention(cfg, qk_norm=cfg.norm, scale=query_scale)
    kinds = (LayerKind(window=window, positions=Rotary(local_theta)),) * (every - 1) + (LayerKind(),)
    return _replaced(
        cfg,
        others,
        attention=attention,
        wiring=Sandwich(),
        positions=Rotary(theta, scaling),
        pattern=kinds[: cfg.layers],
    )


def palm(
    *, vocab: int, layers: int, width: int, heads: int, context: int, head_dim: int = 256, **others: Any
) -> ModelConfig:
    """PaLM (2204.02311): attention and feed-forward side by side, one kv head, SwiGLU four times as wide, LayerNorm
    without biases, and an embedding of unit variance that is the output too, scaled there by D^-0.5. Its z-loss of
    1e-4 is the experiment's."""
    choices = dict(
        vocab=vocab,
        layers=layers,
        width=width,
        context=context,
        attention=Attention(heads, head_dim, kv_heads=1),
        ffn=FeedForward(mlp=4 * width, activation="silu", gated=True),
        norm=LayerNorm(bias=False),
        positions=Rotary(),
        wiring=Parallel(),
        output=Output(scale=width**-0.5),
        tied=True,
        init_scale=1.0,
    )
    return _family(choices, others)


def t5(
    *,
    vocab: int,
    layers: int,
    width: int,
    heads: int,
    head_dim: int,
    mlp: int,
    context: int = 512,
    encoder_layers: int = 0,
    buckets: int = 32,
    max_distance: int = 128,
    eps: float = 1e-6,
    **others: Any,
) -> ModelConfig:
    """T5 (1910.10683): encoder and decoder, relative position buckets shared over the layers of each, RMSNorm before
    each sublayer, relu, no biases, logits of attention without 1/sqrt(H), and the embedding of unit variance as the
    output, scaled there by D^-0.5."""
    choices = dict(
        vocab=vocab,
        layers=layers,
        width=width,
        context=context,
        attention=Attention(heads, head_dim, scale=1.0),
        ffn=FeedForward(mlp=mlp, activation="relu"),
        norm=RMSNorm(eps=eps),
        positions=Relative(buckets, max_distance),
        output=Output(scale=width**-0.5),
        tied=True,
        encoder_layers=encoder_layers or layers,
        init_scale=1.0,
    )
    return _family(choices, others)


def t5_v1_1(*, mlp: int, **others: Any) -> ModelConfig:
    """T5 1.1 (2002.05202): T5 with a gated tanh gelu and an output of its own."""
    choices = dict(ffn=FeedForward(mlp=mlp, activation="gelu_tanh", gated=True), output=Output(), tied=False)
    return t5(**{"mlp": mlp, **choices, **others})


def bert(
    *,
    vocab: int,
    layers: int,
    width: int,
    heads: int,
    mlp: int,
    context: int,
    eps: float = 1e-12,
    **others: Any,
) -> ModelConfig:
    """BERT (1810.04805): an encoder alone, LayerNorm after each sublayer and after the sum of token, segment and
    learned position, exact gelu, biases; its output has a transform before the tied vocabulary."""
    norm: Norm = LayerNorm(eps=eps)
    positions: Positions = Learned()
    choices = dict(
        vocab=vocab,
        layers=layers,
        width=width,
        context=context,
        attention=Attention(heads, head_size(width, heads), bias=True),
        ffn=FeedForward(mlp=mlp, activation="gelu", bias=True),
        norm=norm,
        positions=positions,
        wiring=PostNorm(),
        output=Output(bias=True, transform="gelu"),
        tied=True,
        embed_norm=norm,
        token_types=2,
        causal=False,
    )
    return _family(choices, others)


def _replaced(cfg: ModelConfig, others: Mapping[str, Any], **choices: Any) -> ModelConfig:
    """`cfg` with a later member's choices, but for those that the caller made."""
    return replace(cfg, **{name: value for name, value in choices.items() if name not in others})


def _with_attention(cfg: ModelConfig, **changes: Any) -> Mixer:
    """The model's attention with `changes`; another mixer, which the caller chose, as it is."""
    return replace(cfg.attention, **changes) if isinstance(cfg.attention, Attention) else cfg.attention


def scorer(cfg: ModelConfig, scores: int = 1) -> ModelConfig:
    """`cfg` with `scores` numbers a token in place of logits over the vocabulary: with one a reward model."""
    return replace(cfg, output=NoOutput(scores=scores), tied=True, multi_token=None)


def head_size(width: int, heads: int) -> int:
    """H = D / N, where the family has no other head size."""
    if heads < 1 or width % heads:
        near = sorted((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - heads))[:2]
        raise ValueError(
            f"width={width} is not a multiple of heads={heads}: try heads={' or '.join(map(str, sorted(near)))}"
        )
    return width // heads
