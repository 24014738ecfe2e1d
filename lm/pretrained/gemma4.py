"""Gemma 4's text model: Gemma 3's layers with heads of another size in full ones, values that are normalised or are the
keys, layers that read an earlier one's keys and values, embeddings for each layer, experts beside the feed-forwards,
and a number that each layer's output is multiplied by. Its images and sounds are not read."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig
from lm.model.experts import Experts
from lm.model.hybrids import beside_experts
from lm.model.normed_experts import NormedExperts
from lm.model.output import Output
from lm.model.parts import FeedForward, RMSNorm, UnscaledRMSNorm
from lm.model.per_layer import PerLayerEmbedding
from lm.model.positions import ProportionalRotary, Rotary
from lm.model.shared_kv import NormedValues, SharedAttention
from lm.model.wiring import ScaledSandwich
from lm.pretrained import defaults, llama, rope
from lm.pretrained.architecture import (
    ACTIVATION,
    Architecture,
    hf_activation,
    layer_stacks,
    linear,
    require,
    same,
    shortest_pattern,
    window,
)
from lm.pretrained.fields import Fields
from lm.pretrained.gemma import KINDS, SANDWICH
from lm.pretrained.llama import AT, ATTENTION, EMBEDDING, IGNORED, OUTPUT, PREFIX, ffn_rows
from lm.pretrained.rows import Concatenated, Row, StackedLinear, row
from lm.pretrained.text_half import read_text_half, write_text_half

FULL, SLIDING = KINDS
EVERY = 6  # of which the last is full, where nothing is said
PER_LAYER = [
    linear("stem/per_layer_projection", "model.per_layer_model_projection.weight"),
    same("stem/per_layer_norm_scale", "model.per_layer_projection_norm.weight"),
    same("stem/per_layer_tokens", "model.embed_tokens_per_layer.weight"),
    linear("layers/*/per_layer_gate", AT + "per_layer_input_gate.weight"),
    linear("layers/*/per_layer_out", AT + "per_layer_projection.weight"),
    same("layers/*/per_layer_post_norm_scale", AT + "post_per_layer_input_norm.weight"),
]
EXPERTS = [
    same("layers/*/router_norm_scale", AT + "router.scale"),
    linear("layers/*/router", AT + "router.proj.weight"),
    same("layers/*/expert_scale", AT + "router.per_expert_scale"),
    same("layers/*/experts_norm_scale", AT + "pre_feedforward_layernorm_2.weight"),
    row("layers/*/gate layers/*/up", AT + "experts.gate_up_proj", StackedLinear(Concatenated())),
    row("layers/*/down", AT + "experts.down_proj", StackedLinear()),
    same("layers/*/experts_post_norm_scale", AT + "post_feedforward_layernorm_2.weight"),
    same("layers/*/shared_norm_scale", AT + "pre_feedforward_layernorm.weight"),
    *(linear(f"layers/*/shared_{name}", f"{AT}mlp.{name}_proj.weight") for name in ("gate", "up", "down")),
    same("layers/*/shared_post_norm_scale", AT + "post_feedforward_layernorm_1.weight"),
]
SCALE = [same("layers/*/layer_scale", AT + "layer_scalar")]
# of layers that read another's: published files have them too, and nothing reads them
SHARED = r"self_attn\.(k_proj|v_proj|k_norm|v_norm)\.weight$"


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of Gemma 4."""
    return [*EMBEDDING, *ATTENTION, *SANDWICH, *ffn_rows(cfg, EXPERTS), *PER_LAYER, *SCALE, *OUTPUT]


def read(fields: Fields) -> ModelConfig:
    """Gemma 4's config.json. Raises ValueError for a field that is not supported."""
    layers, shared = fields.integer("num_hidden_layers"), int(fields.number("num_kv_shared_layers"))
    types = _types(fields, layers)
    _expect(fields)
    experts, rotary = _experts(fields), _rotaries(fields)
    size = fields.integer("sliding_window")
    mixers = _mixers(fields, types)
    eps, act = float(fields.number("rms_norm_eps")), fields.choose("hidden_activation", ACTIVATION)
    ffn = FeedForward(fields.integer("intermediate_size"), act, gated=True)
    wide = replace(ffn, mlp=2 * ffn.mlp) if fields.flag("use_double_wide_mlp") else None

    def kind(i: int) -> LayerKind:
        full = types[i] == FULL
        own = LayerKind(0 if full else size, None if full else mixers[SLIDING], None if full else rotary[SLIDING])
        if i < layers - shared:
            return own
        reads = SharedAttention(**_plain(mixers[types[i]]), source=_source(fields, types, layers - shared, i))
        return replace(own, mixer=reads, ffn=wide)

    kinds = [kind(i) for i in range(layers)]
    first = layers - shared
    stacks: dict[str, Any] = layer_stacks(kinds)
    if shared:  # what is read by others is of a layer before them all
        stacks = {"first_layers": tuple(kinds[:first]), "pattern": shortest_pattern(kinds[first:])}
    inputs = int(fields.number("hidden_size_per_layer_input"))
    rows = fields.integer("vocab_size_per_layer_input")
    if inputs and rows != fields.integer("vocab_size"):
        raise fields.unsupported("vocab_size_per_layer_input", rows, f"the vocab_size, {fields.integer('vocab_size')}")
    cfg = llama.read(
        fields,
        attention=mixers[FULL],
        ffn=ffn,
        norm=RMSNorm(eps),
        positions=rotary[FULL],
        context=fields.integer("max_position_embeddings"),
        wiring=PerLayerEmbedding(size=inputs, activation=act) if inputs else ScaledSandwich(),
        output=Output(softcap=float(fields.number("final_logit_softcapping", above=0) or 0)),
        embed_scale=fields.integer("hidden_size") ** 0.5,
        **stacks,
    )
    return beside_experts(cfg, experts) if experts else cfg


def _plain(mixer: Attention) -> dict[str, Any]:
    """The fields of `mixer` that every attention has."""
    return {field.name: getattr(mixer, field.name) for field in dataclasses.fields(Attention)}


def _experts(fields: Fields) -> NormedExperts | None:
    """The experts of every layer, if any."""
    names = ("moe_intermediate_size", "num_experts", "top_k_experts")
    sizes = [fields.integer(name) for name in names]
    if not fields.flag("enable_moe_block"):
        return None
    for name, size in zip(names, sizes, strict=True):
        if size is None:
            raise fields.unsupported(name, size, "a number, with enable_moe_block=true")
    mlp, experts, top_k = sizes
    return NormedExperts(mlp, experts=experts, top_k=top_k)


def _expect(fields: Fields) -> None:
    """Raises ValueError for what no part of ours computes."""
    both = fields.take("use_bidirectional_attention")  # of images: a text has none
    if both not in (None, "vision"):
        raise fields.unsupported("use_bidirectional_attention", both, "null or 'vision'")


def _types(fields: Fields, layers: int) -> list[str]:
    """The type of each layer, of which the last is full whatever is said."""
    types = fields.take("layer_types")
    types = [FULL if (i + 1) % EVERY == 0 else SLIDING for i in range(layers)] if types is None else types
    if not isinstance(types, list) or len(types) != layers or not all(one in KINDS for one in types):
        raise fields.unsupported("layer_types", types, f"a list of {layers}, each {' or '.join(KINDS)}")
    return [*types[:-1], FULL]


def _source(fields: Fields, types: Sequence[str], first: int, i: int) -> int:
    """The layer whose keys and values layer i reads: the last one of its type before `first`."""
    found = [j for j in range(first) if types[j] == types[i]]
    if not found:
        raise fields.unsupported("num_kv_shared_layers", len(types) - first, f"a layer of {types[i]} that has its own")
    return found[-1]


def _rotaries(fields: Fields) -> dict[str, Rotary]:
    """The positions of the layers of each type."""
    given = fields.take("rope_parameters")
    given = {FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}, SLIDING: {}} | (
        given or {}
    )
    if set(given) != set(KINDS) or not all(isinstance(one, dict) for one in given.values()):
        raise fields.unsupported("rope_parameters", given, f"an object with one for each of {', '.join(KINDS)}")
    return {name: _rotary(fields, values) for name, values in given.items()}


def _rotary(fields: Fields, values: dict[str, Any]) -> Rotary:
    own = Fields(values, f"{fields.file}: rope_parameters")
    kind, theta = own.take("rope_type", "default"), float(own.number("rope_theta", 10000.0, above=1))
    fraction = float(own.number("partial_rotary_factor", 1.0, above=0))
    if kind not in ("default", "proportional"):
        raise own.unsupported("rope_type", kind, "default or proportional")
    own.finish()
    return ProportionalRotary(theta, fraction=fraction) if kind == "proportional" and fraction < 1 else Rotary(theta)


def _mixers(fields: Fields, types: Sequence[str]) -> dict[str, NormedValues]:
    """The attention of the layers of each type that have their own keys and values."""
    eps = float(fields.number("rms_norm_eps"))
    common: dict[str, Any] = dict(bias=fields.flag("attention_bias"), qk_norm=RMSNorm(eps), scale=1.0)
    local = NormedValues(**vars(llama.attention(fields, **common)), value_norm=UnscaledRMSNorm(eps))
    sizes = _full_sizes(fields, local, types)
    return {SLIDING: local, FULL: replace(local, **sizes, keys_are_values=fields.flag("attention_k_eq_v"))}


def _full_sizes(fields: Fields, local: NormedValues, types: Sequence[str]) -> dict[str, Any]:
    """The head size and kv heads of full layers: of the fields for them, or of per_layer_config, as transformers 5
    writes it, which must say the same of all full layers and nothing of others."""
    names = {"head_dim": "head_dim", "num_key_value_heads": "kv_heads"}
    keys = fields.integer("num_global_key_value_heads", local.kv)
    own = dict(head_dim=fields.integer("global_head_dim", 512))
    own |= dict(kv_heads=keys) if fields.flag("attention_k_eq_v") else {}
    given = fields.take("per_layer_config", None)
    if given is None:
        return own
    said = {int(i): values for i, values in given.items()} if isinstance(given, dict) else {}
    full = [said.pop(i, {}) for i, one in enumerate(types) if one == FULL]
    if said or not full or any(one != full[0] for one in full) or not set(full[0]) <= set(names):
        raise fields.unsupported("per_layer_config", given, f"the same of {', '.join(names)} for each full layer")
    return {names[name]: int(size) for name, size in full[0].items()}


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads. Raises ValueError for a model of other parts."""
    full, norm = require(cfg.attention, NormedValues), require(cfg.norm, RMSNorm)
    local = next((slot for slot in cfg.by_layer if slot.window), None)
    near = full if local is None else require(local.mixer, Attention)
    shared = [slot for slot in cfg.by_layer if isinstance(slot.mixer, SharedAttention)]
    wiring = require(cfg.wiring, ScaledSandwich)
    width = _dense_width(cfg.ffn)
    if near.qk_norm != full.qk_norm or norm.plus_one:
        raise ValueError("norms of several kinds, or of 1 + w")
    common = llama.write_common(cfg)
    for name in ("rope_scaling", "rope_theta", "hidden_act"):
        del common[name]
    return {
        **common,
        **_written_experts(cfg.ffn),
        "intermediate_size": width,
        "rope_parameters": {
            FULL: _written(require(cfg.positions, Rotary)),
            SLIDING: _written(Rotary() if local is None else require(local.positions, Rotary)),
        },
        "hidden_activation": hf_activation(cfg.ffn.activation),
        "attention_bias": full.bias,
        "num_attention_heads": near.heads,
        "num_key_value_heads": near.kv,
        "head_dim": near.head_dim,
        "global_head_dim": full.head_dim,
        "num_global_key_value_heads": full.kv if full.keys_are_values else None,
        "attention_k_eq_v": full.keys_are_values,
        "sliding_window": window(cfg) or cfg.context,
        "layer_types": [SLIDING if slot.window else FULL for slot in cfg.by_layer],
        "num_kv_shared_layers": len(shared),
        "use_double_wide_mlp": bool(shared) and _dense_width(shared[0].ffn) == 2 * width,
        "hidden_size_per_layer_input": wiring.size if isinstance(wiring, PerLayerEmbedding) else 0,
        "vocab_size_per_layer_input": cfg.vocab,
        "final_logit_softcapping": cfg.output.softcap or None,
    }


def _dense_width(ffn: FeedForward) -> int:
    """The inner width of what all tokens take."""
    return ffn.shared if isinstance(ffn, NormedExperts) else ffn.mlp


def _written_experts(ffn: FeedForward) -> dict[str, Any]:
    """The fields that `_experts` reads. Raises ValueError for experts of another class."""
    if not isinstance(ffn, Experts):
        return {}
    ffn = require(ffn, NormedExperts)
    sizes = {"moe_intermediate_size": ffn.mlp, "num_experts": ffn.experts, "top_k_experts": ffn.top_k}
    return {"enable_moe_block": True, **sizes}


def _written(rotary: Rotary) -> dict[str, Any]:
    if isinstance(rotary, ProportionalRotary):
        return {**rope.written(rotary), "rope_type": "proportional", "partial_rotary_factor": rotary.fraction}
    return rope.written(rotary)


OTHER_PARTS = (
    *(
        "vision_config",
        "image_token_id",
        "video_token_id",
        "boi_token_id",
        "eoi_token_id",
        "vision_soft_tokens_per_image",
    ),
    *("audio_config", "audio_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index"),
)
GEMMA4 = Architecture(
    "Gemma4ForCausalLM", "gemma4_text", defaults.GEMMA4, read, write, rows, rf"{IGNORED}|{SHARED}", prefix=PREFIX
)
GEMMA4_WITH_VISION = Architecture(
    "Gemma4ForConditionalGeneration",
    "gemma4",
    defaults.GEMMA4_WITH_VISION,
    read_text_half(read, defaults.GEMMA4, OTHER_PARTS),
    write_text_half,
    rows,
    rf"{IGNORED}|{SHARED}",
    other_heads=r"^model\.(vision_tower|audio_tower|embed_vision|embed_audio)\.",
    renamed=(("model.language_model.", PREFIX),),
)
