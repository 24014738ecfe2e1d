"""`lm list`: everything on the pages once, a line each."""

from pathlib import Path

import pytest

from launch.find import find, find_study
from tests.launch.commands import said

PAGE = '''"""A page of mine,
over two lines.

More of it.
"""

from experiments.llama import experiment as theirs, llama3_8b
from lm.study.sweep import Sweep
from lm.study.space import Uniform

# Experiment(
experiment = theirs.replace(steps=100)
other = theirs.replace(steps=200)
dropout = Sweep(experiment, {"model.dropout": Uniform(0.0, 0.5)}, count=3)
_hidden = theirs.replace(steps=300)
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("lm.machine.hardware.prepare", lambda devices="": None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def listed(shown: str) -> dict[str, list[list[str]]]:
    """title -> (reference, line) pairs."""
    titles: dict[str, list[list[str]]] = {}
    for block in shown.strip().split("\n\n"):
        title, *lines = block.splitlines()
        titles[title] = [line.split(maxsplit=1) for line in lines]
    return titles


def test_every_page_s_experiments_sizes_and_studies_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(said(capsys, "list"))
    experiments, sizes = found.pop("Experiments, for lm train"), found.pop("Published sizes, for lm train and lm plan")
    assert [
        "experiments.quickstart",
        "The first run: a small Llama learns Python from the machine's own standard library.",
    ] in experiments
    assert ["experiments.llama:llama3_8b", "32 layers of width 4,096, context 8,192, 128,256 ids"] in sizes
    assert all(line for line in (line for _, line in experiments + sizes))
    for reference, _ in experiments + sizes:
        assert find(reference)
    studies = {reference: line for lines in found.values() for reference, line in lines}
    assert studies["experiments.ablations.heads:heads"].startswith("3 arms, 3 seeds: How many heads")
    assert studies["experiments.sweep:sweep"].startswith("tpe, 16 arms: ")
    assert {"Ablation, for lm study", "Sweep, for lm study", "Ladder, for lm study"} <= found.keys()
    for reference in studies:
        assert find_study(reference)
    every = [reference for reference, _ in experiments + sizes] + list(studies)
    assert len(every) == len(set(every)) and "experiments.t5:quickstart" not in every


def test_a_page_of_one_s_own_and_one_that_fails(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_page_listed.py").write_text(PAGE)
    (here / "my_broken_page.py").write_text("x = Experiment(steps=1)\n")
    shown = said(capsys, "list", "MY_")
    about = "A page of mine, over two lines."
    assert listed(shown) == {
        "Experiments, for lm train": [["my_page_listed", about], ["my_page_listed:other", about]],
        "Sweep, for lm study": [["my_page_listed:dropout", f"random, 3 arms: {about}"]],
        next(line for line in shown.splitlines() if "my_broken_page cannot be read: NameError" in line): [],
    }


def test_what_nothing_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing has 'llamma' in its name or line: lm list shows all" in said(capsys, "list", "llamma", code=1)
