"""Llama's tensors and config.json, and those of the families with its names: Mistral, Mixtral, Qwen, gpt-oss."""

from collections.abc import Sequence
from typing import Any

from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig
from lm.model.experts import Experts
from lm.model.families import GPT_OSS_SCALING
from lm.model.parts import FeedForward, RMSNorm
from lm.model.positions import Rotary
from lm.pretrained import defaults, rope
from lm.pretrained.architecture import (
    ACTIVATION,
    Architecture,
    attention_of,
    hf_activation,
    layer_kinds,
    layer_types,
    linear,
    read_sizes,
    require,
    same,
    window,
)
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Flattened, Interleaved, Row, row

SIZES = dict(vocab="vocab_size", layers="num_hidden_layers", width="hidden_size", context="max_position_embeddings")
IGNORED = r"rotary_emb\.inv_freq$"
AT = "model.layers.{i}."

EMBEDDING = [same("stem/tokens", "model.embed_tokens.weight")]
OUTPUT = [same("head/norm_scale", "model.norm.weight"), linear("head/kernel", "lm_head.weight")]
ATTENTION = [
    same("layers/*/attention_norm_scale", AT + "input_layernorm.weight"),
    linear("layers/*/query", AT + "self_attn.q_proj.weight"),
    row("layers/*/query_bias", AT + "self_attn.q_proj.bias", Flattened()),
    linear("layers/*/key", AT + "self_attn.k_proj.weight"),
    row("layers/*/key_bias", AT + "self_attn.k_proj.bias", Flattened()),
    linear("layers/*/value", AT + "self_attn.v_proj.weight"),
    row("layers/*/value_bias", AT + "self_attn.v_proj.bias", Flattened()),
    linear("layers/*/out", AT + "self_attn.o_proj.weight", inputs=2),
    same("layers/*/out_bias", AT + "self_attn.o_proj.bias"),
    same("layers/*/query_norm_scale", AT + "self_attn.q_norm.weight"),
    same("layers/*/key_norm_scale", AT + "self_attn.k_norm.weight"),
    same("layers/*/sinks", AT + "self_attn.sinks"),
]
FFN_NORM = [same("layers/*/ffn_norm_scale", AT + "post_attention_layernorm.weight")]
DENSE = [
    row_
    for name in ("gate", "up", "down")
    for row_ in (
        linear(f"layers/*/{name}", f"{AT}mlp.{name}_proj.weight"),
        same(f"layers/*/{name}_bias", f"{AT}mlp.{name}_proj.bias"),
    )
]
MOE = AT + "block_sparse_moe."
EXPERTS = [
    linear("layers/*/router", MOE + "gate.weight"),
    linear("layers/*/gate", MOE + "experts.{e}.w1.weight"),
    linear("layers/*/down", MOE + "experts.{e}.w2.weight"),
    linear("layers/*/up", MOE + "experts.{e}.w3.weight"),
]
GPT_OSS_EXPERTS = [
    linear("layers/*/router", AT + "mlp.router.weight"),
    same("layers/*/router_bias", AT + "mlp.router.bias"),
    row("layers/*/gate layers/*/up", AT + "mlp.experts.gate_up_proj", Interleaved()),
    row("layers/*/gate_bias layers/*/up_bias", AT + "mlp.experts.gate_up_proj_bias", Interleaved()),
    same("layers/*/down", AT + "mlp.experts.down_proj"),
    same("layers/*/down_bias", AT + "mlp.experts.down_proj_bias"),
]
DENSE_ROWS = [*EMBEDDING, *ATTENTION, *FFN_NORM, *DENSE, *OUTPUT]
PREFIX = "model."  # which a checkpoint of the bare model lacks


def dense_rows(cfg: ModelConfig) -> list[Row]:
    """The table of Llama, Mistral and Qwen."""
    return DENSE_ROWS


def ffn_rows(cfg: ModelConfig, experts: Sequence[Row]) -> list[Row]:
    """The rows of the feed-forward of each layer: `experts`, or DENSE where it has none."""
    routed = frozenset(name for name, slot in cfg.slots.items() if isinstance(slot.ffn, Experts))
    dense = frozenset(cfg.slots) - routed
    return [*(row._replace(slots=routed) for row in experts), *(row._replace(slots=dense) for row in DENSE)]


def mixtral_rows(cfg: ModelConfig) -> list[Row]:
    """The table of Mixtral: a tensor per expert."""
    return [*EMBEDDING, *ATTENTION, *FFN_NORM, *EXPERTS, *OUTPUT]


def gpt_oss_rows(cfg: ModelConfig) -> list[Row]:
    """The table of gpt-oss: experts stacked, gate and up interleaved."""
    return [*EMBEDDING, *ATTENTION, *FFN_NORM, *GPT_OSS_EXPERTS, *OUTPUT]


def attention(fields: Fields, **parts: Any) -> Attention:
    """Heads, kv heads (null: as many) and their size (null: width / heads); `parts` are the family's other fields of
    Attention."""
    heads, width = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    return Attention(
        heads=heads,
        head_dim=fields.integer("head_dim") or width // heads,
        kv_heads=fields.integer("num_key_value_heads") or heads,
        **parts,
    )


def read(fields: Fields, **parts: Any) -> ModelConfig:
    """The fields common to all; `parts` are the fields of ModelConfig that the family reads itself. Raises ValueError
    for a field that is not supported."""
    if "positions" not in parts:
        parts["positions"], parts["context"] = rope.read(fields)
    own = {
        "norm": lambda: RMSNorm(float(fields.number("rms_norm_eps"))),
        "ffn": lambda: dense(fields, bias=False),
        "tied": lambda: fields.flag("tie_word_embeddings"),
    }
    parts |= {name: part() for name, part in own.items() if name not in parts}
    cfg = ModelConfig(**read_sizes(fields, SIZES) | parts)
    fields.finish()
    return cfg


def dense(fields: Fields, bias: bool) -> FeedForward:
    """The gated feed-forward."""
    activation = fields.choose("hidden_act", ACTIVATION)
    return FeedForward(fields.integer("intermediate_size"), activation, gated=True, bias=bias)


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` and `attention` read. Raises ValueError for another mixer, and as `write_common` does."""
    mixer = attention_of(cfg)
    heads = {"num_attention_heads": mixer.heads, "num_key_value_heads": mixer.kv, "head_dim": mixer.head_dim}
    return {**write_common(cfg), **heads}


def write_common(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads itself. Raises ValueError for a config without rotary positions and RMSNorm."""
    positions, norm = require(cfg.positions, Rotary), require(cfg.norm, RMSNorm)
    return {
        "vocab_size": cfg.vocab,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "max_position_embeddings": rope.written_context(cfg.context, positions),
        "intermediate_size": cfg.ffn.mlp,
        "hidden_act": hf_activation(cfg.ffn.activation),
        "rms_norm_eps": norm.eps,
        **rope.write(rope.written(positions)),
        "tie_word_embeddings": cfg.tied,
    }


def read_llama(fields: Fields) -> ModelConfig:
    """Llama's config.json."""
    return read(
        fields,
        attention=attention(fields, bias=fields.flag("attention_bias")),
        ffn=dense(fields, fields.flag("mlp_bias")),
    )


def write_llama(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_llama` reads."""
    return {**write(cfg), "attention_bias": attention_of(cfg).bias, "mlp_bias": cfg.ffn.bias}


def read_mistral(fields: Fields) -> ModelConfig:
    """Mistral's config.json: a window in every layer, or none."""
    return read(
        fields,
        attention=attention(fields, bias=False),
        pattern=(LayerKind(window=fields.integer("sliding_window") or 0),),
    )


def write_windowed(cfg: ModelConfig) -> dict[str, Any]:
    """The fields of `write`, and the window."""
    return {**write(cfg), "sliding_window": window(cfg)}


def read_mixtral(fields: Fields) -> ModelConfig:
    """Mixtral's config.json: experts in every layer."""
    return read(
        fields,
        attention=attention(fields, bias=False),
        pattern=(LayerKind(window=fields.integer("sliding_window") or 0),),
        ffn=Experts(
            mlp=fields.integer("intermediate_size"),
            activation=fields.choose("hidden_act", ACTIVATION),
            gated=True,
            experts=expert_count(fields, "num_local_experts", "num_experts"),
            top_k=fields.integer("num_experts_per_tok"),
            load_balance_weight=float(fields.number("router_aux_loss_coef")),
        ),
    )


def expert_count(fields: Fields, name: str, alias: str) -> int:
    """The number of experts, of the field `name`, which transformers reads as `alias` too. Raises ValueError where they
    differ."""
    count, other = fields.integer(name), fields.integer(alias, None)
    if other and name in fields.values and other != count:
        raise fields.unsupported(alias, other, f"{name}={count}")
    return int(other or count)


def write_mixtral(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_mixtral` reads."""
    return {**write_windowed(cfg), **_experts(cfg)}


def _experts(cfg: ModelConfig) -> dict[str, Any]:
    ffn = require(cfg.ffn, Experts)
    return {
        "num_local_experts": ffn.experts,
        "num_experts_per_tok": ffn.top_k,
        "router_aux_loss_coef": ffn.load_balance_weight,
    }


def _qwen_pattern(fields: Fields) -> tuple[LayerKind, ...]:
    """Windows from layer `max_window_layers` on, where they are used; else sliding_window may be there to no effect."""
    used = fields.flag("use_sliding_window") and fields.take("sliding_window") is not None
    kind = LayerKind(window=fields.integer("sliding_window") if used else 0)
    fields.take("sliding_window")
    first = fields.number("max_window_layers")
    return layer_kinds(fields, fields.integer("num_hidden_layers"), kind, lambda i: not used or i < first)


def read_qwen2(fields: Fields) -> ModelConfig:
    """Qwen 2's config.json: biases on query, key and value."""
    return read(
        fields,
        attention=attention(fields, bias=True, out_bias=False),
        pattern=_qwen_pattern(fields),
    )


def read_qwen3(fields: Fields) -> ModelConfig:
    """Qwen 3's config.json: norms on queries and keys."""
    norm = RMSNorm(float(fields.number("rms_norm_eps")))
    return read(
        fields,
        attention=attention(fields, bias=fields.flag("attention_bias"), qk_norm=norm),
        pattern=_qwen_pattern(fields),
    )


def write_qwen(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_qwen2` and `read_qwen3` read."""
    biases = {"attention_bias": attention_of(cfg).bias} if attention_of(cfg).out_bias else {}
    windows = {"use_sliding_window": window(cfg) is not None, "layer_types": layer_types(cfg)}
    return {**write_windowed(cfg), **biases, **windows}


def read_gpt_oss(fields: Fields) -> ModelConfig:
    """gpt-oss's config.json: experts with biases and a clamped gate, sinks, windows in every second layer, YaRN."""
    layers = fields.integer("num_hidden_layers")
    _expect_mxfp4(fields)
    fields.expect("hidden_act", "silu")
    fields.expect("swiglu_alpha", 1.702)
    fields.expect("attention_bias", True)
    top_k = fields.integer("num_experts_per_tok")
    fields.expect("experts_per_token", top_k)
    kind = LayerKind(window=fields.integer("sliding_window") or 0)
    parts: dict[str, Any] = dict(
        attention=attention(fields, bias=True, sinks=True),
        ffn=Experts(
            mlp=fields.integer("intermediate_size"),
            activation="quick_gelu",
            gated=True,
            bias=True,
            clamp=float(fields.number("swiglu_limit")),
            offset=1.0,
            experts=expert_count(fields, "num_local_experts", "num_experts"),
            top_k=top_k,
            router_bias=True,
            load_balance_weight=float(fields.number("router_aux_loss_coef")),
        ),
        pattern=layer_kinds(fields, layers, kind, lambda i: i % 2 == 1),
    )
    if rope.parameters(fields) is None:
        parts["positions"] = Rotary(float(fields.number("rope_theta", above=1)), GPT_OSS_SCALING)
    return read(fields, **parts)


def _expect_mxfp4(fields: Fields) -> None:
    """Raises ValueError for numbers that are packed otherwise than in MXFP4 (lm/pretrained/mxfp4.py)."""
    packed = fields.take("quantization_config", None) or {"quant_method": "mxfp4"}
    if not isinstance(packed, dict) or packed.get("quant_method") != "mxfp4":
        raise fields.unsupported("quantization_config", packed, "quant_method mxfp4, or none")


def write_gpt_oss(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_gpt_oss` reads."""
    fields = {**write_windowed(cfg), **_experts(cfg), "layer_types": layer_types(cfg), "attention_bias": True}
    fields["rope_scaling"] = fields["rope_scaling"] or {"rope_type": "default"}  # null would be YaRN
    return {**fields, "hidden_act": "silu", "swiglu_limit": cfg.ffn.clamp}


LLAMA = Architecture(
    "LlamaForCausalLM", "llama", defaults.LLAMA, read_llama, write_llama, dense_rows, IGNORED, prefix=PREFIX
)
MISTRAL = Architecture(
    "MistralForCausalLM", "mistral", defaults.MISTRAL, read_mistral, write_windowed, dense_rows, IGNORED, prefix=PREFIX
)
MIXTRAL = Architecture(
    "MixtralForCausalLM", "mixtral", defaults.MIXTRAL, read_mixtral, write_mixtral, mixtral_rows, IGNORED, prefix=PREFIX
)
QWEN2 = Architecture(
    "Qwen2ForCausalLM", "qwen2", defaults.QWEN2, read_qwen2, write_qwen, dense_rows, IGNORED, prefix=PREFIX
)
QWEN3 = Architecture(
    "Qwen3ForCausalLM", "qwen3", defaults.QWEN3, read_qwen3, write_qwen, dense_rows, IGNORED, prefix=PREFIX
)
GPT_OSS = Architecture(
    "GptOssForCausalLM", "gpt_oss", defaults.GPT_OSS, read_gpt_oss, write_gpt_oss, gpt_oss_rows, IGNORED, prefix=PREFIX
)
