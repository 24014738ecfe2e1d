"""Gemma 1, 2 and 3: Llama's names, and from 2 on norms before and after each sublayer."""

from collections.abc import Mapping
from typing import Any

from lm.model.config import LayerKind, ModelConfig
from lm.model.output import Output
from lm.model.parts import FeedForward, RMSNorm
from lm.model.positions import Rotary
from lm.model.wiring import Sandwich
from lm.pretrained import llama, rope
from lm.pretrained.architecture import (
    ACTIVATION,
    Architecture,
    attention_of,
    layer_kinds,
    layer_types,
    require,
    same,
    window,
)
from lm.pretrained.fields import Fields
from lm.pretrained.llama import AT, ATTENTION, DENSE, EMBEDDING, IGNORED, OUTPUT
from lm.pretrained.rows import Row

SANDWICH = [
    same("layers/*/attention_post_norm_scale", AT + "post_attention_layernorm.weight"),
    same("layers/*/ffn_norm_scale", AT + "pre_feedforward_layernorm.weight"),
    same("layers/*/ffn_post_norm_scale", AT + "post_feedforward_layernorm.weight"),
]


def sandwich_rows(cfg: ModelConfig) -> list[Row]:
    """The table of Gemma 2 and 3."""
    return [*EMBEDDING, *ATTENTION, *SANDWICH, *DENSE, *OUTPUT]


def _read(fields: Fields, activation: str, attention: Mapping[str, Any], **parts: Any) -> ModelConfig:
    """The fields common to all three; `attention` and `parts` are the other fields of Attention and ModelConfig."""
    fields.expect("use_bidirectional_attention", False)
    return llama.read(
        fields,
        attention=llama.attention(fields, bias=fields.flag("attention_bias", False), **attention),
        ffn=FeedForward(fields.integer("intermediate_size"), activation, gated=True),
        norm=_norm(fields),
        tied=fields.flag("tie_word_embeddings", True),
        embed_scale=fields.integer("hidden_size") ** 0.5,
        **parts,
    )


def _norm(fields: Fields) -> RMSNorm:
    return RMSNorm(float(fields.number("rms_norm_eps", 1e-6)), plus_one=True)


def read_gemma(fields: Fields) -> ModelConfig:
    """Gemma's config.json."""
    # old files have "gelu", which has always meant the approximation
    fields.expect("hidden_act", "gelu", "gelu_pytorch_tanh")
    fields.expect("hidden_activation", "gelu", "gelu_pytorch_tanh")
    return _read(fields, "gelu_tanh", {})


def read_gemma2(fields: Fields) -> ModelConfig:
    """Gemma 2's config.json: windows in every second layer, soft caps."""
    window = fields.integer("sliding_window", 4096)
    fields.expect("sliding_window_size", window)  # in old files, both
    return _later(fields, 50.0, 30.0, {}, pattern=_pattern(fields, LayerKind(window=window), every=2))


def read_gemma3(fields: Fields) -> ModelConfig:
    """Gemma 3's config.json: five windowed layers to each full one, with rotary positions of their own."""
    context = fields.integer("max_position_embeddings")
    full, local = _two_rotaries(fields, context)
    every = fields.integer("sliding_window_pattern", 6)
    fields.expect("_sliding_window_pattern", every)
    kind = LayerKind(window=fields.integer("sliding_window", 4096), positions=local)
    norms = {"qk_norm": _norm(fields)}
    return _later(fields, 0.0, 0.0, norms, positions=full, pattern=_pattern(fields, kind, every))


def _later(
    fields: Fields, softcap: float, final_softcap: float, attention: Mapping[str, Any], **parts: Any
) -> ModelConfig:
    """The fields common to Gemma 2 and 3; `softcap` and `final_softcap` are defaults."""
    scale = float(fields.number("query_pre_attn_scalar", 256, above=0)) ** -0.5
    softcap, final_softcap = (
        _cap(fields, "attn_logit_softcapping", softcap),
        _cap(fields, "final_logit_softcapping", final_softcap),
    )
    fields.expect("hidden_act", "gelu_pytorch_tanh")
    return _read(
        fields,
        fields.choose("hidden_activation", ACTIVATION, "gelu_pytorch_tanh"),
        {"scale": scale, "softcap": softcap, **attention},
        wiring=Sandwich(),
        output=Output(softcap=final_softcap),
        **parts,
    )


def _cap(fields: Fields, name: str, default: float) -> float:
    """A soft cap; null means none, a missing field the default."""
    return float(fields.number(name, 0.0 if name in fields.values else default))


def _pattern(fields: Fields, windowed: LayerKind, every: int) -> tuple[LayerKind, ...]:
    return layer_kinds(fields, fields.integer("num_hidden_layers"), windowed, lambda i: (i + 1) % every == 0)


def _two_rotaries(fields: Fields, context: int) -> tuple[Rotary, Rotary]:
    """Those of the full and of the windowed layers: a dict each, or a theta each and a scaling for the full ones."""
    both = fields.take("rope_parameters", {"full_attention": rope.parameters(fields)})
    thetas = fields.number("rope_theta", 1e6, above=1), fields.number("rope_local_base_freq", 1e4, above=1)
    if not isinstance(both, dict) or not set(both) <= {"full_attention", "sliding_attention"}:
        raise fields.unsupported("rope_parameters", both, "one object for full_attention and one for sliding_attention")
    full, local = (both.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
    return rope.rotary(fields, full, context, thetas[0]), rope.rotary(fields, local, context, thetas[1])


def write_gemma(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_gemma` reads."""
    return {**llama.write(cfg), "attention_bias": attention_of(cfg).bias}


def write_gemma2(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_gemma2` reads."""
    fields = write_gemma(cfg)
    fields["hidden_activation"] = fields.pop("hidden_act")
    scalar = (attention_of(cfg).scale or attention_of(cfg).head_dim ** -0.5) ** -2
    return {
        **fields,
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "attn_logit_softcapping": attention_of(cfg).softcap or None,
        "final_logit_softcapping": cfg.output.softcap or None,
        "sliding_window": window(cfg),
        "layer_types": layer_types(cfg),
    }


def write_gemma3(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_gemma3` reads."""
    local = next((slot.positions for slot in cfg.slots.values() if slot.window), Rotary())
    both = {"full_attention": cfg.positions, "sliding_attention": local}
    return {
        **write_gemma2(cfg),
        "rope_parameters": {kind: rope.write(require(positions, Rotary)) for kind, positions in both.items()},
    }


GEMMA = Architecture("GemmaForCausalLM", "gemma", read_gemma, write_gemma, llama.dense_rows, IGNORED)
GEMMA2 = Architecture("Gemma2ForCausalLM", "gemma2", read_gemma2, write_gemma2, sandwich_rows, IGNORED)
GEMMA3 = Architecture("Gemma3ForCausalLM", "gemma3_text", read_gemma3, write_gemma3, sandwich_rows, IGNORED)
