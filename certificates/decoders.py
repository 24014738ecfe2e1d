"""Cases of certificates/cases.py: Llama's relatives, models with experts, and models without an output.

Each is its shape in words, its architecture, and what its config has beside the fields that all of them share.
"""

from typing import Any

YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
OLMO3_YARN = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}
LONG = dict(short_factor=[1.0, 1.25, 1.5], long_factor=[1.5, 3.0, 7.0])
GRANITE = dict(embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.0625)
GRANITE_TIED = dict(attention_bias=True, mlp_bias=True, logits_scaling=3.0, tie_word_embeddings=True)
MLA = dict(
    num_key_value_heads=4,
    q_lora_rank=None,
    kv_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    moe_intermediate_size=24,
    n_routed_experts=8,
    num_experts_per_tok=3,
)
GROUPS = dict(n_group=4, topk_group=2)
QWEN2_MOE = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=40)
QWEN_MOE = dict(head_dim=12, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24)
HYBRID = dict(
    head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=6,
    linear_key_head_dim=12,
    linear_value_head_dim=7,
    num_hidden_layers=4,
    rms_norm_eps=0.1,  # what little the first tokens read of a state is not to be blown up, rounding and all
)
HYBRID_EXPERTS = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24)
HYBRID_EXPERTS |= dict(shared_expert_intermediate_size=40)
ODD_HYBRID = HYBRID | dict(num_key_value_heads=1, linear_num_key_heads=3, linear_num_value_heads=3)
ODD_HYBRID |= dict(linear_conv_kernel_dim=2, head_dim=24)
HALF = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 2, 2]}
VISION_PART = dict(
    depth=1, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, num_position_embeddings=16
)
TEXT_SIZES = dict(vocab_size=96, hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=2)
TEXT_SIZES |= dict(max_position_embeddings=64, bos_token_id=1, eos_token_id=None, pad_token_id=0)
HYBRID_TEXT = TEXT_SIZES | HYBRID

S, F = "sliding_attention", "full_attention"
# small heads: logits of attention are not divided by the root of their size
GEMMA4 = dict(head_dim=4, global_head_dim=8, sliding_window=7, hidden_size_per_layer_input=0, rms_norm_eps=0.1)
PER_LAYER = dict(hidden_size_per_layer_input=6, vocab_size_per_layer_input=96, num_kv_shared_layers=3)
PER_LAYER |= dict(num_hidden_layers=5, layer_types=[S, F, F, S, F], final_logit_softcapping=30.0)
GEMMA4_ROPE = {F: {"rope_type": "default", "rope_theta": 5e4}, S: {"rope_type": "default", "rope_theta": 1e3}}
GEMMA4_EXPERTS = dict(enable_moe_block=True, num_experts=5, top_k_experts=2, moe_intermediate_size=24)
GEMMA4S: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "embeddings of layers, three that read others, twice as wide",
        "Gemma4ForCausalLM",
        GEMMA4 | PER_LAYER | dict(use_double_wide_mlp=True),
    ),
    (
        "keys are values, one full kv head, untied",
        "Gemma4ForCausalLM",
        GEMMA4
        | dict(attention_k_eq_v=True, num_global_key_value_heads=1, layer_types=[S, F, F])
        | dict(attention_bias=True, tie_word_embeddings=False),
    ),
    (
        "whole heads turned, two that read others",
        "Gemma4ForCausalLM",
        GEMMA4
        | PER_LAYER
        | dict(num_kv_shared_layers=2, rope_parameters=GEMMA4_ROPE, num_key_value_heads=4)
        | dict(layer_types=[S, F, S, S, F], hidden_activation="silu"),
    ),
    (
        "5 experts, keys are values, one full kv head",
        "Gemma4ForCausalLM",
        GEMMA4 | GEMMA4_EXPERTS | dict(attention_k_eq_v=True, num_global_key_value_heads=1, layer_types=[S, S, F]),
    ),
    (
        "3 of 7 experts, embeddings of layers, two that read others, twice as wide",
        "Gemma4ForCausalLM",
        GEMMA4
        | PER_LAYER
        | GEMMA4_EXPERTS
        | dict(num_experts=7, top_k_experts=3, moe_intermediate_size=20, use_double_wide_mlp=True)
        | dict(num_hidden_layers=4, layer_types=[S, F, S, F], num_kv_shared_layers=2),
    ),
)

HYBRIDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("three value heads a key head", "Qwen3_5ForCausalLM", HYBRID),
    (
        "full layers first, half of a head turned, tied",
        "Qwen3_5ForCausalLM",
        ODD_HYBRID
        | dict(num_hidden_layers=3, layer_types=["full_attention"] + ["linear_attention"] * 2, tie_word_embeddings=True)
        | dict(rope_parameters=HALF),
    ),
    ("5 experts and a shared one", "Qwen3_5MoeForCausalLM", HYBRID | HYBRID_EXPERTS),
    ("as many value heads", "Qwen3_5MoeForCausalLM", ODD_HYBRID | HYBRID_EXPERTS | dict(num_experts_per_tok=3)),
    ("5 experts and a shared one", "Qwen3NextForCausalLM", HYBRID | HYBRID_EXPERTS),
    (
        "a dense layer, weights as they are, as many value heads",
        "Qwen3NextForCausalLM",
        ODD_HYBRID | HYBRID_EXPERTS | dict(mlp_only_layers=[1], norm_topk_prob=False, partial_rotary_factor=0.5),
    ),
)

DECODERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("bare", "LlamaModel", {}),
    ("bare, head size 20, biases", "LlamaModel", dict(head_dim=20, attention_bias=True)),
    ("bare, window of 9", "MistralModel", dict(sliding_window=9)),
    ("bare", "Qwen2Model", {}),
    ("bare, head size 24", "Qwen3Model", dict(head_dim=24, use_sliding_window=False)),
    ("bare, 7 layers, window of 7", "Gemma3TextModel", dict(head_dim=12, sliding_window=7, num_hidden_layers=7)),
    (
        "bare, in both directions, window of 10",
        "Gemma3TextModel",
        dict(
            head_dim=12,
            sliding_window=10,
            use_bidirectional_attention=True,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    ("as many kv heads", "Olmo2ForCausalLM", dict(num_key_value_heads=4)),
    ("grouped, biases, YaRN", "Olmo2ForCausalLM", dict(attention_bias=True, head_dim=12, rope_parameters=YARN)),
    ("5 layers, window of 7", "Olmo3ForCausalLM", dict(num_hidden_layers=5, sliding_window=7)),
    (
        "YaRN in the full layers, tied",
        "Olmo3ForCausalLM",
        dict(
            sliding_window=9,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            rope_parameters=OLMO3_YARN,
            tie_word_embeddings=True,
        ),
    ),
    ("5 layers, no positions in the fourth", "SmolLM3ForCausalLM", dict(num_hidden_layers=5)),
    (
        "no positions in the first two, windows there, biases",
        "SmolLM3ForCausalLM",
        dict(no_rope_layers=[0, 0, 1], use_sliding_window=True, sliding_window=9, attention_bias=True, mlp_bias=True),
    ),
    ("multipliers", "GraniteForCausalLM", GRANITE),
    ("biases, tied", "GraniteForCausalLM", GRANITE | GRANITE_TIED),
    ("window of 9", "Phi3ForCausalLM", dict(sliding_window=9)),
    (
        "three quarters of a head turned, LongRoPE",
        "Phi3ForCausalLM",
        dict(
            original_max_position_embeddings=16,
            rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, **LONG},
        ),
    ),
    ("5 experts", "Qwen3MoeForCausalLM", QWEN_MOE),
    (
        "a dense layer first, weights that sum to 1, biases",
        "Qwen3MoeForCausalLM",
        QWEN_MOE | dict(mlp_only_layers=[0], norm_topk_prob=True, attention_bias=True, num_experts_per_tok=3),
    ),
    ("5 experts and a shared one", "Qwen2MoeForCausalLM", QWEN2_MOE),
    (
        "every second layer dense, windows, weights that sum to 1",
        "Qwen2MoeForCausalLM",
        QWEN2_MOE | dict(decoder_sparse_step=2, use_sliding_window=True, sliding_window=9, norm_topk_prob=True),
    ),
    ("experts in all layers", "DeepseekV2ForCausalLM", MLA | dict(n_shared_experts=1)),
    (
        "a dense layer, groups of experts",
        "DeepseekV2ForCausalLM",
        MLA | GROUPS | dict(first_k_dense_replace=1, topk_method="group_limited_greedy", routed_scaling_factor=1.5),
    ),
    ("a dense layer, 4 groups", "DeepseekV3ForCausalLM", MLA | GROUPS | dict(first_k_dense_replace=1)),
    (
        "low-rank queries, one group, weights as they are, YaRN",
        "DeepseekV3ForCausalLM",
        MLA
        | dict(first_k_dense_replace=0, n_group=1, topk_group=1, norm_topk_prob=False, q_lora_rank=14)
        | dict(rope_parameters=YARN | dict(mscale=1.0, mscale_all_dim=1.0)),
    ),
)
