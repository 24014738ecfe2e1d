"""The architectures of GGUF: their tensors' names, the keys of their metadata, and what llama.cpp takes for granted."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from lm.pretrained import gemma, gpt2, llama, phi3, qwen_moe, relatives
from lm.pretrained.architecture import Architecture, linear, same
from lm.pretrained.rows import (
    Concatenated,
    Flattened,
    Identity,
    Kernel,
    PlusOne,
    RotaryInterleaved,
    RotaryInterleavedBias,
    Row,
    StackedLinear,
    Transposed,
    row,
)

AT = "blk.{i}."
FLATTENED = Flattened()


def _rows(
    q_and_k: Callable[[str, str], Row],
    norm: Callable[[str, str], Row],
    sandwich: bool = False,
    bias: Identity = FLATTENED,
    ffn_norm: str = "ffn_norm",
) -> list[Row]:
    """The table of an architecture.

    Args:
      q_and_k: the row of queries, and of keys.
      norm: that of a norm.
      sandwich: whether branches are normalised at their end.
      bias: the conversion of the biases of queries and keys.
      ffn_norm: the name of the norm before the feed-forward."""
    post = [
        norm("layers/*/attention_post_norm_scale", AT + "post_attention_norm.weight"),
        norm("layers/*/ffn_post_norm_scale", AT + "post_ffw_norm.weight"),
    ]
    return [
        same("stem/tokens", "token_embd.weight"),
        norm("layers/*/attention_norm_scale", AT + "attn_norm.weight"),
        q_and_k("layers/*/query", AT + "attn_q.weight"),
        q_and_k("layers/*/key", AT + "attn_k.weight"),
        linear("layers/*/value", AT + "attn_v.weight"),
        *(row(f"layers/*/{n}_bias", f"{AT}attn_{n[0]}.bias", bias) for n in ("query", "key")),
        row("layers/*/value_bias", AT + "attn_v.bias", FLATTENED),
        linear("layers/*/out", AT + "attn_output.weight", inputs=2),
        same("layers/*/out_bias", AT + "attn_output.bias"),
        norm("layers/*/query_norm_scale", AT + "attn_q_norm.weight"),
        norm("layers/*/key_norm_scale", AT + "attn_k_norm.weight"),
        norm("layers/*/ffn_norm_scale", f"{AT}{ffn_norm}.weight"),
        *(linear(f"layers/*/{n}", f"{AT}ffn_{n}.weight") for n in ("gate", "up", "down")),
        *(same(f"layers/*/{n}_bias", f"{AT}ffn_{n}.bias") for n in ("gate", "up", "down")),
        *(post if sandwich else []),
        norm("head/norm_scale", "output_norm.weight"),
        linear("head/kernel", "output.weight"),
    ]


def _plus_one(ours: str, theirs: str) -> Row:
    return row(ours, theirs, PlusOne())


PERMUTED = _rows(lambda ours, theirs: row(ours, theirs, RotaryInterleaved()), same, bias=RotaryInterleavedBias())
PLAIN = _rows(linear, same)
REORDERED = _rows(linear, same, sandwich=True)
GEMMA = _rows(linear, _plus_one)
SANDWICH = _rows(linear, _plus_one, sandwich=True)
QKV = "layers/*/query{0} layers/*/key{0} layers/*/value{0}"
GPT2 = [
    same("stem/tokens", "token_embd.weight"),
    same("stem/positions", "position_embd.weight"),
    row(QKV.format(""), AT + "attn_qkv.weight", Transposed(Concatenated(Kernel()))),
    row(QKV.format("_bias"), AT + "attn_qkv.bias", Concatenated(Flattened())),
    linear("layers/*/out", AT + "attn_output.weight", inputs=2),
    same("layers/*/out_bias", AT + "attn_output.bias"),
    *(linear(f"layers/*/{n}", f"{AT}ffn_{n}.weight") for n in ("up", "down")),
    *(same(f"layers/*/{n}_bias", f"{AT}ffn_{n}.bias") for n in ("up", "down")),
    *(same(f"layers/*/attention_norm_{n}", f"{AT}attn_norm.{k}") for n, k in (("scale", "weight"), ("bias", "bias"))),
    *(same(f"layers/*/ffn_norm_{n}", f"{AT}ffn_norm.{k}") for n, k in (("scale", "weight"), ("bias", "bias"))),
    same("head/norm_scale", "output_norm.weight"),
    same("head/norm_bias", "output_norm.bias"),
    linear("head/kernel", "output.weight"),
]

EXPERTS = [
    linear("layers/*/router", AT + "ffn_gate_inp.weight"),
    same("layers/*/router_bias", AT + "ffn_gate_inp.bias"),
    *(row(f"layers/*/{n}", f"{AT}ffn_{n}_exps.weight", StackedLinear()) for n in ("gate", "up", "down")),
    *(same(f"layers/*/{n}_bias", f"{AT}ffn_{n}_exps.bias") for n in ("gate", "up", "down")),
]


def _routed(rows: list[Row]) -> list[Row]:
    """`rows` with experts in place of the feed-forward."""
    dense = {f"{AT}ffn_{n}.{kind}" for n in ("gate", "up", "down") for kind in ("weight", "bias")}
    return [*(row for row in rows if row.theirs not in dense), *EXPERTS]


SHARED = [
    *(linear(f"layers/*/shared_{n}", f"{AT}ffn_{n}_shexp.weight") for n in ("gate", "up", "down")),
    row("layers/*/shared_router", AT + "ffn_gate_inp_shexp.weight", FLATTENED),
]
FUSED = Transposed(Concatenated(Kernel()))
PHI3 = [
    *(row for row in PLAIN if not any(f"_{n}." in row.theirs for n in ("q", "k", "v", "gate", "up"))),
    row(QKV.format(""), AT + "attn_qkv.weight", FUSED),
    row("layers/*/gate layers/*/up", AT + "ffn_up.weight", FUSED),
]
GPT_OSS = _routed(_rows(linear, same, ffn_norm="post_attention_norm"))
GPT_OSS += [same("layers/*/sinks", AT + "attn_sinks.weight")]

# key of the metadata, without its architecture -> field of config.json
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}
GPT2_FIELDS = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
UNWINDOWED = {key: field for key, field in FIELDS.items() if field != "sliding_window"}
MIXTRAL_FIELDS = UNWINDOWED | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
QWEN_MOE_FIELDS = UNWINDOWED | {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
QWEN2_MOE_FIELDS = QWEN_MOE_FIELDS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}
GPT_OSS_FIELDS = FIELDS | {
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "intermediate_size",
}
GRANITE_FIELDS = UNWINDOWED | {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
LLAMA_BIASES = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
REQUIRED = tuple(FIELDS.values())[:5] + ("rms_norm_eps",)
ROPE = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
OLD = {"rope.scale_linear": "rope.scaling.factor"}  # keys of old files -> today's
INERT = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}  # redundant
FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}  # of LongRoPE
PATTERN = "attention.sliding_window_pattern"  # whether each layer has a window, or in how many layers one has none
HEAD_SIZES = {"attention.value_length", "rope.dimension_count"}  # must equal the head size
OFF = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True, "rope.scaling.attn_factor": 1.0}


class GGUFArchitecture(NamedTuple):
    """A GGUF architecture.

    Args:
      architecture: the published one.
      rows: the table of its tensors.
      largest: the number of layers of the family's largest model, whose queries are scaled by 1/sqrt(D/N) rather than
        1/sqrt(H), which GGUF does not record; 0: none is.
      required: fields for whose keys llama.cpp has no defaults.
      keys: key of the metadata -> field of config.json.
      rotary: whether positions are rotary.
      biases: field of config.json -> a tensor that is there where it is true.
      divisors: whether llama.cpp reads those of Llama 3.1's scaling.
      windows_of: in how many layers one has no window, where the key PATTERN does not say; 0: llama.cpp has no windows.
      always_tied: whether llama.cpp reads no output of its own.
      called: its name in files, where another has it too; files with experts are then those of the one that has them.
      constants: fields of config.json that llama.cpp takes for granted; scaling_constants: those of its rope_scaling.
      longrope: whether a part of a head may be turned, and by LongRoPE's factors.
      passed_over: keys that its files have and llama.cpp does not use: read, and never written.
    """

    architecture: Architecture
    rows: list[Row]
    largest: int = 0
    required: tuple[str, ...] = REQUIRED
    keys: Mapping[str, str] = FIELDS
    rotary: bool = True
    biases: Mapping[str, str] = MappingProxyType({})
    divisors: bool = False
    windows_of: int = 0
    always_tied: bool = False
    called: str = ""
    constants: Mapping[str, Any] = MappingProxyType({})
    scaling_constants: Mapping[str, Any] = MappingProxyType({})
    longrope: bool = False
    passed_over: tuple[str, ...] = ()

    @property
    def experts(self) -> bool:
        """Whether it has experts."""
        return "expert_count" in self.keys


ARCHITECTURES = {
    "gpt2": GGUFArchitecture(gpt2.GPT2, GPT2, required=tuple(GPT2_FIELDS.values()), keys=GPT2_FIELDS, rotary=False),
    "llama": GGUFArchitecture(llama.LLAMA, PERMUTED, biases=LLAMA_BIASES, divisors=True),
    "qwen2": GGUFArchitecture(llama.QWEN2, PLAIN),
    "qwen3": GGUFArchitecture(llama.QWEN3, PLAIN),
    "gemma": GGUFArchitecture(gemma.GEMMA, GEMMA, always_tied=True),
    "gemma2": GGUFArchitecture(gemma.GEMMA2, SANDWICH, largest=46, windows_of=2, always_tied=True),
    "gemma3": GGUFArchitecture(
        gemma.GEMMA3, SANDWICH, largest=62, windows_of=6, required=(*REQUIRED, "sliding_window")
    ),
    "mixtral": GGUFArchitecture(llama.MIXTRAL, _routed(PERMUTED), keys=MIXTRAL_FIELDS, called="llama"),
    "qwen3moe": GGUFArchitecture(
        qwen_moe.QWEN3_MOE, _routed(PLAIN), keys=QWEN_MOE_FIELDS, constants={"norm_topk_prob": True}
    ),
    "qwen2moe": GGUFArchitecture(
        qwen_moe.QWEN2_MOE, [*_routed(PLAIN), *SHARED], keys=QWEN2_MOE_FIELDS, constants={"norm_topk_prob": False}
    ),
    "olmo2": GGUFArchitecture(relatives.OLMO2, REORDERED, keys=UNWINDOWED),
    "smollm3": GGUFArchitecture(relatives.SMOLLM3, PERMUTED, keys=UNWINDOWED, biases=LLAMA_BIASES, divisors=True),
    "granite": GGUFArchitecture(relatives.GRANITE, PERMUTED, keys=GRANITE_FIELDS, biases=LLAMA_BIASES),
    "phi3": GGUFArchitecture(phi3.PHI3, PHI3, longrope=True, passed_over=("attention.sliding_window",)),
    "gpt-oss": GGUFArchitecture(
        llama.GPT_OSS,
        GPT_OSS,
        required=(*REQUIRED, "sliding_window"),
        keys=GPT_OSS_FIELDS,
        windows_of=2,
        scaling_constants={"truncate": False},  # llama.cpp rounds the ends of YaRN's ramp all the same
    ),
}


def architecture_of(name: str, experts: bool) -> GGUFArchitecture | None:
    """The architecture that files call `name`, with `experts` or without; None for one that is unknown."""
    found = [kind for key, kind in ARCHITECTURES.items() if name == (kind.called or key)]
    return next((kind for kind in found if kind.experts == experts), found[0] if found else None)
