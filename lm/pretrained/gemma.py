"""Gemma 1, 2 and 3: Llama's names, and from 2 on norms before and after each sublayer. Gemma 3 and PaliGemma see."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm.model.config import LayerKind, ModelConfig, Vision
from lm.model.families import scorer
from lm.model.output import NoOutput, Output
from lm.model.parts import FeedForward, RMSNorm
from lm.model.positions import Rotary
from lm.model.wiring import Sandwich
from lm.pretrained import defaults, llama, rope, siglip
from lm.pretrained.architecture import (
    ACTIVATION,
    Architecture,
    attention_of,
    layer_kinds,
    layer_types,
    linear,
    require,
    same,
    window,
)
from lm.pretrained.classifiers import bare
from lm.pretrained.fields import Fields
from lm.pretrained.llama import AT, ATTENTION, DENSE, EMBEDDING, IGNORED, OUTPUT, PREFIX
from lm.pretrained.rows import Row

KINDS = ("full_attention", "sliding_attention")  # of layers, with rotary positions each
PARTS = ("text_config", "vision_config")
GEMMA3_CONNECTOR = [
    same("vision/connector/projector_norm_scale", siglip.PROJECTOR + "mm_soft_emb_norm.weight"),
    same("vision/connector/projector", siglip.PROJECTOR + "mm_input_projection_weight"),  # not transposed
]
PALIGEMMA_CONNECTOR = [
    linear("vision/connector/projector", siglip.PROJECTOR + "linear.weight"),
    same("vision/connector/projector_bias", siglip.PROJECTOR + "linear.bias"),
]
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
        attention=llama.attention(fields, bias=fields.flag("attention_bias"), **attention),
        ffn=FeedForward(fields.integer("intermediate_size"), activation, gated=True),
        norm=_norm(fields),
        embed_scale=fields.integer("hidden_size") ** 0.5,
        **parts,
    )


def _norm(fields: Fields) -> RMSNorm:
    return RMSNorm(float(fields.number("rms_norm_eps")), plus_one=True)


def read_gemma(fields: Fields) -> ModelConfig:
    """Gemma's config.json."""
    # old files have "gelu", which has always meant the approximation
    fields.expect("hidden_act", "gelu", "gelu_pytorch_tanh")
    fields.expect("hidden_activation", "gelu", "gelu_pytorch_tanh")
    return _read(fields, "gelu_tanh", {})


def read_gemma2(fields: Fields) -> ModelConfig:
    """Gemma 2's config.json: windows in every second layer, soft caps."""
    window = fields.integer("sliding_window")
    fields.expect("sliding_window_size", window)  # in old files, both
    softcap = float(fields.number("attn_logit_softcapping", above=0) or 0)
    return _later(fields, {"softcap": softcap}, pattern=_pattern(fields, LayerKind(window=window or 0), every=2))


def read_gemma3(fields: Fields) -> ModelConfig:
    """Gemma 3's config.json: five windowed layers to each full one, with rotary positions of their own."""
    context = fields.integer("max_position_embeddings")  # scaled already
    full, local = (positions.rotary for positions in two_rotaries(fields, "rope_local_base_freq"))
    every = fields.integer("sliding_window_pattern")
    fields.expect("_sliding_window_pattern", every)
    fields.number("attn_logit_softcapping", 0)  # its class has it and never applies it
    kind = LayerKind(window=fields.integer("sliding_window") or 0, positions=local)
    pattern = _pattern(fields, kind, every)
    return _later(fields, {"qk_norm": _norm(fields)}, positions=full, context=context, pattern=pattern)


def read_gemma3_with_vision(fields: Fields) -> ModelConfig:
    """The config.json of Gemma 3 with vision."""
    text, tower_fields = (part(fields, name) for name in PARTS)
    tied = fields.take("tie_word_embeddings") is not None and fields.flag("tie_word_embeddings")
    values = {**text, "tie_word_embeddings": tied}  # what the text's own config has here is overruled
    cfg = read_gemma3(Fields(values, f"{fields.file}: text_config", defaults.GEMMA3))
    own = Fields(tower_fields, f"{fields.file}: vision_config", defaults.SIGLIP)
    tower, soft = siglip.read(own), _given(fields, "mm_tokens_per_image")
    pool, rest = divmod(math.isqrt(tower.context), math.isqrt(soft) or 1)
    if rest or not pool or math.isqrt(soft) ** 2 != soft:
        raise fields.unsupported("mm_tokens_per_image", soft, f"the square of a divisor of {math.isqrt(tower.context)}")
    vision = siglip.vision(
        own,
        tower,
        pool=pool,
        projector_norm=RMSNorm(float(own.number("layer_norm_eps")), plus_one=True),
        image_token=_given(fields, "image_token_index"),
        begin_token=fields.integer("boi_token_index") or -1,
        end_token=fields.integer("eoi_token_index") or -1,
        separator="\n\n",
    )
    fields.finish()
    return replace(cfg, vision=vision)


def read_paligemma(fields: Fields) -> ModelConfig:
    """PaliGemma's config.json, over Gemma or Gemma 2. Of a prefix longer than Gemma 2's window, transformers' windowed
    layers see all, ours what is in it; the published prefixes are shorter."""
    text, tower_fields = (part(fields, name) for name in PARTS)
    kinds = {"gemma": (read_gemma, defaults.PALIGEMMA_TEXT), "gemma2": (read_gemma2, defaults.GEMMA2)}
    kind = text.pop("model_type", "gemma")
    if kind not in kinds:
        raise fields.unsupported("text_config.model_type", kind, " or ".join(kinds))
    text.pop("num_image_tokens", None)
    text.pop("use_bidirectional_attention", None)
    read, known = kinds[kind]
    cfg = read(Fields({**text, "tie_word_embeddings": True}, f"{fields.file}: text_config", known))
    own = Fields(tower_fields, f"{fields.file}: vision_config", defaults.PALIGEMMA_SIGLIP)
    tower = siglip.read(own)
    fields.expect("projection_dim", cfg.width)
    fields.expect("tie_word_embeddings", True)
    for name in ("hidden_size", "vocab_size", "ignore_index"):  # which the parts say
        fields.take(name, None)
    image_token = fields.integer("image_token_index")
    vision = siglip.vision(own, tower, projector_bias=True, prefix=True, resample="bicubic", image_token=image_token)
    fields.finish()
    return replace(cfg, vision=vision)


def _given(fields: Fields, name: str) -> int:
    """An integer that null, which its class allows, cannot stand for."""
    value = fields.integer(name)
    if value is None:
        raise fields.unsupported(name, None, "a number")
    return int(value)


def part(fields: Fields, name: str) -> dict[str, Any]:
    """An object of a config.json."""
    values = fields.take(name, {})
    if not isinstance(values, dict):
        raise fields.unsupported(name, values, "an object")
    return dict(values)


def _later(fields: Fields, attention: Mapping[str, Any], **parts: Any) -> ModelConfig:
    """The fields common to Gemma 2 and 3."""
    scale = float(fields.number("query_pre_attn_scalar", above=0)) ** -0.5
    fields.expect("hidden_act", "gelu_pytorch_tanh")
    return _read(
        fields,
        fields.choose("hidden_activation", ACTIVATION),
        {"scale": scale, **attention},
        wiring=Sandwich(),
        output=Output(softcap=float(fields.number("final_logit_softcapping", above=0) or 0)),
        **parts,
    )


def _pattern(fields: Fields, windowed: LayerKind, every: int) -> tuple[LayerKind, ...]:
    return layer_kinds(fields, fields.integer("num_hidden_layers"), windowed, lambda i: (i + 1) % every == 0)


def two_rotaries(fields: Fields, local_theta: str) -> tuple[rope.Positions, rope.Positions]:
    """Those of the full and of the windowed layers: a dict each, or a theta each (that of the windowed ones in the
    field `local_theta`) and a scaling for the full ones."""
    both, scaling = ({} if (found := fields.take(n)) is None else found for n in ("rope_parameters", "rope_scaling"))
    if not isinstance(both, dict) or not set(both) <= set(KINDS):
        raise fields.unsupported("rope_parameters", both, f"an object with one for each of {', '.join(KINDS)}")
    full, local = ({} if both.get(kind) is None else both[kind] for kind in KINDS)
    for name, values in (("rope_parameters", full), ("rope_parameters", local), ("rope_scaling", scaling)):
        if not isinstance(values, dict):
            raise fields.unsupported(name, values, "an object")
    if any(full.get(name, value) != value for name, value in scaling.items()):
        raise fields.unsupported("rope_scaling", scaling, f"rope_parameters of full_attention, {full}")
    thetas = [fields.number(name, above=1) for name in ("rope_theta", local_theta)]
    return rope.rotary(fields, full | scaling, thetas[0]), rope.rotary(fields, local, thetas[1])


def read_states(fields: Fields) -> ModelConfig:
    """The config.json of Gemma 3 without an output, which may read in both directions (EmbeddingGemma), with half a
    window on either side."""
    both = bool(fields.take("use_bidirectional_attention", False))
    window = fields.integer("sliding_window")
    values = {**fields.values, "use_bidirectional_attention": False}
    if both and window:
        values["sliding_window"] = window // 2 + 1
    return replace(scorer(read_gemma3(Fields(values, fields.file, defaults.GEMMA3)), 0), causal=not both)


def write_states(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_states` reads. Raises ValueError for a model with an output."""
    if require(cfg.output, NoOutput).scores:
        raise ValueError("scores, where the architecture has no output")
    fields = {**write_gemma3(replace(cfg, output=Output())), "use_bidirectional_attention": not cfg.causal}
    if not cfg.causal and fields["sliding_window"]:
        fields["sliding_window"] = (fields["sliding_window"] - 1) * 2
    return fields


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
    both = written_rotaries(cfg, Rotary())
    return {
        **write_gemma2(cfg),
        "max_position_embeddings": cfg.context,
        "rope_parameters": both,
        "rope_local_base_freq": both["sliding_attention"]["rope_theta"],
    }


def written_rotaries(cfg: ModelConfig, missing: Rotary) -> dict[str, dict[str, Any]]:
    """The field rope_parameters that `two_rotaries` reads; `missing` is written where no layer has a window."""
    local = next((slot.positions for slot in cfg.slots.values() if slot.window), missing)
    return {kind: rope.written(require(p, Rotary)) for kind, p in zip(KINDS, (cfg.positions, local), strict=True)}


def seen(cfg: ModelConfig) -> Vision:
    """The vision of `cfg`. Raises ValueError where it has none."""
    if cfg.vision is None:
        raise ValueError("a model without a vision tower, where the architecture has one")
    return cfg.vision


def write_gemma3_with_vision(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_gemma3_with_vision` reads."""
    vision = seen(cfg)
    return {
        "text_config": {"model_type": "gemma3_text", **write_gemma3(cfg)},
        "vision_config": siglip.write(vision),
        "mm_tokens_per_image": vision.soft_tokens,
        "image_token_index": vision.image_token,
        "boi_token_index": vision.begin_token,
        "eoi_token_index": vision.end_token,
        "tie_word_embeddings": cfg.tied,
    }


def write_paligemma(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_paligemma` reads."""
    later = isinstance(cfg.wiring, Sandwich)
    text = {"model_type": "gemma2", **write_gemma2(cfg)} if later else {"model_type": "gemma", **write_gemma(cfg)}
    return {
        "text_config": text,
        "vision_config": {**siglip.write(seen(cfg)), "projection_dim": cfg.width},
        "image_token_index": seen(cfg).image_token,
        "projection_dim": cfg.width,
        "hidden_size": cfg.width,
    }


def gemma3_rows_with_vision(cfg: ModelConfig) -> list[Row]:
    """The table of Gemma 3 with vision, in the names of the published files; of a file without a tower, the text's."""
    return [*siglip.inside(sandwich_rows(cfg)), *siglip.ROWS, *GEMMA3_CONNECTOR]


def paligemma_rows(cfg: ModelConfig) -> list[Row]:
    """The table of PaliGemma, over Gemma or Gemma 2."""
    rows = sandwich_rows(cfg) if isinstance(cfg.wiring, Sandwich) else llama.dense_rows(cfg)
    return [*siglip.inside(rows), *siglip.ROWS, *PALIGEMMA_CONNECTOR]


GEMMA = Architecture(
    "GemmaForCausalLM", "gemma", defaults.GEMMA, read_gemma, write_gemma, llama.dense_rows, IGNORED, prefix=PREFIX
)
GEMMA2 = Architecture(
    "Gemma2ForCausalLM", "gemma2", defaults.GEMMA2, read_gemma2, write_gemma2, sandwich_rows, IGNORED, prefix=PREFIX
)
GEMMA3 = Architecture(
    "Gemma3ForCausalLM",
    "gemma3_text",
    defaults.GEMMA3,
    read_gemma3,
    write_gemma3,
    sandwich_rows,
    IGNORED,
    prefix=PREFIX,
)
GEMMA3_WITH_VISION = Architecture(
    "Gemma3ForConditionalGeneration",
    "gemma3",
    defaults.GEMMA3_WITH_VISION,
    read_gemma3_with_vision,
    write_gemma3_with_vision,
    gemma3_rows_with_vision,
    IGNORED,
    other_heads=siglip.HEAD,
    renamed=siglip.RENAMED,
)
PALIGEMMA = Architecture(
    "PaliGemmaForConditionalGeneration",
    "paligemma",
    defaults.PALIGEMMA,
    read_paligemma,
    write_paligemma,
    paligemma_rows,
    IGNORED,
    other_heads=siglip.HEAD,
    renamed=siglip.RENAMED,
)
STATES = replace(bare(GEMMA3, "Gemma3TextModel"), read=read_states, write=write_states)
