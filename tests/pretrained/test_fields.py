"""config.json: whatever stands in it, it is read or refused in words; and each architecture says its models."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates.cases import CASES, Case
from lm.model.config import ModelConfig
from lm.model.families import bert, deepseek_v2, gpt, llama, palm
from lm.model.latent import LatentAttention
from lm.model.output import Output
from lm.model.positions import Alibi
from lm.pretrained.architecture import canonical
from lm.pretrained.fields import INERT
from lm.pretrained.known import ARCHITECTURES, architecture_for, architecture_of
from tests.model.reference import MODELS
from tests.pretrained.small import recorded

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-2, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def read(values: dict[str, Any]) -> ModelConfig:
    """The model that `values` say, in a config.json called "file"."""
    architecture = architecture_of(values, "file")  # type: ignore[arg-type]
    return architecture.read(architecture.fields(values, "file"))


@settings(max_examples=300, deadline=None)
@given(case=st.sampled_from(CASES), data=st.data())
def test_any_value_is_read_or_refused(case: Case, data: st.DataObject) -> None:
    config = dict(recorded()[case.name]["config"])
    name = data.draw(st.sampled_from(sorted(set(config) - INERT)))
    inside = config[name] if isinstance(config[name], dict) and data.draw(st.booleans()) else None
    if inside:
        key = data.draw(st.sampled_from(sorted(inside)))
        config[name] = {**inside, key: data.draw(VALUES)}
    else:
        config[name] = data.draw(VALUES)
    try:
        assert isinstance(read(config), ModelConfig)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)


@settings(max_examples=50, deadline=None)
@given(case=st.sampled_from(CASES), name=st.from_regex(r"[a-z_]{1,9}", fullmatch=True), value=VALUES)
def test_no_field_is_passed_over(case: Case, name: str, value: Any) -> None:
    config = {**recorded()[case.name]["config"], f"own_{name}": value}
    if value is None:
        return
    with pytest.raises(ValueError, match=f"file: field own_{name}=.* is not known to the architecture"):
        read(config)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("LlamaForCausalLM", dict(rope_scaling={"rope_type": "linear", "factor": 2.0}), "rope_scaling=.* expected"),
        ("LlamaForCausalLM", dict(tie_word_embeddings="false"), "tie_word_embeddings='false': expected true or false"),
        ("LlamaForCausalLM", dict(num_hidden_layers=2.5), "num_hidden_layers=2.5: expected an integer"),
        ("LlamaForCausalLM", dict(rms_norm_eps=float("nan")), "rms_norm_eps=nan: expected a number of at least 0"),
        ("Gemma2ForCausalLM", dict(query_pre_attn_scalar=0), "query_pre_attn_scalar=0: expected a number above 0"),
        ("Gemma3ForCausalLM", dict(layer_types=["full_attention"]), "layer_types=.* expected a list of 8"),
        ("GptOssForCausalLM", dict(swiglu_alpha=1.5), "swiglu_alpha=1.5 is not supported: expected 1.702"),
        (
            "DeepseekV2ForCausalLM",
            dict(first_k_dense_replace=1, num_experts_per_tok=2, norm_topk_prob=True),
            "norm_topk_prob=True is not supported: expected False",
        ),
        ("DeepseekV2ForCausalLM", dict(num_key_value_heads=2), "num_key_value_heads=2 is not supported: expected 4"),
        ("GPT2LMHeadModel", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
        ("T5ForConditionalGeneration", dict(relative_attention_num_buckets=3), ".*_num_buckets=3 .* from 4"),
        ("BertModel", dict(is_decoder=True), "is_decoder=True is not supported: expected False"),
    ],
)
def test_what_is_refused(name: str, fields: dict[str, Any], said: str) -> None:
    case = next(case for case in CASES if case.architecture == name)
    with pytest.raises(ValueError, match=f"file: {said}"):
        read({**recorded()[case.name]["config"], **fields})


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"model_type": "mamba"}, {"architectures": ["X"]}])
def test_an_unknown_architecture(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="file: unknown architecture '.*': .*LlamaForCausalLM.*"):
        read(config)


def test_two_names_of_an_architecture_agree() -> None:
    """transformers goes by model_type, so that one of another architecture is a mistake."""
    config = recorded()["LlamaForCausalLM-as-many-kv-heads"]["config"]
    said = "file: model_type='mistral' with architectures=.'LlamaForCausalLM'.: expected 'llama'"
    with pytest.raises(ValueError, match=said):
        read({**config, "model_type": "mistral"})
    unsaid = {name: value for name, value in config.items() if name != "model_type"}
    assert read(unsaid) == read({**config, "architectures": None}) == read(config)


# ---------------------------------------------------------------- writing it


@pytest.mark.parametrize("name", ["gpt", "llama", "mixtral", "gpt-oss", "gemma 2", "gemma 3"])
def test_an_architecture_says_a_model(name: str) -> None:
    cfg = MODELS[name]
    architecture = architecture_for(cfg)
    again = read({**architecture.write(cfg), "architectures": [architecture.name]})
    assert canonical(again) == canonical(cfg)


def test_the_first_that_can_is_taken_and_the_model_s_own_before() -> None:
    cfg = llama(vocab=9, layers=1, width=8, heads=2, mlp=8, context=8)
    mistral = next(a for a in ARCHITECTURES if a.name == "MistralForCausalLM")
    assert architecture_for(cfg).name == "LlamaForCausalLM"
    assert architecture_for(cfg, mistral) is mistral
    assert architecture_for(MODELS["gemma 2"], mistral).name == "Gemma2ForCausalLM"


def test_next_sentences_are_pretraining_s() -> None:
    read_sizes: dict[str, Any] = dict(vocab=9, layers=1, width=8, heads=2, mlp=8, context=8)
    both = bert(**read_sizes, output=Output(bias=True, transform="gelu", next_sentence=True))
    assert architecture_for(bert(**read_sizes)).name == "BertForMaskedLM"
    assert architecture_for(both).name == "BertForPreTraining"


@pytest.mark.parametrize(
    "cfg",
    [
        gpt(vocab=9, layers=1, width=8, heads=2, context=8, positions=Alibi()),
        palm(vocab=9, layers=1, width=8, heads=2, head_dim=4, context=8),
        gpt(vocab=9, layers=1, width=8, heads=2, context=8, bias=False),
        MODELS["latent"],
        deepseek_v2(
            vocab=9, layers=1, width=8, heads=2, mlp=8, context=8, attention=LatentAttention(2, 2, 2, 2, 4, scale=1)
        ),
    ],
)
def test_a_model_that_none_says(cfg: ModelConfig) -> None:
    with pytest.raises(ValueError, match="none of GPT2LMHeadModel, .* can express this model"):
        architecture_for(cfg)
