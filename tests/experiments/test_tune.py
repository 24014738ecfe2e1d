"""The pages of experiments/tune/ say how to run them, and have examples."""

import importlib
from pathlib import Path

import pytest

import experiments
from lm.data.conversations import Conversations, encode_record
from lm.experiment import changed
from lm.model import count
from lm.text.tokenizer import Bytes
from lm.value import plain
from tests.tune.talks import assistant, user

NAMES = [path.stem for path in sorted((Path(experiments.__file__).parent / "tune").glob("[!_]*.py"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_how_to_run_it(name: str) -> None:
    page = importlib.import_module(f"experiments.tune.{name}")
    assert page.experiment.name == name and f"lm train experiments.tune.{name}" in page.__doc__


def test_the_small_one_starts_from_the_quickstart_and_its_template_marks_the_answers() -> None:
    small, first = (importlib.import_module(f"experiments.{n}").experiment for n in ("tune.sft_small", "quickstart"))
    assert small.model == first.model and small.start.path == f"runs/{first.name}"
    (source,) = small.data.mixture.sources.values()
    assert isinstance(source, Conversations)
    tokenizer = Bytes().make([])
    tokenizer.give_template(small.data.chat_template)
    one = encode_record({"messages": [user("a?"), assistant("b")]}, tokenizer)
    assert one.loss is not None and one.ids[one.loss].tolist() == [*b"b", 257]
    assert tokenizer.decode(one.ids) == "user: a?\nassistant:\nb\n"


def test_smollm2_has_the_published_size() -> None:
    assert count.parameters(importlib.import_module("experiments.tune.sft_chat").experiment.model) == 134_515_008


def test_the_student_is_a_quarter_of_its_teacher_and_differs_from_the_one_alone_by_method() -> None:
    page, first = (importlib.import_module(f"experiments.{name}") for name in ("tune.distill", "quickstart"))
    method, taught = page.experiment.method, page.distillation.resolved["teacher"][0]
    assert method.teacher_model == first.experiment.model and taught.method == method
    assert 3.5 < count.parameters(method.teacher_model) / count.parameters(page.experiment.model) < 5
    assert {path.split(".")[0] for path, *_ in changed(plain(page.alone), plain(page.experiment))} == {"method"}
