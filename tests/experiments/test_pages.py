"""Every page builds an experiment that can take a step, and published models of the published sizes."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import experiments
from lm.data.objective import ObjectiveContext, Rows
from lm.experiment import Experiment
from lm.model import count
from lm.model.config import ModelConfig
from lm.model.output import NoOutput
from lm.model.transformer import Transformer

FAMILIES = ("gpt", "llama", "mistral", "mixtral", "gemma", "palm", "t5", "bert", "ul2")
# as their authors, or the files of their weights, say
PUBLISHED = {
    "gpt": dict(gpt2=124_439_808, gpt2_medium=354_823_168, gpt2_large=774_030_080, gpt2_xl=1_557_611_200),
    "llama": dict(
        llama_7b=6_738_415_616,
        llama_13b=13_015_864_320,
        llama_33b=32_528_943_616,
        llama_65b=65_285_660_672,
        llama2_7b=6_738_415_616,
        llama2_70b=68_976_648_192,
        llama3_8b=8_030_261_248,
        llama3_70b=70_553_706_496,
        llama3_1_405b=405_853_388_800,
        llama3_2_1b=1_235_814_400,
        llama3_2_3b=3_212_749_824,
    ),
    "mistral": dict(mistral_7b=7_241_732_096),
    "mixtral": dict(mixtral_8x7b=46_702_792_704),
    "gemma": dict(
        gemma_2b=2_506_172_416,
        gemma_7b=8_537_680_896,
        gemma2_2b=2_614_341_888,
        gemma2_9b=9_241_705_984,
        gemma2_27b=27_227_128_320,
        gemma3_1b=999_885_952,
    ),
    "t5": dict(
        t5_small=60_506_624,
        t5_base=222_903_552,
        t5_large=737_668_096,
        t5_3b=2_851_598_336,
        t5_11b=11_307_321_344,
        t5_v1_1_small=76_961_152,
        t5_v1_1_base=247_577_856,
        t5_v1_1_large=783_150_080,
    ),
}
ROUNDED = {  # Table 1 of 2204.02311, and of 2508.10925, in billions
    "palm": dict(palm_8b=8.63, palm_62b=62.50, palm_540b=540.35),
    "gpt": dict(gpt_oss_20b=20.91, gpt_oss_120b=116.83),
}


def page(name: str) -> Any:
    return importlib.import_module(f"experiments.{name}")


def cases(table: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    return [pytest.param(p, name, n, id=name) for p, models in table.items() for name, n in models.items()]


@pytest.mark.parametrize(("module", "name", "parameters"), cases(PUBLISHED))
def test_published_sizes(module: str, name: str, parameters: int) -> None:
    assert count.parameters(getattr(page(module), name)) == parameters


@pytest.mark.parametrize(("module", "name", "billions"), cases(ROUNDED))
def test_published_sizes_in_round_numbers(module: str, name: str, billions: float) -> None:
    assert count.parameters(getattr(page(module), name)) / 1e9 == pytest.approx(billions, abs=0.01)


def test_bert_s_encoder_without_its_output() -> None:
    bare = page("bert").bert_base.__class__(**vars(page("bert").bert_base) | {"output": NoOutput()})
    assert count.parameters(bare) == 108_891_648


@pytest.mark.parametrize("name", FAMILIES)
def test_a_page_s_experiment_takes_a_step(name: str) -> None:
    """Traced, not run: every shape fits every other."""
    e: Experiment = page(name).experiment
    assert e.name == name and e.data.tokenizer.vocab_size == 4096  # type: ignore[attr-defined]
    none = np.zeros(4096, bool)
    found = ObjectiveContext(e.length, 4096, 1, 2, None, e.model.has_encoder, special=none, word_starts=none)
    ones = np.ones((e.rows, e.method.objective.row_tokens(found) + 1), np.int32)
    batch = e.method.objective.batch(Rows(ones, ones, ones, ones), found)
    learner = e.method.build(Transformer(e.model, e.compute.resolve("cpu")))
    abstract = {k: jax.ShapeDtypeStruct(a.shape, a.dtype) for k, a in batch.items()}
    loss, metrics = jax.eval_shape(
        lambda params, b: learner.loss(params, (), b, None), learner.model.shapes(), abstract
    )
    assert loss.shape == metrics["accuracy"].shape == ()
    e.optimizer.build(e.steps, learner.axes())
    assert found.vocab + e.method.objective.extra_tokens(found) <= e.model.vocab


def test_every_page_says_what_it_is_and_how_to_run_it() -> None:
    for path in sorted(Path(experiments.__file__).parent.glob("[!_]*.py")):
        text = page(path.stem).__doc__
        runs = (f"{how} experiments.{path.stem}" for how in ("lm train", "lm study", "python -m"))
        ways = *runs, "make"
        assert any(way in text for way in ways), path


def test_every_model_of_every_page_has_its_name_once() -> None:
    names = [k for name in FAMILIES for k, v in vars(page(name)).items() if isinstance(v, ModelConfig)]
    assert len(names) == len(set(names)) > 40
