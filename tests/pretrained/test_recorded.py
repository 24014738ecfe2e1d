"""Every architecture gives the numbers that transformers gave, recorded with the certificates; and comes back whole."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from certificates.cases import CASES, Case, array, counted, inputs
from certificates.ours import LIMIT, next_tokens, uncached
from lm.pretrained import Pretrained, load, read_config
from lm.pretrained.files import Safetensors
from lm.pretrained.known import architecture_for
from tests.pretrained.small import BY_NAME, checkpoint, recorded

FEW = (slice(None), slice(12, None, 9), slice(3, None, 31))  # of [B, T, V], as they were recorded
ONE_OF_EACH = list({case.architecture: case for case in CASES}.values())
GREEDY = [case for case in ONE_OF_EACH if recorded()[case.name]["greedy"]]
DECODED = (  # the architectures between which all is decoded that any of GREEDY has
    *("GPT2LMHeadModel", "LlamaForCausalLM", "GptOssForCausalLM", "Gemma3ForCausalLM", "Olmo2ForCausalLM"),
    *("SmolLM3ForCausalLM", "GraniteForCausalLM", "Phi3ForCausalLM", "Qwen2MoeForCausalLM", "DeepseekV3ForCausalLM"),
    *("Qwen3_5ForCausalLM", "Gemma4ForCausalLM", "T5ForConditionalGeneration", "UMT5ForConditionalGeneration"),
    *("T5GemmaForConditionalGeneration", "T5Gemma2ForConditionalGeneration"),
)


def named(case: Case) -> str:
    return case.name


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pretrained]:
    """The model of a case, by its name; loaded once."""
    return cache(lambda name: load(checkpoint(BY_NAME[name], tmp_path_factory.mktemp("case"))))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_logits_are_the_recorded_ones(case: Case, loaded: Callable[[str], Pretrained]) -> None:
    known = recorded()[case.name]
    given, wanted = np.asarray(loaded(case.name).logits(**inputs(case)))[FEW], np.array(known["logits"])
    real = counted(case)[FEW[:2]]
    assert np.abs(given - wanted)[real].max() <= LIMIT * known["std"] + 1e-7  # as many digits are recorded


@pytest.mark.parametrize("case", GREEDY, ids=named)
def test_greedy_is_the_recorded_one_and_cached_is_full(case: Case, loaded: Callable[[str], Pretrained]) -> None:
    """Cached in those that are DECODED."""
    model, wanted = loaded(case.name), recorded()[case.name]["greedy"]
    assert uncached(model, case) == wanted
    assert case.architecture not in DECODED or next_tokens(model, case) == wanted


def parts(case: Case, tmp_path: Path) -> Iterator[Any]:
    """What a step of decoding is made of: of every layer the classes, where they stand together, and what each has."""
    checkpoint(case, tmp_path)
    cfg = read_config(tmp_path)
    for slot in cfg.slots.values():
        yield type(slot.mixer), type(slot.positions), slot.window > 0
        yield type(slot.mixer), cfg.has_encoder
        for part in (slot.mixer, slot.positions, slot.ffn, slot.wiring):
            yield type(part)
            for field in fields(part):
                value = getattr(part, field.name)
                if value is True or is_dataclass(value) or (value != field.default and not isinstance(value, int)):
                    yield type(part), field.name, type(value)


def test_those_that_are_decoded_have_every_part(tmp_path: Path) -> None:
    has = {case.architecture: set(parts(case, tmp_path / case.architecture)) for case in GREEDY}
    assert set(DECODED) <= set(has)
    decoded = set[Any]().union(*(has[name] for name in DECODED))
    assert {name: missing for name in has if (missing := has[name] - decoded)} == {}


@pytest.mark.parametrize("case", CASES, ids=named)
def test_saved_and_loaded_again_it_is_the_same(case: Case, loaded: Callable[[str], Pretrained], tmp_path: Path) -> None:
    model = loaded(case.name)
    model.save(tmp_path / "second", shard_bytes=20_000)
    assert len(list((tmp_path / "second").glob("model-*.safetensors"))) > 1
    again = load(tmp_path / "second")
    assert again.config == model.config and again.ids == model.ids
    assert again.architecture == architecture_for(model.config, model.architecture)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


@pytest.mark.parametrize("case", [c for c in CASES if "Conditional" not in c.architecture], ids=named)
def test_every_tensor_is_written_back(case: Case, loaded: Callable[[str], Pretrained], tmp_path: Path) -> None:
    """Those that no number of ours depends on too (BertModel's pooler); the output's bias of an untied BERT under both
    of its names."""
    model = loaded(case.name)
    model.save(tmp_path / "second")
    written, recorded_shapes = Safetensors(tmp_path / "second"), recorded()[case.name]["tensors"]
    assert model.architecture is not None
    prefix = model.architecture.prefix  # which a bare model's own file has not
    prefix = "" if any(name.startswith(prefix) for name in recorded_shapes) else prefix
    assert {name: list(written.shape(name)) for name in written} == {
        f"{prefix}{name}": shape for name, shape in recorded_shapes.items()
    }
    for name in set(written) - {"cls.predictions.bias", "lm_head.bias"}:
        np.testing.assert_array_equal(written.read(name), array(name.removeprefix(prefix), written.shape(name)))
