"""Qwen's models with experts: Qwen 2's, beside a shared one with a gate, and Qwen 3's."""

from typing import Any

from lm.model.config import LayerKind, ModelConfig
from lm.model.experts import Experts
from lm.model.parts import FeedForward, RMSNorm
from lm.model.shared_experts import SharedExperts
from lm.pretrained import defaults, llama
from lm.pretrained.architecture import (
    ACTIVATION,
    Architecture,
    attention_of,
    hf_activation,
    layer_stacks,
    layer_types,
    layer_windows,
    layers_with,
    linear,
    require,
    window,
)
from lm.pretrained.fields import Fields
from lm.pretrained.llama import AT, IGNORED, PREFIX
from lm.pretrained.rows import Row

MLP = AT + "mlp."
EXPERTS = [
    linear("layers/*/router", MLP + "gate.weight"),
    *(linear(f"layers/*/{name}", f"{MLP}experts.{{e}}.{name}_proj.weight") for name in ("gate", "up", "down")),
]


SHARED = [
    *(linear(f"layers/*/shared_{name}", f"{MLP}shared_expert.{name}_proj.weight") for name in ("gate", "up", "down")),
    linear("layers/*/shared_router", MLP + "shared_expert_gate.weight"),
]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of both: a tensor per expert."""
    return [*llama.EMBEDDING, *llama.ATTENTION, *llama.FFN_NORM, *llama.ffn_rows(cfg, EXPERTS + SHARED), *llama.OUTPUT]


def experts(fields: Fields, kind: type[Experts] = Experts, **parts: Any) -> Experts:
    """The experts of a layer, with `parts` of their `kind`."""
    return kind(
        mlp=fields.integer("moe_intermediate_size"),
        activation=fields.choose("hidden_act", ACTIVATION),
        gated=True,
        experts=llama.expert_count(fields, "num_experts", "num_local_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        renormalize=fields.flag("norm_topk_prob") if "norm_topk_prob" in fields.defaults else True,
        load_balance_weight=float(fields.number("router_aux_loss_coef")),
        **parts,
    )


def dense_layers(fields: Fields) -> list[bool]:
    """Whether each layer is without experts."""
    layers, step = fields.integer("num_hidden_layers"), fields.integer("decoder_sparse_step")
    dense = layers_with(fields, "mlp_only_layers", layers)
    return [i in dense or (i + 1) % step != 0 for i in range(layers)]


def read_qwen2(fields: Fields) -> ModelConfig:
    """The config.json of Qwen 2 with experts."""
    layers, most = fields.integer("num_hidden_layers"), fields.number("max_window_layers")
    used = fields.flag("use_sliding_window")
    size = int(fields.number("sliding_window") or 0)  # 0 where its class writes that there is none
    windows = layer_windows(fields, layers, size if used else 0, lambda i: not used or i % 2 == 1 or i >= most)
    dense = llama.dense(fields, bias=False)
    pairs = zip(windows, dense_layers(fields), strict=True)
    kinds = [LayerKind(window, ffn=dense if without else None) for window, without in pairs]
    shared = fields.integer("shared_expert_intermediate_size")
    return llama.read(
        fields,
        attention=llama.attention(fields, bias=fields.flag("qkv_bias"), out_bias=False),
        ffn=experts(fields, SharedExperts, shared=shared, shared_gate=True),
        **layer_stacks(kinds),
    )


def write_qwen2(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_qwen2` reads."""
    shared = require(cfg.ffn, SharedExperts).shared
    more = {"qkv_bias": attention_of(cfg).bias, "shared_expert_intermediate_size": shared}
    windows = {"use_sliding_window": window(cfg) is not None, "layer_types": layer_types(cfg)}
    return {**llama.write_windowed(cfg), **write_experts(cfg), **windows, **more}


def read_qwen3(fields: Fields) -> ModelConfig:
    """The config.json of Qwen 3 with experts."""
    used = fields.flag("use_sliding_window")
    size = fields.integer("sliding_window") or 0
    window, dense = size if used else 0, llama.dense(fields, bias=False)
    kinds = [LayerKind(window, ffn=dense if without else None) for without in dense_layers(fields)]
    norm = RMSNorm(float(fields.number("rms_norm_eps")))
    return llama.read(
        fields,
        attention=llama.attention(fields, bias=fields.flag("attention_bias"), qk_norm=norm),
        ffn=experts(fields),
        **layer_stacks(kinds),
    )


def write_experts(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `experts` and `dense_layers` read. Raises ValueError for a model of other parts."""
    ffn = require(cfg.ffn, Experts)
    dense = {i: slot.ffn for i, slot in enumerate(cfg.by_layer) if not isinstance(slot.ffn, Experts)}
    return {
        "num_experts": ffn.experts,
        "num_local_experts": ffn.experts,  # as transformers 5 calls it
        "num_experts_per_tok": ffn.top_k,
        "norm_topk_prob": ffn.renormalize,
        "router_aux_loss_coef": ffn.load_balance_weight,
        "moe_intermediate_size": ffn.mlp,
        "intermediate_size": next(iter(dense.values()), FeedForward(ffn.mlp)).mlp,
        "hidden_act": hf_activation(ffn.activation),
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(dense),
    }


def write_qwen3(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_qwen3` reads."""
    windows = {"use_sliding_window": window(cfg) is not None, "attention_bias": attention_of(cfg).bias}
    return {**llama.write_windowed(cfg), **write_experts(cfg), **windows}


QWEN2_MOE = Architecture(
    "Qwen2MoeForCausalLM", "qwen2_moe", defaults.QWEN2_MOE, read_qwen2, write_qwen2, rows, IGNORED, prefix=PREFIX
)
QWEN3_MOE = Architecture(
    "Qwen3MoeForCausalLM", "qwen3_moe", defaults.QWEN3_MOE, read_qwen3, write_qwen3, rows, IGNORED, prefix=PREFIX
)
