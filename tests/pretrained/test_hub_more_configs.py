"""Configs of encoders, embedding models and the newest decoders as they lie on the hub, in small: each is read, and
loads with a line that says what was read."""

import json
from pathlib import Path
from typing import Any

import pytest

from lm.model import count
from lm.model.config import ModelConfig
from lm.model.experts import Experts
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, load
from lm.pretrained.known import architecture_of
from tests.model.reference import SIMPLE, lively
from tests.pretrained.test_encoders import DISTILBERT, MODERNBERT

FULL, SLIDING = "full_attention", "sliding_attention"
BERT = dict(
    attention_probs_dropout_prob=0.1,
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    hidden_size=32,
    initializer_range=0.02,
    intermediate_size=24,
    num_attention_heads=4,
    num_hidden_layers=2,
    position_embedding_type="absolute",
    use_cache=True,
    vocab_size=64,
)
YARN = dict(beta_fast=32, beta_slow=1, factor=40, mscale=1.0, mscale_all_dim=1.0, type="yarn")
HUB: dict[str, dict[str, Any]] = {
    "DistilBERT": DISTILBERT
    | dict(
        architectures=["DistilBertForMaskedLM"],
        dim=32,
        hidden_dim=24,
        n_heads=4,
        n_layers=2,
        vocab_size=64,
    ),
    "XLM-R": dict(
        **BERT,
        architectures=["XLMRobertaForMaskedLM"],
        bos_token_id=0,
        eos_token_id=2,
        layer_norm_eps=1e-05,
        max_position_embeddings=514,
        model_type="xlm-roberta",
        output_past=True,
        pad_token_id=1,
        type_vocab_size=1,
    ),
    "mT5": dict(
        _name_or_path="mt5-small",
        architectures=["MT5ForConditionalGeneration"],
        d_ff=24,
        d_kv=8,
        d_model=32,
        decoder_start_token_id=0,
        dropout_rate=0.1,
        eos_token_id=1,
        feed_forward_proj="gated-gelu",
        initializer_factor=1.0,
        is_encoder_decoder=True,
        layer_norm_epsilon=1e-06,
        model_type="mt5",
        num_decoder_layers=2,
        num_heads=6,
        num_layers=2,
        pad_token_id=0,
        relative_attention_num_buckets=32,
        tie_word_embeddings=False,
        tokenizer_class="T5Tokenizer",
        use_cache=True,
        vocab_size=64,
    ),
    "ModernBERT": MODERNBERT
    | dict(
        bos_token_id=50,
        cls_token_id=50,
        eos_token_id=51,
        hidden_size=32,
        intermediate_size=24,
        num_attention_heads=4,
        num_hidden_layers=4,
        pad_token_id=52,
        sep_token_id=51,
        vocab_size=64,
    ),
    "EmbeddingGemma": dict(
        _sliding_window_pattern=6,
        architectures=["Gemma3TextModel"],
        attention_bias=False,
        attention_dropout=0.0,
        attn_logit_softcapping=None,
        bos_token_id=2,
        dtype="float32",
        eos_token_id=1,
        final_logit_softcapping=None,
        head_dim=16,
        hidden_activation="gelu_pytorch_tanh",
        hidden_size=32,
        initializer_range=0.02,
        intermediate_size=24,
        layer_types=[SLIDING] * 5 + [FULL],
        max_position_embeddings=2048,
        model_type="gemma3_text",
        num_attention_heads=3,
        num_hidden_layers=6,
        num_key_value_heads=1,
        pad_token_id=0,
        query_pre_attn_scalar=16,
        rms_norm_eps=1e-06,
        rope_local_base_freq=10000.0,
        rope_scaling=None,
        rope_theta=1000000.0,
        sliding_window=512,
        use_bidirectional_attention=True,
        use_cache=True,
        vocab_size=64,
    ),
    "Gemma 4 26B-A4B": dict(
        architectures=["Gemma4ForConditionalGeneration"],
        audio_config=None,
        audio_token_id=62,
        boa_token_id=58,
        boi_token_id=59,
        dtype="bfloat16",
        eoa_token_id=57,
        eoi_token_id=56,
        eos_token_id=[1, 3],
        image_token_id=60,
        initializer_range=0.02,
        model_type="gemma4",
        text_config=dict(
            attention_bias=False,
            attention_dropout=0.0,
            attention_k_eq_v=True,
            bos_token_id=2,
            dtype="bfloat16",
            enable_moe_block=True,
            eos_token_id=1,
            final_logit_softcapping=30.0,
            global_head_dim=16,
            head_dim=8,
            hidden_activation="gelu_pytorch_tanh",
            hidden_size=32,
            hidden_size_per_layer_input=0,
            initializer_range=0.02,
            intermediate_size=24,
            layer_types=[SLIDING] * 5 + [FULL],
            max_position_embeddings=262144,
            model_type="gemma4_text",
            moe_intermediate_size=12,
            num_attention_heads=4,
            num_experts=6,
            num_global_key_value_heads=1,
            num_hidden_layers=6,
            num_key_value_heads=2,
            num_kv_shared_layers=0,
            pad_token_id=0,
            rms_norm_eps=1e-06,
            rope_parameters={
                FULL: dict(partial_rotary_factor=0.25, rope_theta=1000000.0, rope_type="proportional"),
                SLIDING: dict(rope_theta=10000.0, rope_type="default"),
            },
            sliding_window=1024,
            tie_word_embeddings=True,
            top_k_experts=2,
            use_bidirectional_attention="vision",
            use_cache=True,
            use_double_wide_mlp=False,
            vocab_size=64,
            vocab_size_per_layer_input=64,
        ),
        tie_word_embeddings=True,
        video_token_id=61,
        vision_config=dict(hidden_size=16, model_type="gemma4_vision"),
        vision_soft_tokens_per_image=280,
    ),
    "DeepSeek-V3": dict(
        architectures=["DeepseekV3ForCausalLM"],
        attention_bias=False,
        attention_dropout=0.0,
        auto_map={"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
        bos_token_id=0,
        eos_token_id=1,
        ep_size=1,
        first_k_dense_replace=1,
        hidden_act="silu",
        hidden_size=32,
        initializer_range=0.02,
        intermediate_size=24,
        kv_lora_rank=16,
        max_position_embeddings=163840,
        model_type="deepseek_v3",
        moe_intermediate_size=12,
        moe_layer_freq=1,
        n_group=2,
        n_routed_experts=8,
        n_shared_experts=1,
        norm_topk_prob=True,
        num_attention_heads=4,
        num_experts_per_tok=4,
        num_hidden_layers=3,
        num_key_value_heads=4,
        num_nextn_predict_layers=1,
        q_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        rms_norm_eps=1e-06,
        rope_scaling={**YARN, "original_max_position_embeddings": 4096},
        rope_theta=10000,
        routed_scaling_factor=2.5,
        scoring_func="sigmoid",
        tie_word_embeddings=False,
        topk_group=1,
        topk_method="noaux_tc",
        torch_dtype="bfloat16",
        use_cache=True,
        v_head_dim=8,
        vocab_size=64,
    ),
}
WHAT: dict[str, Any] = {
    "DistilBERT": lambda cfg: not cfg.causal and cfg.context == 512,
    "XLM-R": lambda cfg: not cfg.causal and cfg.context == 512,  # less the two places that padding has
    "mT5": lambda cfg: cfg.has_encoder and not cfg.tied,
    "ModernBERT": lambda cfg: not cfg.causal and [kind.window for kind in cfg.by_layer] == [0, 65, 65, 0],
    "EmbeddingGemma": lambda cfg: not cfg.causal and cfg.output.logit_count(64) == 0,
    "Gemma 4 26B-A4B": lambda cfg: cfg.ffn.active_mlp == 2 * 12 + 24 and cfg.attention.keys_are_values,
    "DeepSeek-V3": lambda cfg: [isinstance(slot.ffn, Experts) for slot in cfg.by_layer] == [False, True, True],
}


@pytest.mark.filterwarnings("ignore:.*the text model alone is read")
@pytest.mark.parametrize("name", HUB)
def test_it_loads_and_says_what_was_read(name: str, tmp_path: Path) -> None:
    architecture = architecture_of(HUB[name], Path("config.json"))
    cfg: ModelConfig = architecture.read(architecture.fields(HUB[name], "config.json"))
    assert WHAT[name](cfg), cfg
    Pretrained(cfg, lively(cfg), None, Transformer(cfg, SIMPLE), architecture=architecture).save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HUB[name]))
    model = load(tmp_path)
    assert model.config == cfg
    assert model.summary.startswith(f"{architecture.name}: {count.parameters(cfg):,} parameters, stored as F32")
