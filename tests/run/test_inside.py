"""A run's inside.html: its first sample looked into, and a link to it in the report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.__main__ import main
from lm.page.run_report import write_report
from lm.pretrained import load, read_experiment
from lm.pretrained.fill import encode
from lm.run import course
from lm.run.inside import look_inside, sample_to_inspect
from lm.text.tokenizer import ByteTokenizer
from lm.tune.samples import replies, reply_prompt
from tests import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    declared = tiny.experiment(tiny.write_texts(folder / "texts"))
    short = declared.replace(steps=2, prompts=("the ",), sample_tokens=8, eval_every_steps=9, checkpoint_every_steps=9)
    course.train(short, folder / "run")
    return folder / "run"


def test_the_report_links_to_the_inside_of_the_first_sample(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (sample,) = json.loads((finished / "samples.json").read_text())
    assert sample["inspect"] == sample["text"] == sample_to_inspect(finished)
    page, report = finished / "inside.html", finished / "report.html"
    metrics = (finished / "metrics.jsonl").read_bytes()
    assert 'href="inside.html"' not in report.read_text() and not page.exists()
    look_inside(finished)
    assert f"inside: {page}" in capsys.readouterr().out
    assert 'href="inside.html"' in report.read_text() and "<h1>run</h1>" in page.read_text()
    assert (finished / "metrics.jsonl").read_bytes() == metrics
    page.write_text("as it was")
    look_inside(finished)
    assert page.read_text() == "as it was"
    monkeypatch.setattr("launch.serve.load", lambda path, *args: load(path))
    assert main(["report", str(finished), "--inside"]) == 0
    assert page.read_text() != "as it was"


def test_a_run_without_text_has_none(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "experiment.json").write_text((finished / "experiment.json").read_text())
    look_inside(tmp_path)
    (tmp_path / "samples.json").write_text(json.dumps([{"title": "pair", "prompt": "", "text": "a", "inspect": ""}]))
    look_inside(tmp_path)
    assert capsys.readouterr().out == "" and not (tmp_path / "inside.html").exists()
    assert 'href="inside.html"' not in write_report(tmp_path).read_text()
    monkeypatch.setattr("launch.serve.load", lambda *args: None)
    assert main(["report", str(tmp_path), "--inside"]) == 1
    assert "has no sample of text to look into" in capsys.readouterr().err


def test_what_hinders_it_is_a_line(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run is whole without."""
    (tmp_path / "experiment.json").write_text((finished / "experiment.json").read_text())
    (tmp_path / "samples.json").write_text(json.dumps([{"title": "", "prompt": "", "text": "a", "inspect": "a"}]))
    look_inside(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("looking inside …\nno page of the model's inside: ") and said.count("\n") == 2


def test_a_study_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.json").write_text("{}")
    assert main(["report", str(tmp_path), "--inside"]) == 1
    assert "--inside is of a run" in capsys.readouterr().err


def test_a_reply_is_looked_into_as_the_model_read_and_wrote_it(finished: Path) -> None:
    """By the chat template, where there is one."""
    model, tokenizer = load(finished), ByteTokenizer()
    settings = replace(read_experiment(finished), prompts=("Hi",), sample_tokens=4)
    for template, begin in ((None, "Hi"), ("{{ bos_token }}{{ messages[0].content }}|", "<bos>Hi|")):
        tokenizer.chat_template = template
        ids = reply_prompt(tokenizer, "Hi")
        (sample,) = replies(model, settings, tokenizer)
        reply = sample.text.removeprefix("Hi\n\n")
        assert sample.inspect == begin + reply and encode(model, begin) == ids
