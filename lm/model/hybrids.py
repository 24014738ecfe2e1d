"""Families whose layers mix tokens in several ways: choices that name one, cited, as in lm/model/families.py."""

from dataclasses import replace
from typing import Any

from lm.model.config import LayerKind, ModelConfig
from lm.model.delta import GatedDeltaNet
from lm.model.families import llama
from lm.model.gated import GatedAttention
from lm.model.normed_experts import NormedExperts
from lm.model.output import Output
from lm.model.parts import FeedForward, Norm, RMSNorm, UnscaledRMSNorm
from lm.model.per_layer import PerLayerEmbedding
from lm.model.positions import PartialRotary, ProportionalRotary, Rotary
from lm.model.shared_experts import SharedExperts
from lm.model.shared_kv import NormedValues, SharedAttention
from lm.model.wiring import ScaledSandwich


def qwen3_5(
    *,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int = 256,
    key_heads: int = 16,
    value_heads: int = 32,
    key_dim: int = 128,
    value_dim: int = 128,
    conv_size: int = 4,
    every: int = 4,
    theta: float = 1e7,
    fraction: float = 0.25,
    eps: float = 1e-6,
    **others: Any,
) -> ModelConfig:
    """Qwen 3.5's text model: three layers of gated DeltaNet to each of gated attention (`every` 4), of whose heads a
    quarter is turned; RMSNorm of scale 1 + w, on queries and keys too."""
    state = GatedDeltaNet(key_heads, value_heads, key_dim, value_dim, conv_size, norm=RMSNorm(eps))
    norm = RMSNorm(eps, plus_one=True)
    kinds = (LayerKind(mixer=state),) * (every - 1) + (LayerKind(),)
    choices = dict(
        attention=GatedAttention(heads, head_dim, kv_heads, qk_norm=norm),
        norm=norm,
        positions=PartialRotary(theta, fraction=fraction),
        pattern=kinds[:layers],
    )
    return llama(**{"layers": layers, "heads": heads, "head_dim": head_dim, **choices, **others})


def qwen3_next(
    *,
    mlp: int = 512,
    experts: int = 512,
    top_k: int = 10,
    shared: int = 512,
    load_balance_weight: float = 0.001,
    **others: Any,
) -> ModelConfig:
    """Qwen3-Next, and Qwen 3.5 with experts: Qwen 3.5 with many small experts in every layer, beside a shared one with
    a gate."""
    ffn = SharedExperts(
        mlp=mlp,
        activation="silu",
        gated=True,
        experts=experts,
        top_k=top_k,
        load_balance_weight=load_balance_weight,
        shared=shared,
        shared_gate=True,
    )
    return qwen3_5(**{"mlp": mlp, "ffn": ffn, **others})


def gemma4(
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    head_dim: int = 256,
    full_head_dim: int = 512,
    full_kv_heads: int = 0,
    keys_are_values: bool = False,
    window: int = 512,
    every: int = 6,
    shared: int = 0,
    shared_mlp: int = 0,
    per_layer: int = 0,
    theta: float = 1e6,
    local_theta: float = 10000.0,
    fraction: float = 0.25,
    softcap: float = 30.0,
    eps: float = 1e-6,
    **others: Any,
) -> ModelConfig:
    """Gemma 4: Gemma 3's windows, with heads of `full_head_dim` in full layers, of which a part of the pairs turns, and
    whose values may be the keys; norms of w, on values too; the last `shared` layers read the keys and values of the
    last one of their kind before them, by a feed-forward of `shared_mlp`; `per_layer` numbers of a token a layer; a
    learned number by which each layer's output is multiplied."""
    norm = RMSNorm(eps)
    local = NormedValues(heads, head_dim, kv_heads, qk_norm=norm, scale=1.0, value_norm=UnscaledRMSNorm(eps))
    full = replace(local, head_dim=full_head_dim, kv_heads=full_kv_heads or kv_heads, keys_are_values=keys_are_values)
    ffn = FeedForward(mlp, "gelu_tanh", gated=True)
    own, wide = layers - shared, replace(ffn, mlp=shared_mlp) if shared_mlp else None
    is_full = [(i + 1) % every == 0 or i == layers - 1 for i in range(layers)]

    def kind(i: int) -> LayerKind:
        near = LayerKind() if is_full[i] else LayerKind(window, local, Rotary(local_theta))
        if i < own:
            return near
        source = max(j for j in range(own) if is_full[j] == is_full[i])
        reads = SharedAttention(heads, (near.mixer or full).rotary_dim, source=source, qk_norm=norm, scale=1.0)
        reads = replace(reads, kv_heads=full.kv if is_full[i] else local.kv)
        return replace(near, mixer=reads, ffn=wide)

    kinds, period = tuple(map(kind, range(layers))), layers if layers % every else every  # the last is full anyway
    stacks = dict(first_layers=kinds[:own], pattern=kinds[own:][:period]) if shared else dict(pattern=kinds[:period])
    choices = dict(
        attention=full,
        ffn=ffn,
        norm=norm,
        positions=ProportionalRotary(theta, fraction=fraction),
        wiring=PerLayerEmbedding(size=per_layer) if per_layer else ScaledSandwich(),
        output=Output(softcap=softcap),
        tied=True,
        embed_scale=width**0.5,
        **stacks,
    )
    sizes = dict(layers=layers, width=width, heads=heads, head_dim=head_dim, mlp=mlp)
    return llama(**{**sizes, **choices, **others})


def gemma4_moe(
    *, experts: int = 128, top_k: int = 8, expert_mlp: int = 704, load_balance_weight: float = 0.001, **others: Any
) -> ModelConfig:
    """Gemma 4 with experts of inner width `expert_mlp` beside the feed-forward of every layer."""
    chosen = NormedExperts(expert_mlp, experts=experts, top_k=top_k, load_balance_weight=load_balance_weight)
    return beside_experts(gemma4(**others), chosen)


def beside_experts(cfg: ModelConfig, experts: NormedExperts) -> ModelConfig:
    """Gemma 4 `cfg` with `experts` beside each of its feed-forwards, which keeps its width and activation, and norms
    of their own in place of that before the feed-forward."""

    def beside(ffn: FeedForward) -> NormedExperts:
        own = dict(shared=ffn.mlp, norm=cfg.norm, router_scale=cfg.width**-0.5)
        return replace(experts, activation=ffn.activation, gated=ffn.gated, **own)

    def kind(one: LayerKind) -> LayerKind:
        return replace(one, ffn=beside(one.ffn)) if one.ffn else one

    wiring = replace(cfg.wiring, ffn_norm=Norm())  # type: ignore[call-arg]
    first, pattern = tuple(map(kind, cfg.first_layers)), tuple(map(kind, cfg.pattern))
    return replace(cfg, ffn=beside(cfg.ffn), wiring=wiring, first_layers=first, pattern=pattern)
