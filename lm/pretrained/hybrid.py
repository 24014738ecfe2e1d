"""Qwen3-Next, Qwen 3.5 and Qwen 3.5 with experts: three layers of gated DeltaNet to each of gated attention."""

from collections.abc import Callable
from typing import Any

from lm.model.config import LayerKind, ModelConfig
from lm.model.delta import GatedDeltaNet
from lm.model.gated import GatedAttention
from lm.model.parts import RMSNorm
from lm.model.positions import PartialRotary, Rotary
from lm.model.shared_experts import SharedExperts
from lm.pretrained import defaults, llama, qwen_moe, rope
from lm.pretrained.architecture import Architecture, attention_of, layer_stacks, linear, require, same
from lm.pretrained.fields import Fields
from lm.pretrained.llama import AT, IGNORED, PREFIX
from lm.pretrained.rows import Concatenated, ConcatenatedHeads, Depthwise, Grouped, Kernel, Row, Transposed, row
from lm.pretrained.stacked import apart
from lm.pretrained.text_half import read_text_half, write_text_half

MIXERS = ("linear_attention", "full_attention")
SIZES = dict(key_heads="num_key_heads", value_heads="num_value_heads", key_dim="key_head_dim")
SIZES |= dict(value_dim="value_head_dim", conv_size="conv_kernel_dim")
OF_IMAGES = ("mrope_section", "mrope_interleaved")  # which of a token's three positions turns what: a text's are one
# of other code, or of layers that predict further tokens
OTHERS = ("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
DELTA = AT + "linear_attn."
OTHER_PARTS = (
    *("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
    "language_model_only",
)
FRACTION = 0.25  # of a head that is turned, where nothing is said

ATTENTION = [
    row("layers/*/query layers/*/out_gate", AT + "self_attn.q_proj.weight", ConcatenatedHeads()),
    *(r for r in llama.ATTENTION if not r.ours[0].endswith("/query")),
]
STATE = [
    row(
        " ".join(f"layers/*/{name}_conv" for name in ("query", "key", "value")),
        DELTA + "conv1d.weight",
        Transposed(Concatenated(Depthwise())),
    ),
    same("layers/*/A_log", DELTA + "A_log"),
    same("layers/*/dt_bias", DELTA + "dt_bias"),
    same("layers/*/value_norm_scale", DELTA + "norm.weight"),
    linear("layers/*/out", DELTA + "out_proj.weight", inputs=2),
]
APART = [
    row("layers/*/query layers/*/key layers/*/value", DELTA + "in_proj_qkv.weight", Transposed(Concatenated(Kernel()))),
    linear("layers/*/out_gate", DELTA + "in_proj_z.weight"),
    linear("layers/*/beta", DELTA + "in_proj_b.weight"),
    linear("layers/*/decay", DELTA + "in_proj_a.weight"),
]


def _fused(groups: int) -> list[Row]:
    """Qwen3-Next's projections, of which each key head has its own part together."""
    four = "layers/*/query layers/*/key layers/*/value layers/*/out_gate"
    return [
        row(four, DELTA + "in_proj_qkvz.weight", Grouped(groups)),
        row("layers/*/beta layers/*/decay", DELTA + "in_proj_ba.weight", Grouped(groups)),
    ]


def _rows(cfg: ModelConfig, projections: list[Row]) -> list[Row]:
    """The table of a hybrid with these `projections` of its linear layers."""
    linear_ = frozenset(name for name, slot in cfg.slots.items() if isinstance(slot.mixer, GatedDeltaNet))
    mixers = [r._replace(slots=linear_) for r in projections + STATE]
    mixers += [r if "norm_scale" in r.ours[0] else r._replace(slots=frozenset(cfg.slots) - linear_) for r in ATTENTION]
    ffn = llama.ffn_rows(cfg, qwen_moe.EXPERTS + qwen_moe.SHARED)
    return [*llama.EMBEDDING, *mixers, *llama.FFN_NORM, *ffn, *llama.OUTPUT]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of Qwen 3.5, with experts or without."""
    return _rows(cfg, APART)


def next_rows(cfg: ModelConfig) -> list[Row]:
    """The table of Qwen3-Next."""
    state = _state(cfg)
    return _rows(cfg, _fused(state.key_heads) if state else [])


def _state(cfg: ModelConfig) -> GatedDeltaNet | None:
    """The mixer of the linear layers; None where there are none."""
    return next((slot.mixer for slot in cfg.by_layer if isinstance(slot.mixer, GatedDeltaNet)), None)


def _kinds(fields: Fields, eps: float) -> list[LayerKind]:
    """The kind of each layer: of the field layer_types, or full every `full_attention_interval`."""
    layers, every = fields.integer("num_hidden_layers"), fields.integer("full_attention_interval", 4)
    types = fields.take("layer_types")
    types = [MIXERS[(i + 1) % every == 0] for i in range(layers)] if types is None else types
    if not isinstance(types, list) or len(types) != layers or not all(one in MIXERS for one in types):
        raise fields.unsupported("layer_types", types, f"a list of {layers}, each {' or '.join(MIXERS)}")
    sizes = {ours: fields.integer(f"linear_{theirs}") for ours, theirs in SIZES.items()}
    state = LayerKind(mixer=GatedDeltaNet(**sizes, norm=RMSNorm(eps)))
    return [LayerKind() if one == "full_attention" else state for one in types]


def _positions(fields: Fields) -> rope.Positions:
    """Rotary positions of a quarter of each head, or what is said."""
    given = {n: v for n, v in (rope.parameters(fields) or {}).items() if n not in OF_IMAGES}
    fraction = float(fields.number("partial_rotary_factor", FRACTION, above=0))
    return rope.rotary(fields, given, fields.number("rope_theta", above=1), fraction=fraction)


def _read(fields: Fields, kinds: Callable[[float], list[LayerKind]], **parts: Any) -> ModelConfig:
    """The fields of all hybrids; `parts` are those of ModelConfig that one reads itself."""
    eps = float(fields.number("rms_norm_eps"))
    norm = RMSNorm(eps, plus_one=True)
    fields.expect("attention_bias", False)
    fields.expect("attn_output_gate", True)
    for name in OTHERS:
        fields.take(name, None)
    mixer = llama.attention(fields, qk_norm=norm)
    positions, context = _positions(fields)
    return llama.read(
        fields,
        attention=GatedAttention(**vars(mixer)),
        norm=norm,
        positions=positions,
        context=context,
        **layer_stacks(kinds(eps)),
        **parts,
    )


def read(fields: Fields) -> ModelConfig:
    """The config.json of Qwen 3.5's text model."""
    fields.expect("mlp_only_layers", [])
    return _read(fields, lambda eps: _kinds(fields, eps))


def _experts(fields: Fields, **parts: Any) -> SharedExperts:
    shared = fields.integer("shared_expert_intermediate_size")
    return qwen_moe.experts(fields, SharedExperts, shared=shared, shared_gate=True, **parts)  # type: ignore[return-value]


def read_moe(fields: Fields) -> ModelConfig:
    """The config.json of the text model of Qwen 3.5 with experts, whose weights always sum to 1."""
    fields.expect("mlp_only_layers", [])
    fields.expect("norm_topk_prob", True)
    fields.take("intermediate_size", None)
    return _read(fields, lambda eps: _kinds(fields, eps), ffn=_experts(fields))


def read_next(fields: Fields) -> ModelConfig:
    """Qwen3-Next's config.json."""
    dense, without = llama.dense(fields, bias=False), qwen_moe.dense_layers(fields)

    def kinds(eps: float) -> list[LayerKind]:
        pairs = zip(_kinds(fields, eps), without, strict=True)
        return [LayerKind(mixer=kind.mixer, ffn=dense if plain else None) for kind, plain in pairs]

    return _read(fields, kinds, ffn=_experts(fields))


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads. Raises ValueError for a model of other parts."""
    require(attention_of(cfg), GatedAttention)
    if not require(cfg.norm, RMSNorm).plus_one:
        raise ValueError("norms of w, where the architecture has 1 + w")
    positions, state = require(cfg.positions, Rotary), _state(cfg)
    fraction = positions.fraction if isinstance(positions, PartialRotary) else 1.0
    sizes = {f"linear_{theirs}": getattr(state, ours) for ours, theirs in SIZES.items()} if state else {}
    return {
        **llama.write(cfg),
        **rope.write({**rope.written(positions), "partial_rotary_factor": fraction}),
        "partial_rotary_factor": fraction,
        "layer_types": [MIXERS[not isinstance(slot.mixer, GatedDeltaNet)] for slot in cfg.by_layer],
        **sizes,
    }


def _write_experts(cfg: ModelConfig) -> dict[str, Any]:
    return {
        **qwen_moe.write_experts(cfg),
        "shared_expert_intermediate_size": require(cfg.ffn, SharedExperts).shared,
    }


def write_next(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_next` reads."""
    return {**write(cfg), **_write_experts(cfg)}


def write_moe(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_moe` reads. Raises ValueError where some layers have no experts."""
    fields = write_next(cfg)
    if fields.pop("mlp_only_layers") or not fields.pop("norm_topk_prob"):
        raise ValueError("layers without experts, or weights that do not sum to 1")
    for name in ("decoder_sparse_step", "intermediate_size"):
        del fields[name]
    return fields


PREDICTS_MORE = r"^mtp\."
RENAMED = (("model.language_model.", PREFIX),)
QWEN3_NEXT = Architecture(
    "Qwen3NextForCausalLM",
    "qwen3_next",
    defaults.QWEN3_NEXT,
    read_next,
    write_next,
    next_rows,
    rf"{IGNORED}|{PREDICTS_MORE}",
    prefix=PREFIX,
)
QWEN3_5, QWEN3_5_MOE = (
    Architecture(
        f"{name}ForCausalLM",
        f"{kind}_text",
        known,
        read_,
        write_,
        rows,
        rf"{IGNORED}|{PREDICTS_MORE}|^model\.visual\.",
        prefix=PREFIX,
        renamed=RENAMED,
        source=apart,
    )
    for name, kind, known, read_, write_ in (
        ("Qwen3_5", "qwen3_5", defaults.QWEN3_5, read, write),
        ("Qwen3_5Moe", "qwen3_5_moe", defaults.QWEN3_5_MOE, read_moe, write_moe),
    )
)
WITH_VISION = tuple(
    Architecture(
        f"{name}ForConditionalGeneration",
        kind,
        defaults.QWEN3_5_WITH_VISION,
        read_text_half(text.read, text.defaults, OTHER_PARTS),
        write_text_half,
        rows,
        rf"{IGNORED}|{PREDICTS_MORE}",
        other_heads=r"^model\.visual\.",
        renamed=RENAMED,
        source=apart,
    )
    for name, kind, text in (("Qwen3_5", "qwen3_5", QWEN3_5), ("Qwen3_5Moe", "qwen3_5_moe", QWEN3_5_MOE))
)
