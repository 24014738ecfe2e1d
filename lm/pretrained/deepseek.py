"""DeepSeek-V2's tensors and config.json, of models without expert layers: Llama's but for latent attention."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm.model.config import ModelConfig
from lm.model.latent import LatentAttention
from lm.model.parts import RMSNorm
from lm.model.positions import Rotary
from lm.model.scaling import YaRN
from lm.pretrained import defaults, llama, rope
from lm.pretrained.architecture import Architecture, linear, require, same
from lm.pretrained.fields import Fields
from lm.pretrained.llama import AT
from lm.pretrained.rows import ConcatenatedHeads, Row, row

SIZES = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
NORM = RMSNorm(1e-6)  # of latents, whatever rms_norm_eps is
EXPERTS = (
    "aux_loss_alpha moe_intermediate_size moe_layer_freq n_group n_routed_experts n_shared_experts norm_topk_prob "
    "num_experts_per_tok routed_scaling_factor scoring_func seq_aux topk_group topk_method"
)
ROTARY = ConcatenatedHeads(rotary_last=True)
ATTENTION = [
    same("layers/*/attention_norm_scale", AT + "input_layernorm.weight"),
    linear("layers/*/query_down", AT + "self_attn.q_a_proj.weight"),
    same("layers/*/query_norm_scale", AT + "self_attn.q_a_layernorm.weight"),
    row("layers/*/kv_down layers/*/key_rope", AT + "self_attn.kv_a_proj_with_mqa.weight", ROTARY),
    same("layers/*/kv_norm_scale", AT + "self_attn.kv_a_layernorm.weight"),
    row("layers/*/key layers/*/value", AT + "self_attn.kv_b_proj.weight", ConcatenatedHeads()),
    linear("layers/*/out", AT + "self_attn.o_proj.weight", inputs=2),
]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table; queries are `q_proj`, or with a low rank `q_b_proj`."""
    name = "q_b_proj" if require(cfg.attention, LatentAttention).q_lora_rank else "q_proj"
    query = row("layers/*/query layers/*/query_rope", f"{AT}self_attn.{name}.weight", ROTARY)
    return [*llama.EMBEDDING, query, *ATTENTION, *llama.FFN_NORM, *llama.DENSE, *llama.OUTPUT]


def read(fields: Fields) -> ModelConfig:
    """DeepSeek-V2's config.json. Raises ValueError for expert layers, and for a field that is not supported."""
    _refuse_experts(fields)
    positions, context = rope.read(fields)
    mixer = LatentAttention(
        heads=fields.integer("num_attention_heads"),
        q_lora_rank=fields.integer("q_lora_rank") or 0,
        norm=NORM,
        **{name: fields.integer(name) for name in SIZES},
    )
    fields.expect("num_key_value_heads", mixer.heads)
    fields.take("head_dim")  # its class overwrites it
    fields.expect("qk_head_dim", mixer.qk_head_dim)
    fields.expect("attention_bias", False)
    ffn = llama.dense(fields, fields.flag("mlp_bias"))
    mixer = _scaled(mixer, positions, rope.parameters(fields) or {})
    return llama.read(fields, attention=mixer, positions=positions, context=context, ffn=ffn)


def _refuse_experts(fields: Fields) -> None:
    layers, dense = fields.integer("num_hidden_layers"), fields.number("first_k_dense_replace")
    if dense < layers:
        raise fields.unsupported(
            "first_k_dense_replace",
            dense,
            f"at least num_hidden_layers={layers}, dense layers alone: lm/model/experts.py lacks shared experts "
            "(n_shared_experts), scaled outputs (routed_scaling_factor) and group-limited routing (topk_method)",
        )
    for name in EXPERTS.split():
        fields.take(name, None)


def _scaled(mixer: LatentAttention, positions: Rotary, given: Mapping[str, Any]) -> LatentAttention:
    """`mixer` with its logits scaled by `mscale_all_dim` of the rotary parameters `given`, as transformers does it."""
    if not isinstance(positions.scaling, YaRN) or positions.scaling.factor <= 1 or not given.get("mscale_all_dim"):
        return mixer
    size = rope.mscale(positions.scaling.factor, given["mscale_all_dim"])
    return replace(mixer, scale=mixer.qk_head_dim**-0.5 * size * size)


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads. Raises ValueError for a model with other parts."""
    mixer, positions = require(cfg.attention, LatentAttention), require(cfg.positions, Rotary)
    return {
        **llama.write_common(cfg),
        **{name: getattr(mixer, name) for name in SIZES},
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.heads,
        "q_lora_rank": mixer.q_lora_rank or None,
        "first_k_dense_replace": cfg.layers,
        "mlp_bias": cfg.ffn.bias,
        **rope.write(rope.written(positions) | _mscale(mixer, positions)),
    }


def _mscale(mixer: LatentAttention, positions: Rotary) -> dict[str, float]:
    """The field for the scale of `mixer`, the inverse of `_scaled`."""
    if not mixer.scale:
        return {}
    factor = require(positions.scaling, YaRN).factor
    if factor <= 1:
        raise ValueError(f"scale={mixer.scale} with YaRN's factor={factor}: expected scale=0 or a factor above 1")
    size = math.sqrt(mixer.scale * mixer.qk_head_dim**0.5)
    return {"mscale_all_dim": round((size - 1) / (0.1 * math.log(factor)), 9)}


DEEPSEEK_V2 = Architecture(
    "DeepseekV2ForCausalLM", "deepseek_v2", defaults.DEEPSEEK_V2, read, write, rows, llama.IGNORED
)
