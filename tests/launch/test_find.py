"""An experiment is found by module and name, and what keeps it from being found is said in one line."""

import os
from pathlib import Path

import pytest

from launch.find import changed, check_may_load, find, find_study
from lm.data.source import TextFile, TextFolder

PAGE = """import dataclasses
from experiments.quickstart import experiment as base
{name} = dataclasses.replace(base, steps=40)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_module_has_its_experiment() -> None:
    experiment, reference = find("experiments.quickstart")
    assert experiment.name == "quickstart" and reference == "experiments.quickstart:experiment"
    assert find("experiments/quickstart.py") == (experiment, reference)


def test_a_name_on_a_page_of_ones_own(here: Path) -> None:
    (here / "page_one.py").write_text(PAGE.format(name="small"))
    assert find("page_one:small")[0].steps == 40
    with pytest.raises(ValueError, match="page_one:experiment is not there: known: .*small"):
        find("page_one")
    with pytest.raises(ValueError, match="page_one:dataclasses is module, no Experiment"):
        find("page_one:dataclasses")


def test_a_page_by_its_path_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away, near = here / "away", here / "near"
    for folder in (away, near):
        folder.mkdir()
    (away / "beside_it.py").write_text("STEPS = 40\n")
    page = away / "a-page.py"
    page.write_text("from beside_it import STEPS\n" + PAGE.format(name="small").replace("40", "STEPS"))
    (away / "json.py").write_text(PAGE.format(name="experiment"))  # a name that a module has already
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.syspath_prepend(str(near))  # what is added to sys.path goes with it
    monkeypatch.chdir(near)
    for reference in (f"{page}:small", "../away/a-page.py:small", f"{page.with_suffix('')}:small"):
        experiment, full = find(reference)
        assert experiment.steps == 40 and full == f"{page}:small"
    assert find(full)[0] is experiment  # read once
    (near / "odd-name.py").write_text(PAGE.format(name="experiment"))  # no module's name leads to it
    assert find("odd-name.py")[1] == f"{near / 'odd-name.py'}:experiment"
    assert find(str(away / "json.py"))[0].steps == 40
    import json

    assert json.dumps({}) == "{}" and str(away) in os.environ["PYTHONPATH"].split(os.pathsep)
    (away / "failing.py").write_text("x = 1\nexperiment = int('no')\n")
    (near / "run").mkdir()
    (near / "run" / "experiment.json").write_text("{}")
    for wrong, said in {
        str(away): "is a folder, and no page",
        str(away / "gone.py"): "no such page: ",
        "../gone.py": "no such page: ../gone.py",
        "gone/page.py": "no such page: gone/page.py: `lm list`",
        "experiments/quickstrat.py": "no such page: experiments/quickstrat.py: did you mean experiments.quickstart",
        "page.py": "no such page: page.py",
        "../near/run": "near/run is a run's folder, and no page: its page resumes it, with --workdir ../near/run",
        "../away/failing.py": r"ValueError: invalid literal .*failing\.py:2",
    }.items():
        with pytest.raises(ValueError, match=said):
            find(wrong)


def test_a_study_by_its_path_is_reported(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LM_TRUST", "0")
    page = here / "somewhere" / "elsewhere.py"
    page.parent.mkdir()
    page.write_text("raise KeyError('imported')")
    with pytest.raises(ValueError, match="named by a file of the run and not imported here"):
        check_may_load(f"{page}:study")
    page.write_text(PAGE.format(name="experiment"))
    (here / "other").mkdir()
    monkeypatch.chdir(here / "other")
    find(str(page))
    check_may_load(f"{page}:study")


def test_an_unknown_module_names_those_that_may_be_meant(here: Path) -> None:
    (here / "mine.py").write_text("experiment = Experiment(steps=1)\n")
    for wrong, meant in {"experiments.quickstrat": "experiments.quickstart", "mime": "mine"}.items():
        with pytest.raises(ValueError, match=f"did you mean {meant}.*`lm list` shows those there are$"):
            find(wrong)
    for wrong in ("", "nowhere.at.all", ".", "..x"):
        with pytest.raises(ValueError, match="unknown experiment"):
            find(wrong)


def test_a_page_of_the_other_kind_names_its_verb(here: Path) -> None:
    with pytest.raises(ValueError, match="known: small; `lm study experiments.ablations.heads:heads` runs a study"):
        find("experiments.ablations.heads")
    with pytest.raises(ValueError, match="no study: known: none; `lm train experiments.quickstart` trains an exp"):
        find_study("experiments.quickstart")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("page_bad_value", "x = 1\nexperiment = int('no')\n", r"ValueError: invalid literal .*page_bad_value\.py:2"),
        ("page_bad_import", "import not_installed_anywhere\n", r"ModuleNotFoundError: .*page_bad_import\.py:1"),
        ("page_bad_syntax", "x = 1\ndef (\n", r"SyntaxError: .*page_bad_syntax\.py:2"),
    ],
)
def test_a_page_that_fails_says_where(here: Path, name: str, text: str, said: str) -> None:
    (here / f"{name}.py").write_text(text)
    with pytest.raises(ValueError, match=said):
        find(name)


def test_settings_may_come_in_any_order() -> None:
    base, _ = find("experiments.quickstart")
    fewer = ["steps=4", "seed=1", "optimizer.schedule.warmup_steps=1", "seed=2"]
    assert changed(base, fewer) == changed(base, fewer[::-1]).replace(seed=2)
    with pytest.raises(ValueError, match="warmup_steps=10"):
        changed(base, fewer[:2])


def test_settings_and_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    base, _ = find("experiments.quickstart")
    new = changed(base, ["steps=50", "model.layers=1"], str(tmp_path), host_devices=2)
    assert (new.steps, new.model.layers, new.compute.devices) == (50, 1, 2)
    (source,) = new.data.mixture.sources.values()
    assert isinstance(source, TextFolder) and source.path == str(tmp_path)
    one = changed(base, [], str(tmp_path / "a.txt")).data.mixture.sources["text"]
    assert isinstance(one, TextFile)
    with pytest.raises(ValueError, match="no such file or folder"):
        changed(base, [], str(tmp_path / "nowhere"))
    (tmp_path / "b.md").write_text("more")
    with pytest.warns(UserWarning, match=f"--text {tmp_path}: only its 1 .txt files are read, left out are 1 .md"):
        changed(base, [], str(tmp_path))
