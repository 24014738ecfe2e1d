"""What transformers' classes take a field of config.json for where it is missing, of the fields that are read.

The tables are those of transformers 5; tests/pretrained/test_defaults.py holds them against what the classes said.
"""

from typing import Any, NamedTuple


class Nullable(NamedTuple):
    """The default of a field that may be null too, which is not the same unless it is None."""

    default: Any = None


GPT2 = dict(
    vocab_size=50257,
    n_positions=1024,
    n_embd=768,
    n_layer=12,
    n_head=12,
    n_inner=Nullable(),
    activation_function="gelu_new",
    layer_norm_epsilon=1e-5,
    scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False,
    reorder_and_upcast_attn=False,
    tie_word_embeddings=True,
)

DECODER: dict[str, Any] = dict(  # what Llama and its relatives have in common
    rope_theta=10000.0,
    rope_parameters=Nullable(),
    rope_scaling=Nullable(),
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=Nullable(),
    head_dim=Nullable(),
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
)
LLAMA = DECODER | dict(hidden_act="silu", attention_bias=False, mlp_bias=False)
MISTRAL = DECODER | dict(
    hidden_act="silu",
    intermediate_size=14336,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    sliding_window=Nullable(4096),
)
MIXTRAL = MISTRAL | dict(
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    sliding_window=Nullable(),
    num_local_experts=8,
    num_experts_per_tok=2,
    router_aux_loss_coef=0.001,
)
QWEN2 = DECODER | dict(
    hidden_act="silu",
    vocab_size=151936,
    intermediate_size=22016,
    num_key_value_heads=Nullable(32),
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=Nullable(4096),
    max_window_layers=28,
    layer_types=Nullable(),
)
QWEN3 = QWEN2 | dict(head_dim=128, attention_bias=False)
GPT_OSS = MIXTRAL | dict(
    vocab_size=201088,
    hidden_size=2880,
    intermediate_size=2880,
    num_hidden_layers=36,
    num_attention_heads=64,
    head_dim=64,
    rope_theta=150000.0,
    attention_bias=True,
    sliding_window=Nullable(128),
    layer_types=Nullable(),
    num_local_experts=128,
    num_experts_per_tok=4,
    swiglu_alpha=1.702,
    swiglu_limit=7.0,
)
DEEPSEEK_V2 = LLAMA | dict(
    vocab_size=102400,
    q_lora_rank=Nullable(1536),
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    first_k_dense_replace=0,
    moe_intermediate_size=1407,
    n_routed_experts=64,
    n_shared_experts=2,
    num_experts_per_tok=Nullable(),
    norm_topk_prob=Nullable(False),
    routed_scaling_factor=1.0,
    n_group=Nullable(),
    topk_group=Nullable(),
    topk_method=Nullable("greedy"),
)
DEEPSEEK_V3 = DECODER | dict(
    hidden_act="silu",
    attention_bias=False,
    vocab_size=129280,
    hidden_size=7168,
    intermediate_size=18432,
    num_hidden_layers=61,
    num_attention_heads=128,
    num_key_value_heads=Nullable(128),
    max_position_embeddings=4096,
    q_lora_rank=Nullable(1536),
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=Nullable(128),
    rope_interleave=Nullable(True),
    first_k_dense_replace=Nullable(3),
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=Nullable(8),
    norm_topk_prob=Nullable(True),
    routed_scaling_factor=2.5,
    n_group=Nullable(8),
    topk_group=Nullable(4),
)
QWEN3_MOE = QWEN3 | dict(
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=24,
    num_key_value_heads=4,
    head_dim=Nullable(),
    decoder_sparse_step=1,
    moe_intermediate_size=768,
    num_experts_per_tok=8,
    num_experts=128,
    norm_topk_prob=False,
    router_aux_loss_coef=0.001,
    mlp_only_layers=Nullable(),
)
del QWEN3_MOE["max_window_layers"], QWEN3_MOE["layer_types"]
QWEN2_MOE = QWEN2 | dict(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=Nullable(16),
    qkv_bias=True,
    decoder_sparse_step=1,
    moe_intermediate_size=1408,
    shared_expert_intermediate_size=5632,
    num_experts_per_tok=4,
    num_experts=60,
    norm_topk_prob=False,
    router_aux_loss_coef=0.001,
    mlp_only_layers=Nullable(),
)
HYBRID = DECODER | dict(  # what Qwen3-Next and Qwen 3.5 have in common
    hidden_act="silu",
    hidden_size=2048,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=256,
    max_position_embeddings=32768,
    attention_bias=False,
    layer_types=Nullable(),
    linear_num_key_heads=16,
    linear_num_value_heads=32,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    linear_conv_kernel_dim=4,
)
OF_HYBRID_EXPERTS: dict[str, Any] = dict(
    moe_intermediate_size=512,
    shared_expert_intermediate_size=512,
    num_experts_per_tok=8,
    num_experts=256,
    router_aux_loss_coef=0.001,
)
QWEN3_NEXT = (
    HYBRID
    | OF_HYBRID_EXPERTS
    | dict(
        vocab_size=151936,
        intermediate_size=5632,
        num_hidden_layers=48,
        decoder_sparse_step=1,
        num_experts_per_tok=10,
        num_experts=512,
        norm_topk_prob=True,
        mlp_only_layers=Nullable(),
    )
)
QWEN3_5 = HYBRID | dict(vocab_size=248320, hidden_size=4096, intermediate_size=12288, num_key_value_heads=4)
QWEN3_5_MOE = HYBRID | OF_HYBRID_EXPERTS | dict(vocab_size=248320, num_hidden_layers=40)
del QWEN3_5_MOE["intermediate_size"]
QWEN3_5_WITH_VISION = dict(
    tie_word_embeddings=False,
    image_token_id=248056,
    video_token_id=248057,
    vision_start_token_id=248053,
    vision_end_token_id=248054,
)
OLMO2 = DECODER | dict(hidden_act="silu", vocab_size=50304, rms_norm_eps=1e-5, attention_bias=False)
OLMO3 = OLMO2 | dict(rope_theta=5e5, sliding_window=Nullable(4096), layer_types=Nullable())
SMOLLM3 = LLAMA | dict(
    rope_theta=2e6,
    vocab_size=128256,
    hidden_size=2048,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=Nullable(4),
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=Nullable(),
    no_rope_layers=Nullable(),
    no_rope_layer_interval=4,
    layer_types=Nullable(),
    tie_word_embeddings=True,
)
GRANITE = LLAMA | dict(embedding_multiplier=1.0, logits_scaling=1.0, residual_multiplier=1.0, attention_multiplier=1.0)
PHI3 = DECODER | dict(
    hidden_act="silu",
    vocab_size=32064,
    hidden_size=3072,
    intermediate_size=8192,
    max_position_embeddings=4096,
    original_max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    sliding_window=Nullable(),
)

GEMMA = DECODER | dict(
    attention_bias=False,
    vocab_size=256000,
    hidden_size=3072,
    intermediate_size=24576,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    head_dim=256,
    hidden_act="gelu_pytorch_tanh",
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
GEMMA2 = DECODER | dict(
    attention_bias=False,
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    hidden_activation="gelu_pytorch_tanh",
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    query_pre_attn_scalar=256,
    sliding_window=Nullable(4096),
    layer_types=Nullable(),
    attn_logit_softcapping=Nullable(50.0),
    final_logit_softcapping=Nullable(30.0),
)
GEMMA3 = GEMMA2 | dict(
    vocab_size=262208,
    max_position_embeddings=131072,
    rope_theta=1e6,
    rope_local_base_freq=1e4,
    sliding_window_pattern=6,
    attn_logit_softcapping=Nullable(),
    final_logit_softcapping=Nullable(),
)
# of the two sides, those of Gemma 2 and 3
T5GEMMA = dict(is_encoder_decoder=True, tie_word_embeddings=True, classifier_dropout_rate=0.0, vocab_size=256000)
T5GEMMA2 = dict(
    is_encoder_decoder=True,
    tie_word_embeddings=True,
    classifier_dropout_rate=0.0,
    image_token_index=256001,
    eoi_token_index=Nullable(),
)
GEMMA4 = dict(
    vocab_size=262144,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=30,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    hidden_activation="gelu_pytorch_tanh",
    max_position_embeddings=131072,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    rope_parameters=Nullable(),
    attention_bias=False,
    sliding_window=512,
    layer_types=Nullable(),
    final_logit_softcapping=Nullable(),
    use_bidirectional_attention=Nullable(),
    vocab_size_per_layer_input=262144,
    hidden_size_per_layer_input=256,
    attention_k_eq_v=False,
    num_kv_shared_layers=0,
    enable_moe_block=False,
    use_double_wide_mlp=False,
    num_experts=Nullable(),
    top_k_experts=Nullable(),
    moe_intermediate_size=Nullable(),
)
GEMMA4_WITH_VISION = dict(tie_word_embeddings=True)
GEMMA3_WITH_VISION = dict(
    tie_word_embeddings=Nullable(True),
    mm_tokens_per_image=Nullable(256),
    boi_token_index=Nullable(255999),
    eoi_token_index=Nullable(256000),
    image_token_index=Nullable(262144),
)
SIGLIP = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_channels=3,
    image_size=224,
    patch_size=16,
    hidden_act="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
)
PALIGEMMA = dict(image_token_index=256000, projection_dim=2048, tie_word_embeddings=True)
PALIGEMMA_SIGLIP = SIGLIP | dict(
    hidden_size=1152, intermediate_size=4096, num_hidden_layers=27, num_attention_heads=16, patch_size=14
)
PALIGEMMA_TEXT = GEMMA | dict(
    hidden_size=2048, num_hidden_layers=18, intermediate_size=16384, num_attention_heads=8, num_key_value_heads=1
)
PALIGEMMA_TEXT |= dict(vocab_size=257152, head_dim=256)

T5 = dict(
    vocab_size=32128,
    d_model=512,
    d_kv=64,
    d_ff=2048,
    num_layers=6,
    num_decoder_layers=Nullable(),
    num_heads=8,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    feed_forward_proj="relu",
    is_encoder_decoder=True,
    is_decoder=False,
)
UMT5 = T5 | dict(vocab_size=250112, d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu")
MT5 = UMT5 | dict(tie_word_embeddings=True)

BERT = dict(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    tie_word_embeddings=True,
)
XLM_ROBERTA = BERT | dict(pad_token_id=Nullable(1))
ROBERTA = XLM_ROBERTA | dict(vocab_size=50265)
DISTILBERT = dict(
    vocab_size=30522,
    max_position_embeddings=512,
    n_layers=6,
    n_heads=12,
    dim=768,
    hidden_dim=3072,
    activation="gelu",
    tie_word_embeddings=True,
)
MODERNBERT = dict(
    vocab_size=50368,
    hidden_size=768,
    intermediate_size=1152,
    num_hidden_layers=22,
    num_attention_heads=12,
    hidden_activation="gelu",
    max_position_embeddings=8192,
    norm_eps=1e-5,
    norm_bias=False,
    attention_bias=False,
    mlp_bias=False,
    decoder_bias=True,
    layer_types=Nullable(),
    rope_parameters=Nullable(),
    rope_scaling=Nullable(),
    global_rope_theta=160000.0,
    local_rope_theta=10000.0,
    local_attention=128,
    classifier_pooling="cls",
    classifier_activation="gelu",
    classifier_bias=False,
    tie_word_embeddings=True,
)
