"""DeepSeek-V2's and V3's tensors and config.json: Llama's but for latent attention, and experts beside shared ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lm.model.config import LayerKind, ModelConfig, MultiToken
from lm.model.experts import Experts
from lm.model.latent import LatentAttention
from lm.model.multi_token import layer_config
from lm.model.parts import FeedForward, RMSNorm
from lm.model.positions import Rotary
from lm.model.scaling import YaRN
from lm.model.shared_experts import SharedExperts
from lm.pretrained import defaults, llama, rope
from lm.pretrained.architecture import ACTIVATION, Architecture, layer_stacks, linear, require, same
from lm.pretrained.fields import Fields
from lm.pretrained.llama import AT
from lm.pretrained.rows import ConcatenatedHeads, Row, row

SIZES = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
NORM = RMSNorm(1e-6)  # of latents, whatever rms_norm_eps is
OF_EXPERTS = (  # what is read where some layer has experts; the rest is of other code
    "moe_intermediate_size n_group n_routed_experts num_local_experts num_experts n_shared_experts norm_topk_prob "
    "num_experts_per_tok routed_scaling_factor topk_group topk_method"
)
OF_TRAINING = "aux_loss_alpha ep_size num_mtp_layers num_nextn_predict_layers scoring_func seq_aux moe_layer_freq"
EXPERTS = f"{OF_EXPERTS} {OF_TRAINING}"
MLP = AT + "mlp."
EXPERT_ROWS = [
    linear("layers/*/router", MLP + "gate.weight"),
    same("layers/*/choice_bias", MLP + "gate.e_score_correction_bias"),
    *(linear(f"layers/*/{n}", f"{MLP}experts.{{e}}.{n}_proj.weight") for n in ("gate", "up", "down")),
    *(linear(f"layers/*/shared_{n}", f"{MLP}shared_experts.{n}_proj.weight") for n in ("gate", "up", "down")),
]
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
    """The table; behind the layers are those of the modules of multi-token prediction."""
    modules = range(cfg.multi_token.depth if cfg.multi_token else 0)
    ahead = [each for k in modules for each in _module_rows(layer_config(cfg), k + 1, cfg.layers + k)]
    return [*llama.EMBEDDING, *_layer_rows(cfg), *llama.OUTPUT, *ahead]


def _layer_rows(cfg: ModelConfig) -> list[Row]:
    """The rows of layers; queries are `q_proj`, or with a low rank `q_b_proj`."""
    name = "q_b_proj" if require(cfg.attention, LatentAttention).q_lora_rank else "q_proj"
    query = row("layers/*/query layers/*/query_rope", f"{AT}self_attn.{name}.weight", ROTARY)
    return [query, *ATTENTION, *llama.FFN_NORM, *llama.ffn_rows(cfg, EXPERT_ROWS)]


def _module_rows(layer: ModelConfig, k: int, number: int) -> list[Row]:
    """The rows of module k, which is layer `number` of the published model, beside copies of embedding and output."""
    own, at = f"multi_token/{k}/", AT.replace("{i}", str(number))
    return [
        same(f"{own}embedding_norm_scale", f"{at}enorm.weight"),
        same(f"{own}hidden_norm_scale", f"{at}hnorm.weight"),
        linear(f"{own}projection", f"{at}eh_proj.weight"),
        *(r._replace(ours=tuple(own + path for path in r.ours), first=number) for r in _layer_rows(layer)),
        same(f"{own}head/norm_scale", f"{at}shared_head.norm.weight"),
        same("stem/tokens", f"{at}embed_tokens.weight")._replace(copy=True),
        linear("head/kernel", f"{at}shared_head.head.weight")._replace(copy=True),
    ]


def read(fields: Fields) -> ModelConfig:
    """DeepSeek-V2's config.json. Raises ValueError for a field that is not supported."""
    fields.expect("qk_head_dim", fields.integer("qk_nope_head_dim") + fields.integer("qk_rope_head_dim"))
    dense = llama.dense(fields, fields.flag("mlp_bias"))
    return _read(fields, dense, partial(_experts_v2, fields, dense))


def read_v3(fields: Fields) -> ModelConfig:
    """DeepSeek-V3's config.json. Raises ValueError for a field that is not supported."""
    if fields.take("rope_interleave") is not True:  # null is false
        raise fields.unsupported("rope_interleave", fields.take("rope_interleave"), "True, pairs side by side")
    dense = llama.dense(fields, bias=False)
    modules = fields.values.get("num_nextn_predict_layers", 1) or 0  # a file without their tensors has none
    if modules:
        modules = fields.integer("num_nextn_predict_layers", 1)
    cfg = _read(fields, dense, partial(_experts_v3, fields))
    return replace(cfg, multi_token=MultiToken(modules) if modules else None)


def _read(fields: Fields, dense: FeedForward, experts: Callable[[], SharedExperts]) -> ModelConfig:
    positions, context = rope.read(fields)
    mixer = LatentAttention(
        heads=fields.integer("num_attention_heads"),
        q_lora_rank=fields.integer("q_lora_rank") or 0,
        norm=NORM,
        **{name: fields.integer(name) for name in SIZES},
    )
    fields.expect("num_key_value_heads", mixer.heads)
    for name in ("head_dim", "qk_head_dim"):  # which its class overwrites
        fields.take(name, None)
    fields.expect("attention_bias", False)
    mixer = _scaled(mixer, positions, rope.parameters(fields) or {})
    layers, first = fields.integer("num_hidden_layers"), fields.number("first_k_dense_replace") or 0
    ffn: FeedForward = dense if first >= layers else experts()
    kinds = [LayerKind(ffn=dense if i < first and first < layers else None) for i in range(layers)]
    for name in EXPERTS.split():
        fields.take(name, None)
    return llama.read(fields, attention=mixer, positions=positions, context=context, ffn=ffn, **layer_stacks(kinds))


def _experts_v2(fields: Fields, dense: FeedForward) -> SharedExperts:
    """V2's experts: softmax scores, groups by their best expert."""
    fields.expect("norm_topk_prob", False)
    if dense.bias:
        raise fields.unsupported("mlp_bias", True, "False beside experts")
    limited = fields.choose("topk_method", {"greedy": False, "group_limited_greedy": True})
    groups = _groups(fields, best=1) if limited else {}
    for name in ("n_group", "topk_group"):
        fields.take(name)
    return _experts(fields, renormalize=False, **groups)


def _experts_v3(fields: Fields) -> SharedExperts:
    """V3's experts: sigmoid scores, a bias of the choice, groups by their two best."""
    renormalize = fields.take("norm_topk_prob") is not None and fields.flag("norm_topk_prob")  # null is false
    return _experts(fields, renormalize=renormalize, scores="sigmoid", choice_bias=True, **_groups(fields, best=2))


def _groups(fields: Fields, best: int) -> dict[str, int]:
    return dict(groups=_count(fields, "n_group"), top_groups=_count(fields, "topk_group"), group_best=best)


def _count(fields: Fields, name: str) -> int:
    """A field that is an integer where layers have experts, though its class allows null."""
    if (found := fields.integer(name)) is None:
        raise fields.unsupported(name, None, "an integer, since some layers have experts")
    return int(found)


def _experts(fields: Fields, **parts: Any) -> SharedExperts:
    mlp = fields.integer("moe_intermediate_size")
    return SharedExperts(
        mlp=mlp,
        activation=fields.choose("hidden_act", ACTIVATION),
        gated=True,
        experts=llama.expert_count(fields, "n_routed_experts", "num_local_experts"),
        top_k=_count(fields, "num_experts_per_tok"),
        shared=mlp * fields.integer("n_shared_experts"),
        scale=float(fields.number("routed_scaling_factor", above=0)),
        **parts,
    )


def _scaled(mixer: LatentAttention, positions: Rotary, given: Mapping[str, Any]) -> LatentAttention:
    """`mixer` with its logits scaled by `mscale_all_dim` of the rotary parameters `given`, as transformers does it."""
    if not isinstance(positions.scaling, YaRN) or positions.scaling.factor <= 1 or not given.get("mscale_all_dim"):
        return mixer
    size = rope.mscale(positions.scaling.factor, given["mscale_all_dim"])
    return replace(mixer, scale=mixer.qk_head_dim**-0.5 * size * size)


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads. Raises ValueError for a model with other parts."""
    fields = {**_write(cfg), "mlp_bias": cfg.ffn.bias}
    if isinstance(cfg.ffn, SharedExperts) and cfg.ffn.groups == 1:
        fields |= {"topk_method": "greedy", "n_group": None, "topk_group": None}
    return fields


def write_v3(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_v3` reads. Raises ValueError for a model with other parts."""
    fields = {**_write(cfg), "rope_interleave": True}
    fields["num_nextn_predict_layers"] = cfg.multi_token.depth if cfg.multi_token else 0
    return fields | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}


def _write(cfg: ModelConfig) -> dict[str, Any]:
    mixer, positions = require(cfg.attention, LatentAttention), require(cfg.positions, Rotary)
    return {
        **llama.write_common(cfg),
        **{name: getattr(mixer, name) for name in SIZES},
        "num_attention_heads": mixer.heads,
        "num_key_value_heads": mixer.heads,
        "q_lora_rank": mixer.q_lora_rank or None,
        **_write_experts(cfg),
        **rope.write(rope.written(positions) | _mscale(mixer, positions)),
    }


def _write_experts(cfg: ModelConfig) -> dict[str, Any]:
    """The fields of the feed-forward of all layers, of which the first may be dense."""
    ffn = cfg.ffn
    if not isinstance(ffn, Experts):
        return {"first_k_dense_replace": cfg.layers}
    ffn = require(ffn, SharedExperts)
    dense = [slot.ffn for slot in cfg.by_layer if not isinstance(slot.ffn, Experts)]
    return {
        "first_k_dense_replace": len(dense),
        "intermediate_size": dense[0].mlp if dense else ffn.mlp,
        "moe_intermediate_size": ffn.mlp,
        "n_routed_experts": ffn.experts,
        "n_shared_experts": max(1, ffn.shared // ffn.mlp),
        "num_experts_per_tok": ffn.top_k,
        "norm_topk_prob": ffn.renormalize,
        "routed_scaling_factor": ffn.scale,
        "topk_method": "group_limited_greedy",
        "n_group": ffn.groups,
        "topk_group": ffn.top_groups,
        "moe_layer_freq": 1,
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
    "DeepseekV2ForCausalLM", "deepseek_v2", defaults.DEEPSEEK_V2, read, write, rows, llama.IGNORED, prefix=llama.PREFIX
)
PREDICTS_MORE = r"|^model\.layers\.61\."  # the published model's module of multi-token prediction, where it is not read
DEEPSEEK_V3 = Architecture(
    "DeepseekV3ForCausalLM",
    "deepseek_v3",
    defaults.DEEPSEEK_V3,
    read_v3,
    write_v3,
    rows,
    llama.IGNORED + PREDICTS_MORE,
    prefix=llama.PREFIX,
)
