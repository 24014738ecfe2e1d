"""`lm show`: an experiment as text and as data, what may stand in its fields, and what another has of them."""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest

from launch.__main__ import main
from launch.fields import allowed, find_field, line_of
from launch.find import find
from lm.bounds import Bounds, Count, Natural, Sentinel, meaning, whole
from lm.model.positions import Positions
from lm.value import plain
from tests.model.reference import LLAMA


@pytest.fixture(autouse=True)
def machine_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.machine.hardware.prepare", lambda devices="": None)


def shown(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert main(["show", *argv]) == code
    out, err = capsys.readouterr()
    return " ".join((err if code else out).split())


def test_a_sentinel_is_shown_as_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, "experiments.quickstart", "--set", "mesh.fsdp=-1", "seq_len=0", "steps=300")
    for words in ("seq_len 0 (the model's context)", "fsdp 1 ", "keep_best 1 ", "top_k 0 (all)"):
        assert words in told
    assert "steps 300 (" not in told


def test_the_experiment_is_data(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(shown(capsys, "experiments.quickstart", "--set", "model.layers=2", "--json"))
    experiment = find("experiments.quickstart")[0].replace(model=dict(layers=2))
    assert data["experiment"] == plain(experiment) and data["reference"] == "experiments.quickstart:experiment"
    assert data["tokens"] == experiment.steps * experiment.batch_tokens
    assert data["state_bytes"]["parameters"] == 4 * sum(data["parameters"].values())


def test_the_fields_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = "experiments.quickstart"
    found = json.loads(shown(capsys, page, "--set", "steps=300", "model.layers=2", "--diff", page, "--json"))
    assert found == [
        {"field": "model.layers", "first": 2, "second": 4},
        {"field": "steps", "first": 300, "second": 240},
    ]
    told = shown(capsys, page, "--set", "optimizer.schedule=Constant()", "--diff", page)
    assert "optimizer.schedule.shape │ – │ 'sqrt'" in told and "warmup_steps │ 0 (none) │ 10" in told
    assert "optimizer.schedule.decay_steps │ – │ 0 (decay_fraction of the run)" in told
    told = shown(capsys, page, "--diff", page)
    assert told == f"{page}:experiment and {page} are the same"
    run = {"experiment": page, "fingerprint": "", "value": plain(find(page)[0].replace(seed=7))}
    (tmp_path / "experiment.json").write_text(json.dumps(run))
    assert "seed" in shown(capsys, page, "--diff", str(tmp_path)) and "seed 7" in shown(capsys, str(tmp_path))


def test_a_model_and_an_experiment_differ_in_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.pretrained.test_model import WRITER

    WRITER.save(tmp_path / "m")
    found = json.loads(shown(capsys, str(tmp_path / "m"), "--diff", "experiments.quickstart", "--json"))
    assert {"field": "width", "first": WRITER.config.width, "second": 256} in found
    assert "--set and --text are of an experiment" in shown(capsys, str(tmp_path / "m"), "--set", "steps=1", code=1)
    assert "give one of them" in shown(capsys, "experiments.quickstart", "--values", "seed", "--diff", "x", code=1)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("model.positions", ["is Rotary(", "0.02) A trained", "Alibi() ", "Rotary(theta=", "No po"]),
        ("compute.remat", ["'nothing'", "dots", "names", "the backward pass computes again"]),
        ("compute.keep", ["several of", "a text"]),
        ("seq_len", ["a whole number from 0", "0 the model's context", "a step, in rows of `seq_len`"]),
        ("optimizer.learning_rate", ["a number from 0"]),
        ("model.tied", ["true or false"]),
        ("model.ffn.activation", ["silu", "gelu_tanh"]),
        ("mesh", ["name=…, each of", "a whole number from -1", "-1 what the others leave"]),
        ("start", ["None", "Start("]),
        ("data.mixture.sources", ["Stdlib(", "TextFolder("]),
        ("method", ["SFT(", "GRPO("]),
        ("evaluations", ["name=…", "Evaluation("]),
    ],
)  # fmt: skip
def test_what_may_stand_in_a_field(path: str, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, "experiments.quickstart", "--values", path)
    for words in said:
        assert words in told, told
    for base in ("Collection(", " Source(", "Method("):  # what others are made of
        assert f"  {base}" not in told


def test_values_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capsys, "experiments.quickstart", "--values", "steps", "--json"))
    assert found == {"field": "steps", "now": 240, "values": [{"value": "a whole number from 1", "about": ""}]}
    assert "did you mean positions" in shown(capsys, "experiments.quickstart", "--values", "model.position", code=1)


@pytest.mark.parametrize(
    ("hint", "rows"),
    [
        (int, [("a number", "")]),
        (Count, [("a whole number from 1", "")]),
        (Annotated[float, Bounds(0, 1, above=True)], [("a number above 0 to 1", "")]),
        (Annotated[float, Bounds(0, 0.5, below=True)], [("a number from 0 below 0.5", "")]),
        (Annotated[int, whole(1, 3)] | None, [("a whole number from 1 to 3", ""), ("None", "")]),
        (tuple[int, str], [("2 of", ""), ("a number", ""), ("a text", "")]),
        (Any, [("anything", "")]),
    ],
)
def test_annotations_in_words(hint: Any, rows: list[tuple[str, str]]) -> None:
    assert allowed(hint) == rows


def test_a_sentinel_is_of_its_number_alone() -> None:
    hint = Annotated[Natural, Sentinel(0, "all")]
    assert [meaning(hint, x) for x in (0, 1, False, "0")] == ["all", "", "", ""]
    assert meaning(Natural, 0) == ""
    assert [row[0] for row in allowed(hint)] == ["a whole number from 0", "0"]


def test_a_field_of_a_value_and_of_a_mapping() -> None:
    found = find_field(LLAMA, "attention.heads")
    assert found.value == 4 and "`heads` query heads" in found.about
    assert line_of(Positions) == "No positional encoding"
    with pytest.raises(ValueError, match="did you mean"):
        find_field(LLAMA, "attention.head")
