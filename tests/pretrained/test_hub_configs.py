"""Configs as they lie on the hub, in small, with all that their files have: each is read, and loads with tensors of its
architecture. An unknown architecture has a likely hint, or none."""

import json
from pathlib import Path
from typing import Any

import pytest

from lm.model.experts import Experts
from lm.model.positions import PartialRotary, Positions, Rotary
from lm.model.scaling import Llama3, LongRoPE, YaRN
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, load
from lm.pretrained.known import BY_NAME, architecture_of, hint
from tests.model.reference import SIMPLE, lively

COMMON: dict[str, Any] = dict(
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    hidden_act="silu",
    hidden_size=32,
    initializer_range=0.02,
    intermediate_size=24,
    max_position_embeddings=4096,
    num_attention_heads=4,
    num_hidden_layers=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-06,
    rope_scaling=None,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
    transformers_version="4.51.0",
    use_cache=True,
    vocab_size=64,
)
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192)
OLMO_YARN = dict(factor=8.0, original_max_position_embeddings=8192, attention_factor=1.2079441541679836)
OSS_YARN = dict(factor=32.0, original_max_position_embeddings=4096, truncate=False)
DEEPSEEK_YARN = dict(factor=40, mscale=0.707, mscale_all_dim=0.707, original_max_position_embeddings=4096)
BETAS = dict(beta_fast=32.0, beta_slow=1.0, rope_type="yarn")
MROPE = dict(mrope_interleaved=True, mrope_section=[11, 11, 10])
FACTORS = dict(short_factor=[1.0] * 3, long_factor=[1.0, 1.118320672, 43.4])
HUB: dict[str, dict[str, Any]] = {
    "Llama 3.2": dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        attention_bias=False,
        eos_token_id=[7, 8],
        head_dim=8,
        max_position_embeddings=131072,
        mlp_bias=False,
        pretraining_tp=1,
        rope_scaling={**LLAMA3, "rope_type": "llama3"},
        rope_theta=500000.0,
        tie_word_embeddings=True,
    ),
    "Mistral 7B 0.3": dict(architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=None),
    "Qwen 3": dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        attention_bias=False,
        head_dim=16,
        max_window_layers=28,
        sliding_window=None,
        use_sliding_window=False,
    ),
    "Qwen 3 30B-A3B": dict(
        architectures=["Qwen3MoeForCausalLM"],
        model_type="qwen3_moe",
        attention_bias=False,
        decoder_sparse_step=1,
        head_dim=16,
        max_window_layers=48,
        mlp_only_layers=[],
        moe_intermediate_size=12,
        norm_topk_prob=True,
        num_experts=6,
        num_experts_per_tok=2,
        output_router_logits=False,
        router_aux_loss_coef=0.001,
        sliding_window=None,
        use_sliding_window=False,
    ),
    "OLMo 2": dict(
        architectures=["Olmo2ForCausalLM"], model_type="olmo2", attention_bias=False, pad_token_id=3, rope_theta=500000
    ),
    "OLMo 3": dict(
        architectures=["Olmo3ForCausalLM"],
        model_type="olmo3",
        attention_bias=False,
        layer_types=[SLIDING, SLIDING, SLIDING, FULL],
        max_position_embeddings=65536,
        rope_scaling={**OLMO_YARN, **BETAS},
        rope_theta=500000,
        sliding_window=4096,
    ),
    "SmolLM3": dict(
        architectures=["SmolLM3ForCausalLM"],
        model_type="smollm3",
        attention_bias=False,
        bos_token_id=None,
        layer_types=[FULL] * 4,
        max_position_embeddings=65536,
        max_window_layers=28,
        mlp_bias=False,
        no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0],
        pretraining_tp=2,
        rope_theta=5000000.0,
        sliding_window=None,
        tie_word_embeddings=True,
        use_sliding_window=False,
    ),
    "Granite 3.3": dict(
        architectures=["GraniteForCausalLM"],
        model_type="granite",
        attention_bias=False,
        attention_multiplier=0.015625,
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        mlp_bias=False,
        residual_multiplier=0.22,
        rope_theta=10000000.0,
        tie_word_embeddings=True,
    ),
    "Phi-3 mini 4k": dict(
        architectures=["Phi3ForCausalLM"],
        model_type="phi3",
        auto_map={"AutoConfig": "configuration_phi3.Phi3Config"},
        attention_bias=False,
        embd_pdrop=0.0,
        num_key_value_heads=4,
        original_max_position_embeddings=4096,
        resid_pdrop=0.0,
        sliding_window=2047,
    ),
    "Phi-4 mini": dict(
        architectures=["Phi3ForCausalLM"],
        model_type="phi3",
        attention_bias=False,
        full_attn_mod=1,
        interpolate_factor=1,
        lm_head_bias=False,
        max_position_embeddings=131072,
        mlp_bias=False,
        original_max_position_embeddings=4096,
        partial_rotary_factor=0.75,
        rope_scaling={**FACTORS, "type": "longrope"},
        sliding_window=262144,
        tie_word_embeddings=True,
    ),
    "gpt-oss 20b": dict(
        architectures=["GptOssForCausalLM"],
        model_type="gpt_oss",
        attention_bias=True,
        experts_per_token=2,
        head_dim=16,
        initial_context_length=4096,
        layer_types=[SLIDING, FULL, SLIDING, FULL],
        max_position_embeddings=131072,
        num_experts_per_tok=2,
        num_local_experts=3,
        output_router_logits=False,
        quantization_config={"modules_to_not_convert": ["model.embed_tokens"], "quant_method": "mxfp4"},
        rope_scaling={**OSS_YARN, **BETAS},
        rope_theta=150000,
        router_aux_loss_coef=0.9,
        sliding_window=128,
        swiglu_limit=7.0,
    ),
    "DeepSeek-V2-Lite": dict(
        architectures=["DeepseekV2ForCausalLM"],
        model_type="deepseek_v2",
        attention_bias=False,
        auto_map={"AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"},
        aux_loss_alpha=0.001,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        max_position_embeddings=163840,
        moe_intermediate_size=12,
        moe_layer_freq=1,
        n_group=1,
        n_routed_experts=6,
        n_shared_experts=2,
        norm_topk_prob=False,
        num_experts_per_tok=3,
        num_key_value_heads=4,
        pretraining_tp=1,
        q_lora_rank=None,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        rope_scaling={**DEEPSEEK_YARN, "beta_fast": 32, "beta_slow": 1, "type": "yarn"},
        rope_theta=10000,
        routed_scaling_factor=1.0,
        scoring_func="softmax",
        seq_aux=True,
        topk_group=1,
        topk_method="greedy",
        v_head_dim=8,
    ),
    "Qwen3-Next": dict(
        architectures=["Qwen3NextForCausalLM"],
        model_type="qwen3_next",
        attention_bias=False,
        decoder_sparse_step=1,
        full_attention_interval=4,
        head_dim=16,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_value_head_dim=8,
        max_position_embeddings=262144,
        mlp_only_layers=[],
        moe_intermediate_size=12,
        norm_topk_prob=True,
        num_experts=6,
        num_experts_per_tok=2,
        output_router_logits=False,
        partial_rotary_factor=0.25,
        rope_theta=10000000,
        router_aux_loss_coef=0.001,
        shared_expert_intermediate_size=12,
    ),
    "Qwen 3.5": dict(
        architectures=["Qwen3_5ForCausalLM"],
        model_type="qwen3_5_text",
        attention_bias=False,
        attn_output_gate=True,
        full_attention_interval=4,
        head_dim=16,
        layer_types=["linear_attention"] * 3 + [FULL],
        linear_conv_kernel_dim=4,
        linear_key_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_value_head_dim=8,
        mamba_ssm_dtype="float32",
        max_position_embeddings=262144,
        mlp_only_layers=[],
        mtp_num_hidden_layers=1,
        mtp_use_dedicated_embeddings=False,
        rope_parameters={**MROPE, "partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_type": "default"},
        rope_theta=None,
    ),
    "Mixtral": dict(
        architectures=["MixtralForCausalLM"],
        model_type="mixtral",
        max_position_embeddings=32768,
        num_experts_per_tok=2,
        num_local_experts=3,
        output_router_logits=False,
        router_aux_loss_coef=0.02,
        rope_theta=1000000.0,
        sliding_window=None,
    ),
}
POSITIONS: dict[str, Positions] = {
    "Llama 3.2": Rotary(500000.0, Llama3(32.0)),
    "DeepSeek-V2-Lite": Rotary(10000.0, YaRN(40.0, 4096, attention_factor=1.0)),
    "OLMo 3": Rotary(500000.0, YaRN(8.0, 8192, attention_factor=1.2079441541679836)),
    "Phi-4 mini": PartialRotary(
        1e4, LongRoPE((1.0,) * 3, (1.0, 1.118320672, 43.4), 4096, attention_factor=(1 + 5 / 12) ** 0.5), 0.75
    ),
    "gpt-oss 20b": Rotary(150000.0, YaRN(32.0, 4096, truncate=False)),
    "Qwen3-Next": PartialRotary(1e7, fraction=0.25),
    "Qwen 3.5": PartialRotary(1e7, fraction=0.25),
}


@pytest.mark.filterwarnings("ignore:.*tools wrote it for themselves. auto_map")
@pytest.mark.parametrize("name", HUB)
def test_it_loads(name: str, tmp_path: Path) -> None:
    values = {
        field: value for field, value in {**COMMON, **HUB[name]}.items() if (field, value) != ("rope_theta", None)
    }
    architecture = architecture_of(values, Path("config.json"))
    cfg = architecture.read(architecture.fields(values, "config.json"))
    assert cfg.positions == (POSITIONS.get(name) or Rotary(float(values["rope_theta"])))
    assert (
        isinstance(cfg.ffn, Experts) == ("num_experts_per_tok" in values) and cfg.tied == values["tie_word_embeddings"]
    )
    Pretrained(cfg, lively(cfg), None, Transformer(cfg, SIMPLE), architecture=architecture).save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load(tmp_path).config == cfg


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LamaForCausalLM", "did you mean LlamaForCausalLM? "),
        ("llamaForCausalLM", "did you mean LlamaForCausalLM? "),
        ("MistalModel", "did you mean MistralModel? "),
        ("MixtralForTokenClassification", "of Mixtral it is MixtralForCausalLM or MixtralForSequenceClassification; "),
        ("XlmRobertaForMaskedLM", "did you mean XLMRobertaForMaskedLM? "),
        *((name, "") for name in ("AlbertForMaskedLM", "LlavaForConditionalGeneration")),
        *((name, "") for name in ("FlaubertModel", "PhiForCausalLM", "Qwen4ForCausalLM")),
        *((name, "") for name in ("Gemma5ForCausalLM", "OlmoForCausalLM", "Mistral3ForCausalLM", "None")),
    ],
)
def test_an_unknown_architecture_has_a_likely_hint_or_none(name: str, said: str) -> None:
    assert hint(name) == said
    with pytest.raises(ValueError, match=f"unknown architecture '{name}': .*known: GPT2LMHeadModel, "):
        architecture_of({"architectures": [name]}, Path("config.json"))
    assert name not in BY_NAME


@pytest.mark.parametrize("name", ["Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"])
def test_what_is_known_and_not_read_is_said(name: str) -> None:
    with pytest.raises(ValueError, match=f"config.json: {name} is not read: its "):
        architecture_of({"architectures": [name]}, Path("config.json"))
