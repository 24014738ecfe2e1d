"""Runs side by side: what differs, what they reached, and whether it is more than the noise of their seeds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from lm.run.compare import curves, fields, measures, open_runs, short_names, verdict
from tests.page.test_run_report import HOSTILE, fill, parsed

Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run by its path, whose held-out numbers are moved and whose fields are others."""

    def made(path: str, moved: float = 0.0, finished: bool = True, **changes: Any) -> str:
        folder = tmp_path / path
        folder.mkdir(parents=True)
        fill(folder)
        declared = json.loads((folder / "experiment.json").read_text())
        declared["value"] |= changes
        (folder / "experiment.json").write_text(json.dumps(declared))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        lines = [{k: v + moved if k.startswith("eval/") else v for k, v in line.items()} for line in lines]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if not finished:
            about = json.loads((folder / "about.json").read_text())
            (folder / "about.json").write_text(json.dumps(about | {"finished": None}))
        return str(folder)

    return made


def test_the_fields_that_differ_and_no_others(make: Make) -> None:
    a = make("a", optimizer={"type": "AdamW", "learning_rate": 1e-3}, start=None)
    b = make("b", optimizer={"type": "AdamW", "learning_rate": 2e-3}, start=None)
    c = make("c", optimizer={"type": "AdamW", "learning_rate": 1e-3}, start={"type": "Start", "path": "m"})
    assert fields(open_runs([a, b, c])) == {
        "optimizer.learning_rate": [1e-3, 2e-3, 1e-3],
        "start": [None, None, {"type": "Start", "path": "m"}],
    }


def test_noise_is_of_the_seeds_of_one_experiment(make: Make) -> None:
    runs = {seed: make(f"study/runs/one/{seed}", 0.1 * seed, seed=seed) for seed in range(3)}
    make("study/runs/one/3", 9.0, seed=3, finished=False)
    make("study/runs/one/4", 9.0, seed=4, steps=41)
    (Path(make("study/runs/one/5")) / "metrics.jsonl").write_text("")  # the same experiment, of no seed
    near, far = make("near", 0.05, name="near"), make("far", -1.0, name="far")
    one, other = open_runs([runs[1], near])
    key = "eval/code/bits_per_byte"
    assert one.deviation(key) == pytest.approx(0.1) and other.deviation(key) != other.deviation(key)
    assert "(within the noise" not in verdict([one, other])
    two = make("study/runs/two/0", 0.15, seed=0, width=8), make("study/runs/two/1", 0.35, seed=1, width=8)
    told = verdict(open_runs([runs[0], two[0]]))
    assert "code: " in told and "one/0 2.000, then two/0 2.150 (within the noise of seeds, ± 0.173" in told
    assert "more than" not in told and "code: far 1.000" in verdict(open_runs([far, runs[0]]))


def test_more_than_noise_is_said(make: Make) -> None:
    first = [make(f"a/{seed}", 0.01 * seed, seed=seed) for seed in range(2)]
    second = [make(f"b/{seed}", -0.5 - 0.01 * seed, seed=seed, width=8) for seed in range(2)]
    assert "(more than the noise of seeds" in verdict(open_runs([first[0], second[0]]))


def test_other_tokenizers_are_warned_of(make: Make) -> None:
    mixture = {"type": "Mixture", "sources": {"code": {"type": "TextFile", "path": "x"}}}
    a, b = make("a"), make("b", data={"type": "Data", "tokenizer": {"type": "Bytes"}, "mixture": mixture})
    assert verdict(open_runs([a, b])).endswith(
        "Their tokenizers and sources differ, so that not every measure compares."
    )
    assert verdict(open_runs([a, make("c")])).endswith("then c 2.000.")


def test_the_command_prints_and_draws(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a"), make("b", -0.5, steps=80, batch_tokens=1024)
    file = tmp_path / "pages" / "both.html"
    assert main(["compare", a, b, "--output", str(file)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for words in (
        "Held-out bits per byte, code: ",
        "Experiments.",
        "steps",
        "batch_tokens",
        "Last values.",
        f"page: {file}",
    ):
        assert words in told
    page = parsed(file)
    assert page.text.count("Training loss") >= 1 and HOSTILE not in file.read_text() and "tokens" in page.text
    assert {"svg", "table"} <= {name for name, _ in page.tags} and not {"script", "link", "img"} & {
        n for n, _ in page.tags
    }
    assert main(["compare", a, b, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fields"]["steps"] == {a: 40, b: 80} and data["values"][b]["eval/code/loss"] == 1.5
    assert list(measures(open_runs([a, b])))[0] == "loss"


def test_runs_of_other_batches_are_drawn_over_tokens(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("lm.page.plots.chart", lambda name, lines, across, **_: drawn.append((across, lines)) or "<svg")
    curves(open_runs([make("a"), make("b", batch_tokens=1024)]))
    curves(open_runs([make("c"), make("d", seed=1)]))
    assert [(across, [line.x[-1] for line in lines]) for across, lines in (drawn[0], drawn[-1])] == [
        ("tokens", [40 * 512, 40 * 1024]),
        ("step", [40, 40]),
    ]


def test_what_cannot_be_compared(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = make("a")
    for argv, said in {
        (a,): "one run has nothing to be compared with",
        (a, f"{a}/"): "is named twice",
        (a, str(tmp_path / "no")): "is not a run",
    }.items():
        assert main(["compare", *argv]) == 1
        assert said in capsys.readouterr().err


def test_names_are_short_and_different() -> None:
    assert short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert short_names(["s/runs/x/0", "s/runs/y/0", "s/z"]) == ["runs/x/0", "runs/y/0", "z"]
    assert short_names(["a", "a/b"]) == ["a", "a/b"] and short_names(["/x/a", "/y/a"]) == ["x/a", "y/a"]
