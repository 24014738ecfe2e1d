"""What every field of a config.json means to transformers where it is left out, null, or at its class's default.

    .venv-certificates/bin/python -m certificates.fields [NAME ...]      writes tests/pretrained/fields.json

Of each architecture one or two cases of certificates/cases.py are taken as they are written there, which is with most
fields left out. Recorded are the config that the class makes of them, and for every field of the class what changes in
it, or that the class refuses; and which of these give the same logits, to the bit. SPELLINGS are other ways to say
something, as earlier versions and other tools do (LEFT_OUT: without the field).
"""

import copy
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers

from certificates.cases import CASES, GEMMA4_TEXT, T5GEMMA, T5GEMMA2, TEXT, Case, array
from certificates.decoders import HYBRID_EXPERTS, HYBRID_TEXT, F, S
from certificates.reference import TESTS, config_class, logits, write_lines

WALKED = (
    "GPT2LMHeadModel wide feed-forward, one head",
    "LlamaForCausalLM grouped, head size 20, tied",
    "LlamaForCausalLM YaRN with factors",
    "LlamaForCausalLM linear",
    "MistralForCausalLM window of 9",
    "MixtralForCausalLM 7 experts, 3 chosen",
    "Qwen2ForCausalLM windows from layer 1 on",
    "Qwen3ForCausalLM tied, biases",
    "GptOssForCausalLM 5 experts, window of 7",
    "GptOssForCausalLM theta alone",
    "DeepseekV2ForCausalLM low-rank queries, values longer than keys, YaRN",
    "GemmaForCausalLM grouped, untied",
    "Gemma2ForCausalLM window of 9",
    "Gemma3ForCausalLM 8 layers, window of 7",
    "Gemma3ForCausalLM scaled, 3 layers",
    "Gemma3ForConditionalGeneration text half",
    "T5ForConditionalGeneration 1.0",
    "T5ForConditionalGeneration 1.1, 3 encoder layers",
    "BertForMaskedLM untied",
    "BertForPreTraining three token types, relu",
    "BertModel bare",
    "Olmo2ForCausalLM grouped, biases, YaRN",
    "Olmo3ForCausalLM 5 layers, window of 7",
    "Olmo3ForCausalLM YaRN in the full layers, tied",
    "SmolLM3ForCausalLM 5 layers, no positions in the fourth",
    "SmolLM3ForCausalLM no positions in the first two, windows there, biases",
    "GraniteForCausalLM multipliers",
    "Phi3ForCausalLM window of 9",
    "Phi3ForCausalLM three quarters of a head turned, LongRoPE",
    "Qwen3MoeForCausalLM a dense layer first, weights that sum to 1, biases",
    "Qwen2MoeForCausalLM every second layer dense, windows, weights that sum to 1",
    "DeepseekV2ForCausalLM a dense layer, groups of experts",
    "DeepseekV3ForCausalLM a dense layer, 4 groups",
    "Qwen3_5ForCausalLM full layers first, half of a head turned, tied",
    "Qwen3_5MoeForCausalLM 5 experts and a shared one",
    "Qwen3NextForCausalLM a dense layer, weights as they are, as many value heads",
    "Qwen3_5ForConditionalGeneration text half",
    "Qwen3_5MoeForConditionalGeneration text half",
    "Gemma4ForCausalLM embeddings of layers, three that read others, twice as wide",
    "Gemma4ForCausalLM keys are values, one full kv head, untied",
    "Gemma4ForCausalLM 5 experts, keys are values, one full kv head",
    "Gemma4ForConditionalGeneration text half",
    "RobertaForMaskedLM padding 1",
    "RobertaModel bare, two token types",
    "XLMRobertaForMaskedLM one head",
    "XLMRobertaModel bare",
    "CamembertForMaskedLM output",
    "CamembertModel bare",
    "DistilBertForMaskedLM untied, relu",
    "DistilBertModel bare",
    "ModernBertForMaskedLM window of 3 on each side",
    "ModernBertForMaskedLM biases, untied, full layers last",
    "ModernBertModel bare, 2 layers",
    "MT5ForConditionalGeneration tied",
    "UMT5ForConditionalGeneration a table a layer",
    "T5EncoderModel gated, few buckets",
    "MT5EncoderModel gated",
    "UMT5EncoderModel a table a layer",
    "T5GemmaForConditionalGeneration plain",
    "T5Gemma2ForConditionalGeneration even windows",
)
LEFT_OUT = object()
YARN = dict(factor=4.0, original_max_position_embeddings=16)
ROPE_KEYS = {
    "linear": ("rope_theta", "factor"),
    "yarn": (
        *("rope_theta", "factor", "original_max_position_embeddings", "attention_factor"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
TWOS = [2.0] * 4
PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 500.0}
LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
SPELLINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "LlamaForCausalLM": (
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0),
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, rope_scaling=None, torch_dtype="float16"),
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0}),
        dict(rope_parameters=LEFT_OUT, rope_scaling={"rope_type": "yarn", **YARN}),
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, rope_scaling={"rope_type": "llama3", **LLAMA3}),
        dict(rope_parameters={"rope_type": "llama3", **LLAMA3}, rope_theta=500.0),
        dict(rope_parameters={"rope_theta": 700.0}, rope_theta=500.0),
        dict(rope_parameters={}, rope_theta=500.0),
        dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}, dtype="bfloat16"),
        *(
            dict(rope_parameters={"rope_type": "yarn", "beta_slow": 0.05, "truncate": t, **YARN})
            for t in (True, False, None)
        ),
        dict(pretraining_tp=2, chunk_size_feed_forward=4, output_hidden_states=True),
    ),
    "MistralForCausalLM": (dict(rope_theta=500.0), dict(sliding_window=None, rope_theta=1e6)),
    "MixtralForCausalLM": (
        dict(rope_theta=500.0),
        dict(num_experts=5, num_local_experts=LEFT_OUT),
        dict(sliding_window=9),
    ),
    "Qwen2ForCausalLM": (
        dict(use_sliding_window=False, use_mrope=False),
        dict(use_sliding_window=False, sliding_window=None, layer_types=["full_attention"] * 3),
        dict(use_sliding_window=True, sliding_window=None),
        dict(use_sliding_window=True, max_window_layers=3),
        dict(rope_theta=1e6, head_dim=12),
    ),
    "Qwen3ForCausalLM": (
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=2),
        dict(use_sliding_window=True, sliding_window=5, layer_types=["sliding_attention"] * 3),
        dict(rope_theta=1e6, rope_scaling={"rope_type": "yarn", **YARN}),
    ),
    "GptOssForCausalLM": (
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0),
        dict(rope_parameters={}),
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, rope_scaling={"rope_type": "yarn", "truncate": False, **YARN}),
        dict(num_experts=3, num_local_experts=LEFT_OUT),
    ),
    "DeepseekV2ForCausalLM": (
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, rope_scaling={"type": "yarn", "mscale_all_dim": 0.5, **YARN}),
        dict(head_dim=77, moe_layer_freq=1),
    ),
    "GemmaForCausalLM": (dict(hidden_act="gelu"), dict(hidden_activation=None, rope_theta=500.0)),
    "Gemma2ForCausalLM": (dict(hidden_act="gelu_pytorch_tanh", rope_theta=500.0, cache_implementation="hybrid"),),
    "Gemma3ForCausalLM": (
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, rope_local_base_freq=300.0),
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, rope_scaling={"rope_type": "linear", "factor": 8.0}),
        dict(rope_parameters={"full_attention": {"rope_theta": 500.0}}),
        dict(rope_parameters={"sliding_attention": None, "full_attention": {"rope_type": "linear", "factor": 2.0}}),
        dict(layer_types=LEFT_OUT, sliding_window_pattern=2),
        dict(attn_logit_softcapping=2.0),
        dict(final_logit_softcapping=2.0),
    ),
    "Gemma3ForConditionalGeneration": (
        dict(tie_word_embeddings=False),
        dict(text_config={**TEXT, "tie_word_embeddings": False}),
        dict(text_config={**TEXT, "rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        dict(text_config={**TEXT, "sliding_window": LEFT_OUT, "query_pre_attn_scalar": 20}),
    ),
    "T5GemmaForConditionalGeneration": (
        dict(tie_word_embeddings=False),
        dict(encoder={**T5GEMMA, "sliding_window": 4, "tie_word_embeddings": False}),
        dict(encoder={**T5GEMMA, "hidden_size": 24}, decoder={**T5GEMMA, "sliding_window": 4}),
        dict(decoder={**T5GEMMA, "rope_theta": 500.0, "final_logit_softcapping": None}),
    ),
    "T5Gemma2ForConditionalGeneration": (
        dict(decoder={**T5GEMMA2, "sliding_window": 4}),
        dict(decoder={**T5GEMMA2, "query_pre_attn_scalar": 20, "sliding_window": 7}),
        dict(decoder={**T5GEMMA2, "rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ),
    "T5ForConditionalGeneration": (
        dict(tie_word_embeddings=True, scale_decoder_outputs=True),
        dict(tie_word_embeddings=True, scale_decoder_outputs=False),
        dict(tie_word_embeddings=False, scale_decoder_outputs=True),
        dict(tie_word_embeddings=False, scale_decoder_outputs=False),
        dict(feed_forward_proj="gated-gelu", dense_act_fn="gelu_new", is_gated_act=True),
        dict(feed_forward_proj="gated-silu", dense_act_fn="silu", is_gated_act=True),
        dict(feed_forward_proj="gelu"),
        dict(scale_decoder_outputs=None),
        dict(tie_word_embeddings=None),
        dict(feed_forward_proj="gated-gelu", dense_act_fn="relu"),
        dict(n_positions=512, output_past=True),
    ),
    "BertForMaskedLM": (dict(position_embedding_type="absolute", gradient_checkpointing=False),),
    "GPT2LMHeadModel": (dict(n_ctx=64, n_inner=None),),
    "Olmo2ForCausalLM": (dict(rope_theta=500.0), dict(rope_parameters=LEFT_OUT, rope_theta=500.0)),
    "Olmo3ForCausalLM": (
        dict(rope_parameters=LEFT_OUT, rope_theta=5e5, rope_scaling={"rope_type": "yarn", **YARN}),
        dict(rope_parameters={"full_attention": {"rope_theta": 500.0}}),
        dict(layer_types=LEFT_OUT, sliding_window=5),
    ),
    "SmolLM3ForCausalLM": (
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0),
        dict(no_rope_layers=LEFT_OUT, no_rope_layer_interval=2, layer_types=LEFT_OUT),
        dict(use_sliding_window=True, sliding_window=5, no_rope_layers=[1, 0, 1, 0, 1]),
        dict(use_sliding_window=True, sliding_window=None),
    ),
    "GraniteForCausalLM": (dict(rope_theta=500.0), dict(logits_scaling=3, attention_multiplier=1)),
    "Phi3ForCausalLM": (
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, partial_rotary_factor=0.5),
        dict(rope_parameters=LEFT_OUT, rope_scaling={"type": "su", "short_factor": [1.0] * 4, "long_factor": TWOS}),
        dict(rope_parameters={"partial_rotary_factor": 0.5}, partial_rotary_factor=0.75),
        dict(sliding_window=None),
    ),
    "Qwen2MoeForCausalLM": (
        dict(use_sliding_window=False, sliding_window=None),
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
        dict(mlp_only_layers=[1], decoder_sparse_step=1, qkv_bias=False),
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0),
    ),
    "DeepseekV3ForCausalLM": (
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, rope_scaling={"type": "yarn", "mscale_all_dim": 0.5, **YARN}),
        dict(n_group=1, topk_group=1, topk_method="noaux_tc", scoring_func="sigmoid", moe_layer_freq=1, ep_size=1),
        dict(first_k_dense_replace=2, n_shared_experts=2, num_nextn_predict_layers=1),
        dict(n_routed_experts=LEFT_OUT, num_local_experts=12),
    ),
    "Qwen3MoeForCausalLM": (
        dict(num_experts=LEFT_OUT, num_local_experts=4),
        dict(mlp_only_layers=[], decoder_sparse_step=2),
        dict(use_sliding_window=True, sliding_window=5),
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0),
    ),
    "Qwen3_5ForCausalLM": (
        dict(layer_types=LEFT_OUT, num_hidden_layers=4, full_attention_interval=2),
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, partial_rotary_factor=0.5),
        dict(rope_parameters={"rope_theta": 500.0}),
    ),
    **{
        f"{name}ForConditionalGeneration": tuple(
            dict(text_config={**text, **more})
            for more in (dict(rms_norm_eps=0.2), dict(num_key_value_heads=1), dict(intermediate_size=40), {})
        )
        for name, text in (
            ("Qwen3_5", HYBRID_TEXT | dict(head_dim=8)),
            ("Qwen3_5Moe", HYBRID_TEXT | HYBRID_EXPERTS | dict(head_dim=8)),
            ("Gemma4", GEMMA4_TEXT | dict(num_hidden_layers=4, layer_types=[S, F, S, F], num_kv_shared_layers=0)),
        )
    },
    "Qwen3NextForCausalLM": (
        dict(mlp_only_layers=[], decoder_sparse_step=2),
        dict(rope_parameters=LEFT_OUT, rope_theta=500.0, partial_rotary_factor=LEFT_OUT),
    ),
    "Gemma4ForCausalLM": (
        dict(use_bidirectional_attention="vision"),
        dict(rope_parameters={F: {**PROPORTIONAL, "partial_rotary_factor": 0.5}, S: {"rope_type": "default"}}),
        dict(num_kv_shared_layers=0, use_double_wide_mlp=True),
    ),
    "RobertaForMaskedLM": (dict(position_embedding_type="absolute", pad_token_id=0),),
    "DistilBertForMaskedLM": (dict(sinusoidal_pos_embds=True),),
    "ModernBertForMaskedLM": (
        dict(layer_types=LEFT_OUT, global_attn_every_n_layers=2, position_embedding_type="absolute"),
        dict(layer_types=LEFT_OUT, global_rope_theta=500.0, local_rope_theta=300.0, layer_norm_eps=1e-3),
        dict(rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2.0}}),
        dict(rope_parameters={"sliding_attention": {"rope_theta": 50.0}}, global_rope_theta=500.0),
        dict(local_attention=7, classifier_pooling="mean"),
        dict(hidden_activation="silu", classifier_activation="relu"),
    ),
}
MOST = 20_000_000  # parameters; larger ones are compared by their config alone


def given_fields(case: Case) -> dict[str, Any]:
    """The fields of a case as a config.json has them."""
    return {**copy.deepcopy(case.fields), "architectures": [case.architecture]}


class Walk:
    """The variants of one case; equal logits have equal numbers."""

    def __init__(self, case: Case):
        self.case, self.cls = case, config_class(case)
        self.seen: list[np.ndarray] = []
        self.base = self.resolved(given_fields(case))

    def resolved(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The config that the class makes of `fields`."""
        made = self.cls.from_dict(copy.deepcopy(dict(fields)))
        found: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
        return found

    def variant(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """What is recorded of `fields`."""
        try:
            found = self.resolved(fields)
        except Exception as error:
            return {"refused": type(error).__name__}
        changes = {k: v for k, v in found.items() if k not in self.base or self.base[k] != v}
        gone = [k for k in self.base if k not in found]
        said = {"changes": changes, "gone": gone, "numbers": self.numbers(fields)}
        return {name: value for name, value in said.items() if name == "numbers" or value}

    def numbers(self, fields: Mapping[str, Any]) -> int | str | None:
        """Which logits `fields` give; None where the model is too large, "fails" where it does not run."""
        kind = getattr(transformers, self.case.architecture)
        try:
            cfg = self.cls.from_dict(copy.deepcopy(dict(fields)))
            cfg._attn_implementation = "eager"
            cfg.dtype = torch.float32
            with torch.device("meta"):
                if sum(p.numel() for p in kind(cfg).parameters()) > MOST:
                    return None
            model = kind(cfg).eval()
            for name, parameter in model.named_parameters():
                parameter.data = torch.tensor(array(name, tuple(parameter.shape)))
            found = logits(model, self.case)
        except Exception:
            return "fails"
        for i, known in enumerate(self.seen):
            if np.array_equal(known, found):
                return i
        self.seen.append(found)
        return len(self.seen) - 1

    def record(self) -> dict[str, Any]:
        """Everything about the case."""
        given, walked = given_fields(self.case), {}
        base = self.variant(given)
        for name, default in defaults(self.cls).items():
            left_out = {k: v for k, v in given.items() if k != name}
            at = [left_out, {**left_out, name: None}, {**left_out, name: default}]
            walked[name] = dict(zip(("missing", "null", "default"), map(self.variant, at), strict=True))
            walked[name]["value"] = default
        spelled = [without_left_out({**given, **more}) for more in SPELLINGS.get(self.case.architecture, ())]
        spelled += [without_left_out({**given, "rope_parameters": rope}) for rope in rope_variants(given)]
        return {
            "given": given,
            "resolved": self.base,
            "numbers": base["numbers"],
            "fields": walked,
            "spellings": [{"given": s, **self.variant(s)} for s in spelled],
        }


def rope_variants(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rotary parameters of a scaling with each of them left out and null, where `given` has one."""
    rope = given.get("rope_parameters") or {}
    for name in ROPE_KEYS.get(rope.get("rope_type"), ()):
        yield {**rope, name: LEFT_OUT}
        yield {**rope, name: None}


def without_left_out(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`fields`, and those within them, without the ones that are LEFT_OUT."""
    kept = {name: value for name, value in fields.items() if value is not LEFT_OUT}
    return {n: without_left_out(v) if isinstance(v, dict) else v for n, v in kept.items()}


def defaults(cls: type) -> dict[str, Any]:
    """Every field of a class that JSON can say, with its default."""
    return {f.name: f.default for f in dataclasses.fields(cls) if f.name != "architectures"}


def main() -> None:
    """Record all, or the cases whose names hold one of the arguments."""
    transformers.logging.set_verbosity_error()
    cases = {f"{case.architecture} {case.shape}": case for case in CASES}
    path, asked = TESTS / "pretrained" / "fields.json", sys.argv[1:]
    known = json.loads(path.read_text()) if asked else {}
    found: dict[str, object] = {}
    for name in WALKED:
        again = not asked or any(part in name for part in asked)
        print(name, "" if again else "as it was", flush=True)
        found[name] = Walk(cases[name]).record() if again else known[name]
    write_lines(found, path)


if __name__ == "__main__":
    main()
