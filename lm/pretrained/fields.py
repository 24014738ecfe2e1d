"""Strict reading of config.json: no field is ignored silently.

Each field is taken by the architecture, or is known not to affect the forward pass; the first one left is an error.
A missing field has the default of transformers' class (lm/pretrained/defaults.py), and null means what it means there.
"""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lm.pretrained.defaults import Nullable

# Fields of any architecture that do not affect the forward pass: training, generation, labels, bookkeeping.
NAMES = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures attention_dropout
    attention_probs_dropout_prob attn_implementation attn_pdrop bad_words_ids begin_suppress_tokens bos_token_id
    cache_implementation chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id
    directionality diversity_penalty do_sample dropout_rate dtype early_stopping embd_pdrop
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing hidden_dropout_prob id2label initial_context_length
    initializer_factor initializer_range is_llama_config label2id length_penalty mask_token_id max_length
    max_window_layers min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_past output_router_logits output_scores pad_token_id
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type prefix
    pretraining_tp problem_type pruned_heads remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate router_aux_loss_coef router_jitter_noise sep_token_id summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens swa_window
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_last_hidden_states tokenizer_class top_k
    top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    deterministic_flash_attn dropout embedding_dropout initializer_cutoff_factor mlp_dropout qa_dropout
    reference_compile repad_logits_with_grad seq_classif_dropout sinusoidal_pos_embds sparse_pred_ignore_index
    sparse_prediction tie_weights_
"""
INERT = frozenset(NAMES.split())
# Fields of any architecture that may be there with the one value that changes nothing.
NEUTRAL: Mapping[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "use_mrope": False,
}
# Fields that no class of transformers reads: tools and other code wrote them for themselves.
TOOLS = re.compile(
    r"transformers\.js_config|_?num_labels|unsloth_\w+|auto_map|model_max_length|max_sequence_length|n_special"
    r"|predict_special_tokens|neftune_noise_alpha|tokenizer_model_max_length|tokenizer_padding_side"
    r"|_(attn|experts)_implementation_internal|_experts_implementation|_flash_attn_2_enabled"
)
MAX_NUMBER = 1 << 40  # a larger one is damage


class Fields:
    """The fields of `file`, each of which must be taken or be INERT; `defaults` are those of the architecture's class.

    Where a method is given a default, that is the value of a missing field and of null. Every method raises ValueError,
    with the names of file and field, for a value that is not supported."""

    def __init__(self, values: Mapping[str, Any], file: Path | str, defaults: Mapping[str, Any] = MappingProxyType({})):
        self.values, self.file, self.defaults = dict(values), file, defaults
        self._taken: set[str] = set()

    def take(self, name: str, *default: Any) -> Any:
        """The field `name`; None for null where its class allows null. Raises ValueError where it is missing without a
        default, and for null elsewhere."""
        self._taken.add(name)
        if (value := self.values.get(name)) is not None:
            return value
        if default:
            return default[0]
        if name not in self.defaults:
            raise ValueError(f"{self.file}: field {name} is missing")
        known = self.defaults[name]
        if isinstance(known, Nullable):
            return None if name in self.values else known.default
        if name in self.values:
            raise ValueError(
                f"{self.file}: {name} is null, which its class does not allow: leave it out for the default, {known!r}"
            )
        return known

    def number(self, name: str, *default: Any, above: float | None = None) -> Any:
        """`take` of a finite number, at least 0 or more than `above`. Raises ValueError for anything else."""
        value = self.take(name, *default)
        if self.values.get(name) is None:
            return value
        good = isinstance(value, int | float) and not isinstance(value, bool) and value < MAX_NUMBER
        if not good or not (value >= 0 if above is None else value > above):
            expected = "of at least 0" if above is None else f"above {above:g}"
            raise ValueError(f"{self.file}: {name}={value!r}: expected a number {expected}")
        return value

    def integer(self, name: str, *default: Any) -> Any:
        """`take` of an integer, at least 1. Raises ValueError for anything else."""
        value = self.take(name, *default)
        if self.values.get(name) is None:
            return value
        good = isinstance(value, int) or isinstance(value, float) and value.is_integer()
        if not good or isinstance(value, bool) or not 1 <= value < MAX_NUMBER:
            raise ValueError(f"{self.file}: {name}={value!r}: expected an integer of at least 1")
        return int(value)

    def flag(self, name: str, *default: bool) -> bool:
        """`take` of true or false. Raises ValueError for anything else."""
        value = self.take(name, *default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.file}: {name}={value!r}: expected true or false")
        return value

    def choose(self, name: str, known: Mapping[Any, Any], *default: Any) -> Any:
        """The entry of `known` for the value of the field `name`. Raises ValueError for other values."""
        value = self.take(name, *default)
        try:
            return known[value]
        except (KeyError, TypeError):
            raise self.unsupported(name, value, ", ".join(repr(k) for k in known)) from None

    def expect(self, name: str, *allowed: Any) -> None:
        """Raise ValueError unless the field `name` is missing, one of `allowed`, or null where its class allows it."""
        value = self.take(name) if name in self.defaults else self.take(name, None)
        same_kind = [one for one in allowed if isinstance(one, bool) == isinstance(value, bool)]  # 1 is not true
        if value is not None and value not in same_kind:
            raise self.unsupported(name, value, " or ".join(map(repr, allowed)) or "none")

    def unsupported(self, name: str, value: Any, expected: str) -> ValueError:
        """The error for a `value` of the field `name` that is not as `expected`."""
        return ValueError(f"{self.file}: {name}={value!r} is not supported: expected {expected}")

    def finish(self) -> None:
        """Warn of fields that tools wrote. Raises ValueError for others that could have an effect."""
        for name, neutral in NEUTRAL.items():
            if name not in self._taken:
                self.expect(name, neutral)
        left = {name: value for name, value in self.values.items() if name not in self._taken and name not in INERT}
        tools = sorted(filter(TOOLS.fullmatch, left))
        for name, value in left.items():
            if name not in tools and value is not None:
                raise ValueError(
                    f"{self.file}: field {name}={json.dumps(value)[:60]} is not known to the architecture and could "
                    "change the results: remove it only if it does not"
                )
        if tools:
            warnings.warn(
                f"{self.file}: not read, since tools wrote it for themselves: {', '.join(tools)}", stacklevel=2
            )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises ValueError where it is missing or damaged."""
    content = _read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return content


def read_objects(file: Path) -> list[dict[str, Any]]:
    """The JSON list of objects in `file`. Raises ValueError where it is missing or damaged."""
    content = _read_json(file)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise ValueError(f"{file}: expected a JSON list of objects")
    return content


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file} is missing: it is the config of the model") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
