"""A field that is left out, null or at its default means what it means in transformers' classes, whose word on each
certificates/fields.py recorded; and so do the spellings of earlier versions and of tools."""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from certificates.cases import CASES, Case
from lm.model.config import ModelConfig
from lm.model.positions import Rotary
from lm.pretrained.architecture import canonical
from lm.pretrained.deepseek import EXPERTS
from lm.pretrained.defaults import Nullable
from lm.pretrained.fields import INERT, NEUTRAL
from lm.pretrained.known import (
    ARCHITECTURES,
    BY_NAME,
    CLASSIFIERS,
    HEADLESS,
    HEADS,
    architecture_for,
    architecture_of,
)
from tests.pretrained.small import recorded

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "fields.json").read_text())
NO_EFFECT = {*INERT, *NEUTRAL, *EXPERTS.split()}
IMAGES = ("mm_tokens_per_image", "image_token_index")
OTHERS = "since some layers have experts|in ffn.groups=|rope_interleave=|model.vision.image_token="
IMPOSSIBLE = f"is odd, try|{OTHERS}|vocab_size_per_layer_input=|{'|'.join(IMAGES)}"  # what our models cannot be
VARIANTS = ("missing", "null", "default")


def read(values: dict[str, Any]) -> ModelConfig:
    """The model that a config.json called "file" says, in its canonical form. Whether T5's output is tied, its class
    leaves to the tensors of the file."""
    return read_text(json.dumps(values))


@cache
def read_text(text: str) -> ModelConfig:
    """`read` of what is in the file: most variants of a case are one text, read once."""
    values = json.loads(text)
    architecture = architecture_of(values, Path("file"))
    cfg = canonical(architecture.read(architecture.fields(values, "file")))
    return replace(cfg, tied=True) if architecture.model_type.endswith("t5") else cfg


def variants(name: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Of one case: (what it is, the fields of a config.json, what the class said)."""
    case = RECORDED[name]
    yield "as given", case["given"], {"numbers": case["numbers"]}
    for field, said in case["fields"].items():
        rest = {k: v for k, v in case["given"].items() if k != field}
        for how, values in zip(VARIANTS, (rest, {**rest, field: None}, {**rest, field: said["value"]}), strict=True):
            yield f"{field} {how}", values, said[how]
    for i, said in enumerate(case["spellings"]):
        yield f"spelling {i}", said["given"], said


def test_every_architecture_is_walked() -> None:
    others = CLASSIFIERS + HEADLESS + HEADS
    of_texts = {a.name: a for a in ARCHITECTURES if a not in others}  # of which these read the config.json too
    with_images = {"PaliGemmaForConditionalGeneration"}  # certificates/vision.py has its config
    assert set(of_texts) - with_images == {name.split()[0] for name in RECORDED}
    assert all(any(a.defaults is b.defaults for b in of_texts.values()) for a in others)


# which are no fields of the classes: what they are is in their code
NOT_FIELDS = {
    "head_dim",
    "rope_theta",
    "rope_scaling",
    "rope_local_base_freq",
    "global_rope_theta",
    "local_rope_theta",
    "sliding_window_pattern",
    "tie_word_embeddings",
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_tables_are_those_of_the_classes(name: str) -> None:
    """Every default, and whether null is allowed, of shapes that the case cannot run with too."""
    fields = RECORDED[name]["fields"]
    table = BY_NAME[name.split()[0]].defaults
    assert set(table) - set(fields) <= NOT_FIELDS
    for field in set(table) & set(fields):
        known, said = table[field], fields[field]
        default = known.default if isinstance(known, Nullable) else known
        assert (default, isinstance(known, Nullable)) == (said["value"], "refused" not in said["null"]), field


@pytest.mark.parametrize("name", RECORDED)
def test_a_field_means_what_its_class_says(name: str) -> None:
    """The model of each variant is that of the config with everything written out; a null that the class refuses is
    refused, unless it has no effect."""
    for what, values, said in variants(name):
        if said.get("numbers") == "fails":  # nothing runs there, in transformers
            continue
        if "refused" in said:
            if what.endswith("null") and what.split()[0] not in NO_EFFECT:
                with pytest.raises(ValueError, match=r"^file: "):
                    raise AssertionError(f"{what} is read: {read(values)}")
            continue
        whole = {**RECORDED[name]["resolved"], **said.get("changes", {})}
        whole = {k: v for k, v in whole.items() if k not in said.get("gone", ())}
        try:
            found, wanted = read(values), read({**whole, "architectures": values["architectures"]})
        except ValueError as error:
            if re.search(IMPOSSIBLE, str(error)):
                continue
            raise AssertionError(f"{what}: {error}") from error
        assert found == wanted, what


@pytest.mark.parametrize("name", RECORDED)
def test_equal_models_gave_equal_logits(name: str) -> None:
    """And those with other logits are other models."""
    seen: dict[ModelConfig, Any] = {}
    for what, values, said in variants(name):
        if isinstance(said.get("numbers"), int) and "num_attention_heads" not in what:
            if what.split()[0] in IMAGES:  # no such tower: transformers notices when it is given an image
                continue
            try:
                assert seen.setdefault(read(values), said["numbers"]) == said["numbers"], what
            except ValueError as error:
                assert re.search(IMPOSSIBLE, str(error)), what
    assert len(set(seen.values())) > 3


# ---------------------------------------------------------------- what other versions and tools write


def as_written_by_4(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json that transformers 5 wrote as 4 wrote it: theta and scaling apart, torch_dtype, T5's one flag."""
    config = {("torch_dtype" if name == "dtype" else name): value for name, value in config.items()}
    for part in {"text_config", "encoder", "decoder"} & set(config):
        config[part] = as_written_by_4(config[part])
    rope, modern = config.pop("rope_parameters", None) or {}, config["model_type"] == "modernbert"
    full, local = (rope.pop(kind, None) for kind in ("full_attention", "sliding_attention"))
    rope = dict(full or rope)
    if rope:
        config["global_rope_theta" if modern else "rope_theta"] = rope.pop("rope_theta")
        none = rope == {"rope_type": "default"} and config["model_type"] != "gpt_oss"  # whose null is YaRN to 5
        config["rope_scaling"] = None if none else rope
    if local and config["model_type"] != "olmo3":  # whose layers had one theta
        config["local_rope_theta" if modern else "rope_local_base_freq"] = local["rope_theta"]
    if "scale_decoder_outputs" in config:
        config["tie_word_embeddings"] = config.pop("scale_decoder_outputs")
    return config


LATER = ("Gemma4",)  # which transformers 4 does not know
KNOWN_TO_4 = [case for case in CASES if not case.architecture.startswith(LATER)]


@pytest.mark.parametrize("case", KNOWN_TO_4, ids=lambda case: case.name)
def test_both_versions_say_the_same_model(case: Case) -> None:
    config = recorded()[case.name]["config"]
    before = as_written_by_4(copy.deepcopy(config))
    assert "rope_parameters" not in before and "dtype" not in before
    assert read(before) == read(config)


@pytest.mark.parametrize("case", KNOWN_TO_4, ids=lambda case: case.name)
def test_both_versions_read_the_same_model_of_what_is_written(case: Case) -> None:
    """Each finds its own names of theta and scaling; who knows both, as transformers 5 does, finds no difference."""
    config = recorded()[case.name]["config"]
    architecture = architecture_of(config, Path("file"))
    cfg = architecture.read(architecture.fields(config, "file"))
    architecture = architecture_for(cfg, architecture)
    written = {"architectures": [architecture.name], **architecture.write(cfg)}
    new, old = ("rope_parameters",), ("rope_theta", "rope_scaling", "rope_local_base_freq")
    old += ("global_rope_theta", "local_rope_theta")
    for names in ((), new, old):
        assert read({name: value for name, value in written.items() if name not in names}) == read(written)
        assert read(written) == read(config)


QWEN = dict(  # as the hub's Qwen2.5 have it, in small
    architectures=["Qwen2ForCausalLM"],
    attention_dropout=0.0,
    bos_token_id=5,
    eos_token_id=6,
    hidden_act="silu",
    hidden_size=32,
    initializer_range=0.02,
    intermediate_size=64,
    max_position_embeddings=32768,
    max_window_layers=28,
    model_type="qwen2",
    num_attention_heads=4,
    num_hidden_layers=3,
    num_key_value_heads=2,
    rms_norm_eps=1e-06,
    rope_theta=1000000.0,
    sliding_window=131072,
    tie_word_embeddings=True,
    torch_dtype="bfloat16",
    transformers_version="4.43.1",
    use_cache=True,
    use_mrope=False,
    use_sliding_window=False,
    vocab_size=96,
)


def test_a_config_of_the_hub_s_qwen() -> None:
    cfg = read(QWEN)
    assert not any(slot.window for slot in cfg.slots.values()) and cfg.tied
    assert isinstance(cfg.positions, Rotary) and cfg.positions.theta == 1e6
    with pytest.raises(ValueError, match="file: use_mrope=True is not supported: expected False"):
        read({**QWEN, "use_mrope": True})
    with pytest.raises(ValueError, match="sliding_window=None is not supported: expected a window, since some layers"):
        read({**QWEN, "layer_types": ["full_attention", "sliding_attention", "full_attention"]})


TOOLS = {
    "transformers.js_config": {"dtype": "q4"},
    "_num_labels": 2,
    "unsloth_version": "2025.1",
    "unsloth_fixed": True,
    "auto_map": {"AutoModel": "modeling.Model"},
    "model_max_length": 131072,
}


def test_what_tools_wrote_is_told() -> None:
    with pytest.warns(UserWarning) as told:
        assert read({**QWEN, **TOOLS}) == read(QWEN)
    assert [str(w.message) for w in told] == [
        f"file: not read, since tools wrote it for themselves: {', '.join(sorted(TOOLS))}"
    ]
    with pytest.raises(ValueError, match="field unsloth=1 is not known"):
        read({**QWEN, "unsloth": 1})


def test_both_names_of_rotary_parameters_agree_or_are_refused() -> None:
    """transformers takes rope_scaling, whose theta is then the field beside it."""
    new, old = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}, {"type": "linear", "factor": 2.0}
    both = {**QWEN, "rope_parameters": new, "rope_scaling": old}
    assert read(both) == read({**QWEN, "rope_scaling": old})
    for changes in ({"rope_theta": 500.0}, {"rope_scaling": {**old, "factor": 3.0}}, {"rope_scaling": {"type": "x"}}):
        with pytest.raises(ValueError, match="file: rope_scaling=.* is not supported: expected rope_parameters, "):
            read({**both, **changes})


def test_what_neither_class_nor_code_agree_on() -> None:
    with pytest.raises(ValueError, match="num_experts=4 is not supported: expected num_local_experts=7"):
        read({**recorded()["MixtralForCausalLM-7-experts--3-chosen"]["config"], "num_experts": 4})
    with pytest.raises(
        ValueError, match=r"rope_scaling=\{'factor': 2.0\} is not supported: expected rope_parameters of"
    ):
        read(recorded()["Gemma3ForCausalLM-scaled--3-layers"]["config"] | {"rope_scaling": {"factor": 2.0}})
    with pytest.raises(ValueError, match="text_config=3 is not supported: expected an object"):
        read({"model_type": "gemma3", "text_config": 3})


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (dict(type="yarn", factor=4.0, original_max_position_embeddings=32768), 131072),
        (dict(rope_type="yarn", factor=4.0), 131072),
        (dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8192), 32768),
        (dict(rope_type="linear", factor=2.0), 65536),
        (dict(rope_type="dynamic", factor=2.0), 65536),
        (dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0), 262144),
        (None, 32768),
    ],
)
def test_a_scaling_makes_the_context_longer_where_the_config_has_the_original(scaling: Any, context: int) -> None:
    values = {**QWEN, "rope_scaling": scaling}
    architecture = architecture_of(values, Path("file"))
    cfg = architecture.read(architecture.fields(values, "file"))
    assert cfg.context == context
    assert architecture.read(architecture.fields(architecture.write(cfg), "file")).context == context


def test_gemma_3_has_the_scaled_context_already() -> None:
    values = recorded()["Gemma3ForCausalLM-scaled--3-layers"]["config"]
    architecture = architecture_of(values, Path("file"))
    cfg = architecture.read(architecture.fields(values, "file"))
    assert cfg.context == 64 == architecture.write(cfg)["max_position_embeddings"]
