"""The small checkpoints of the certificate: every architecture in several odd shapes, as fields of its config.json.

Neither PyTorch nor JAX is imported here: both sides and the tests read it.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from certificates.decoders import (
    DECODERS,
    GEMMA4,
    GEMMA4_EXPERTS,
    GEMMA4S,
    HYBRID_EXPERTS,
    HYBRID_TEXT,
    HYBRIDS,
    PER_LAYER,
    TEXT_SIZES,
    VISION_PART,
)

V, T = 96, 40  # vocabulary; tokens of a sequence


class Case(NamedTuple):
    """One checkpoint: `shape` in words, `architecture` in transformers, fields of its config, what is asked of it."""

    shape: str
    architecture: str
    fields: dict[str, Any]
    length: int = T
    cached: bool = True  # dynamic scaling turns the same token by another angle once the text is longer

    @property
    def is_encoder(self) -> bool:
        """Whether it is an encoder alone, which continues nothing."""
        return "bert" in self.architecture.lower() or self.architecture.endswith("EncoderModel")

    @property
    def pad(self) -> int:
        """The id of padding, RoBERTa's where nothing is said."""
        return int(self.fields.get("pad_token_id", 1))

    @property
    def name(self) -> str:
        """A folder's name."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.architecture} {self.shape}").strip("-")

    def named(self, words: Sequence[str]) -> bool:
        """Whether one of `words` is in its name; any case, where there are none."""
        return not words or any(word in self.name for word in words)


LLAMA = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)


def rope(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    """A field rope_parameters."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def llama(shape: str, architecture: str = "LlamaForCausalLM", **fields: Any) -> Case:
    """A case of Llama's kind; fields of 16 tokens' original context meet texts of 40."""
    return Case(shape, architecture, {**LLAMA, **fields})


DEEPSEEK = dict(
    num_key_value_heads=4,
    first_k_dense_replace=3,
    q_lora_rank=None,
    kv_lora_rank=20,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    rms_norm_eps=1e-5,
)
GEMMA = dict(head_dim=12, pad_token_id=0)
TEXT = {  # of a model that also reads images
    **{name: LLAMA[name] for name in ("hidden_size", "intermediate_size", "max_position_embeddings", "bos_token_id")},
    **GEMMA,
    "vocab_size": V,
    "num_hidden_layers": 3,
    "sliding_window_pattern": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 7,
    "eos_token_id": None,
}
VISION = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=28)
VISION |= dict(patch_size=14, model_type="siglip_vision_model", vision_use_head=False)
MARKS = dict(mm_tokens_per_image=1, image_token_index=90, boi_token_index=91, eoi_token_index=92)
SCALED_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
QWEN = dict(head_dim=24, use_sliding_window=False)
OSS = dict(head_dim=8, num_local_experts=5, num_experts_per_tok=2, sliding_window=7)
GPT2 = dict(vocab_size=V, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=None)
T5 = dict(vocab_size=V, d_model=32, d_kv=12, d_ff=56, num_layers=2, num_heads=4, eos_token_id=None)
T5["decoder_start_token_id"] = 0
BERT = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
)
ROBERTA = {**BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
DISTILBERT = dict(vocab_size=V, dim=32, hidden_dim=56, n_layers=3, n_heads=4, max_position_embeddings=64)
MODERNBERT = {**BERT, "num_hidden_layers": 5, "local_attention": 6, "pad_token_id": 0, "bos_token_id": 1}
MODERNBERT |= dict(eos_token_id=2, cls_token_id=1, sep_token_id=2)

CASES = (
    Case("plain", "GPT2LMHeadModel", GPT2),
    Case("wide feed-forward, one head", "GPT2LMHeadModel", {**GPT2, "n_head": 1, "n_inner": 72}),
    Case("untied", "GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False}),
    llama("as many kv heads", num_key_value_heads=4, num_attention_heads=4),
    llama("grouped, head size 20, tied", head_dim=20, tie_word_embeddings=True),
    llama("one kv head, biases", num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    llama("linear", **rope("linear", factor=3.0)),
    llama("dynamic", max_position_embeddings=24, **rope("dynamic", factor=2.0))._replace(cached=False),
    llama(
        "llama3",
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
    llama("YaRN", **rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    llama(
        "YaRN with factors",
        **rope(
            "yarn",
            theta=5000.0,
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=8.0,
            beta_slow=0.5,
            attention_factor=0.9,
        ),
    ),
    llama("window of 9", "MistralForCausalLM", sliding_window=9),
    llama("no window, head size 16", "MistralForCausalLM", sliding_window=None, head_dim=16),
    llama("4 experts", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
    llama("7 experts, 3 chosen", "MixtralForCausalLM", num_local_experts=7, num_experts_per_tok=3, head_dim=16),
    llama("biases on q, k, v", "Qwen2ForCausalLM"),
    llama(
        "windows from layer 1 on",
        "Qwen2ForCausalLM",
        use_sliding_window=True,
        sliding_window=9,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    llama("head size 24", "Qwen3ForCausalLM", **QWEN),
    llama("tied, biases", "Qwen3ForCausalLM", **QWEN, tie_word_embeddings=True, attention_bias=True),
    llama("5 experts, window of 7", "GptOssForCausalLM", **OSS),
    llama("theta alone", "GptOssForCausalLM", **{**OSS, "num_hidden_layers": 4}, **rope("default")),
    llama("dense layers", "DeepseekV2ForCausalLM", **DEEPSEEK),
    llama(
        "low-rank queries, values longer than keys, YaRN",
        "DeepseekV2ForCausalLM",
        **DEEPSEEK
        | dict(hidden_size=36, num_attention_heads=3, num_key_value_heads=3, q_lora_rank=14, kv_lora_rank=10)
        | dict(qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=14),
        **rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.8, mscale_all_dim=0.5),
    ),
    llama("one kv head", "GemmaForCausalLM", **GEMMA, num_key_value_heads=1),
    llama("grouped, untied", "GemmaForCausalLM", **GEMMA, tie_word_embeddings=False),
    llama("window of 9", "Gemma2ForCausalLM", **GEMMA, sliding_window=9, query_pre_attn_scalar=20),
    llama(
        "without caps",
        "Gemma2ForCausalLM",
        **GEMMA,
        sliding_window=9,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
    llama("8 layers, window of 7", "Gemma3ForCausalLM", **{**GEMMA, "num_hidden_layers": 8}, sliding_window=7),
    llama(
        "scaled, 3 layers",
        "Gemma3ForCausalLM",
        **GEMMA,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=SCALED_ROPE,
    ),
    Case("text half", "Gemma3ForConditionalGeneration", {"text_config": TEXT, "vision_config": VISION, **MARKS}),
    Case("1.0", "T5ForConditionalGeneration", {**T5, "tie_word_embeddings": True}),
    Case(
        "1.1, 3 encoder layers",
        "T5ForConditionalGeneration",
        {
            **T5,
            "feed_forward_proj": "gated-gelu",
            "num_layers": 3,
            "num_decoder_layers": 2,
            "tie_word_embeddings": False,
        },
    ),
    Case(
        "few buckets",
        "T5ForConditionalGeneration",
        {**T5, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
    ),
    Case("output", "BertForMaskedLM", BERT),
    Case("untied", "BertForMaskedLM", {**BERT, "tie_word_embeddings": False}),
    Case("three token types, relu", "BertForPreTraining", {**BERT, "type_vocab_size": 3, "hidden_act": "relu"}),
    Case("untied", "BertForPreTraining", {**BERT, "tie_word_embeddings": False}),
    Case("bare", "BertModel", {**BERT, "num_attention_heads": 2}),
    Case("bare", "GPT2Model", GPT2),
    *(llama(shape, architecture, **fields) for shape, architecture, fields in DECODERS),
    Case("padding 1", "RobertaForMaskedLM", ROBERTA),
    Case(
        "padding 3, untied, relu",
        "RobertaForMaskedLM",
        {**ROBERTA, "pad_token_id": 3, "tie_word_embeddings": False, "hidden_act": "relu"},
    ),
    Case("bare, two token types", "RobertaModel", {**ROBERTA, "type_vocab_size": 2}),
    Case("one head", "XLMRobertaForMaskedLM", {**ROBERTA, "num_attention_heads": 1}),
    Case("bare", "XLMRobertaModel", ROBERTA),
    Case("output", "CamembertForMaskedLM", ROBERTA),
    Case("bare", "CamembertModel", {**ROBERTA, "num_attention_heads": 2}),
    Case("output", "DistilBertForMaskedLM", DISTILBERT),
    Case("untied, relu", "DistilBertForMaskedLM", {**DISTILBERT, "activation": "relu", "tie_word_embeddings": False}),
    Case("bare", "DistilBertModel", {**DISTILBERT, "n_heads": 2}),
    Case("window of 3 on each side", "ModernBertForMaskedLM", MODERNBERT),
    Case(
        "biases, untied, full layers last",
        "ModernBertForMaskedLM",
        {
            **MODERNBERT,
            **dict.fromkeys(("attention_bias", "mlp_bias", "norm_bias", "classifier_bias"), True),
            **dict(tie_word_embeddings=False, decoder_bias=False, num_attention_heads=2),
            "layer_types": [*["sliding_attention"] * 3, *["full_attention"] * 2],
        },
    ),
    Case("bare, 2 layers", "ModernBertModel", {**MODERNBERT, "num_hidden_layers": 2}),
)


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values of the tensor `name`, the same everywhere: scales around 1, biases and sinks small, matrices
    of variance about 1 / inputs; a state forgets within about a hundred tokens (A_log)."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return (draw * 0.6 / np.sqrt(min(shape[-2:]))).astype(np.float32)
    scales = ("weight", "layer_scalar", "router.scale", "per_expert_scale")
    middle = name.endswith(scales) - 4 * name.endswith("A_log")
    return (middle + 0.2 * draw).astype(np.float32)


T5GEMMA = {**TEXT, "query_pre_attn_scalar": 20, "sliding_window": 8}
del T5GEMMA["sliding_window_pattern"]
# queries and keys of length sqrt(H), doubled by their norms: of the published scalar their softmax blows up no rounding
T5GEMMA2 = {**T5GEMMA, "query_pre_attn_scalar": 256, "rms_norm_eps": 0.01}
T5GEMMA2 |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
UNSEEN = MARKS | {"eoi_token_index": V}  # a token that no text has
UNCAPPED = dict(attn_logit_softcapping=None, final_logit_softcapping=None)
T5_ENCODER = {name: value for name, value in T5.items() if name != "decoder_start_token_id"}
CASES += (
    Case("tied", "MT5ForConditionalGeneration", T5),
    Case(
        "untied, few buckets",
        "MT5ForConditionalGeneration",
        {**T5, "tie_word_embeddings": False}
        | dict(relative_attention_num_buckets=8, relative_attention_max_distance=20),
    ),
    Case("a table a layer", "UMT5ForConditionalGeneration", T5),
    Case(
        "relu, 3 encoder layers",
        "UMT5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "relu"}
        | dict(
            num_layers=3, num_decoder_layers=2, relative_attention_num_buckets=8, relative_attention_max_distance=20
        ),
    ),
    Case("untied", "UMT5ForConditionalGeneration", {**T5, "tie_word_embeddings": False, "num_heads": 3}),
    Case("relu", "T5EncoderModel", T5_ENCODER),
    Case(
        "gated, few buckets",
        "T5EncoderModel",
        {**T5_ENCODER, "feed_forward_proj": "gated-gelu"}
        | dict(relative_attention_num_buckets=8, relative_attention_max_distance=20),
    ),
    Case("gated", "MT5EncoderModel", T5_ENCODER),
    Case("a table a layer", "UMT5EncoderModel", {**T5_ENCODER, "num_layers": 3}),
)
CASES += (
    Case("plain", "T5GemmaForConditionalGeneration", {"encoder": T5GEMMA, "decoder": T5GEMMA}),
    Case(
        "a narrower encoder of 5 layers, untied, biases, no caps",
        "T5GemmaForConditionalGeneration",
        {
            "encoder": T5GEMMA | dict(hidden_size=24, num_hidden_layers=5, num_attention_heads=6, sliding_window=5),
            "decoder": T5GEMMA | UNCAPPED | dict(attention_bias=True, num_key_value_heads=1),
            "tie_word_embeddings": False,
        },
    ),
    Case(
        "even windows",
        "T5Gemma2ForConditionalGeneration",
        {"encoder": {"text_config": T5GEMMA2, "vision_config": VISION, **UNSEEN}, "decoder": T5GEMMA2},
    ),
    Case(
        "odd windows, 2 encoder layers, one kv head, no full layer, scaled positions",
        "T5Gemma2ForConditionalGeneration",
        {
            "encoder": {
                "text_config": T5GEMMA2
                | dict(num_hidden_layers=2, sliding_window=7, rope_parameters=SCALED_ROPE)
                | dict(layer_types=["sliding_attention", "full_attention"], num_key_value_heads=4),
                "vision_config": VISION,
                **UNSEEN,
            },
            "decoder": T5GEMMA2
            | dict(
                sliding_window=5, num_key_value_heads=1, layer_types=["sliding_attention"] * 3, intermediate_size=40
            ),
        },
    ),
)
GEMMA4_TEXT = TEXT_SIZES | GEMMA4 | PER_LAYER
CASES += tuple(llama(shape, architecture, **fields) for shape, architecture, fields in HYBRIDS + GEMMA4S)
CASES += tuple(
    Case(shape, "Gemma4ForConditionalGeneration", {"text_config": GEMMA4_TEXT | more, "vision_config": None})
    for shape, more in (("text half", {}), ("text half, 5 experts", GEMMA4_EXPERTS | dict(num_kv_shared_layers=0)))
)
CASES += tuple(
    Case(
        "text half",
        f"{name}ForConditionalGeneration",
        {"text_config": {**HYBRID_TEXT, **more}, "vision_config": VISION_PART},
    )
    for name, more in (("Qwen3_5", {}), ("Qwen3_5Moe", HYBRID_EXPERTS))
)
NUMBERED_BY_ID = ("Roberta", "XLMRoberta", "Camembert")  # padding's id, and not the mask, says where positions begin


def inputs(case: Case) -> dict[str, np.ndarray]:
    """Token ids [3, T]; the mask of a batch padded on the left, on the right and not at all; more for some families."""
    rng = np.random.default_rng(7)
    ids = rng.integers(2, V, (3, case.length))
    mask = np.ones_like(ids)
    mask[0, :11], mask[1, -6:] = 0, 0
    if case.architecture.startswith(NUMBERED_BY_ID):
        ids = np.where(ids == case.pad, case.pad + 1, ids) * mask + case.pad * (1 - mask)
    more = {}
    if "T5" in case.architecture and "For" in case.architecture:
        start = case.fields.get("decoder_start_token_id", 1)
        more["decoder_input_ids"] = np.pad(rng.integers(2, V, (3, 30)), ((0, 0), (1, 0)), constant_values=start)
    if case.architecture.startswith("Bert"):
        more["token_type_ids"] = rng.integers(0, 2, ids.shape)
    return {"input_ids": ids, "attention_mask": mask, **more}


def counted(case: Case) -> np.ndarray:
    """Whose logits are compared: bool [3, T], all but padding; of a decoder that reads an encoder, all."""
    given = inputs(case)
    return given.get("decoder_input_ids", given["attention_mask"] - 1) >= 0


def prompts(case: Case) -> np.ndarray:
    """The prompt that is continued greedily: [1, 20], long enough for the windows."""
    return np.random.default_rng(8).integers(2, V, (1, 20))


NEW = 12  # tokens of a greedy continuation
