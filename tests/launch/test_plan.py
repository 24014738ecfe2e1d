"""`lm plan` from the command line, by arithmetic."""

import json
from pathlib import Path

import pytest

from launch.__main__ import main


def test_a_plan_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plans" / "plan.json"
    command = ["plan", "experiments.gpt:gpt2", "--topology", "v5e:4x4", "--analytic", "--json", str(file)]
    assert main([*command, "--set", "rows_per_device=4", "compute.remat=minimal"]) == 0
    said, plan = capsys.readouterr().out, json.loads(file.read_text())
    assert "analytic" in said and "not modelled" in said and "MFU" in said
    assert plan["tokens"] == 16 * 4 * 1024 and plan["remat"] == "minimal" and plan["fits"]


def test_a_search_ends_with_what_to_paste(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plans.json"
    command = ["plan", "experiments.gpt:gpt2", "--topology", "h100:8", "--search", "--json", str(file)]
    assert main(command) == 0
    said, plans = capsys.readouterr().out, json.loads(file.read_text())
    assert "mesh=dict(" in said and len(plans) > 3
    assert plans[0]["settings"] in " ".join(said.split())


def test_a_search_pastes_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "experiments.llama:llama3_70b", "--topology", "v5p:4x4x4", "--search", "--analytic"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "paste" in said and "DOES NOT FIT" not in said and "no setting that was tried" not in said


def test_a_search_in_which_nothing_fits_pastes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lm.plan.plan.Plan.fits", False)
    assert main(["plan", "experiments.gpt:gpt2", "--topology", "h100:8", "--search"]) == 1
    said = capsys.readouterr()
    assert "paste" not in said.out and "does not fit" in said.out
    assert "gpt2 fits h100:8 in none of the" in said.err and "take more chips" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5p:4x4x5"], "v5p comes as 2x2x1"),
        (["--topology", "v5e:4x4", "--set", "mesh.fsdp=3"], "needs 3 devices, 16 are here"),
        (["--topology", "v5e:4x4", "--set", "rows_per_device=0.3"], "expected whole rows"),
        (["--topology", "v5e:4x4", "--set", "mesh.fsdp=1", "mesh.tensor=16"], "cannot be divided over mesh tensor=16"),
        (["--topology", "v5e:4x4", "--analytic", "--hlo", "x.hlo"], "--hlo writes what the compiler makes"),
        (["--topology", "v5p:4x4x4*2"], "set mesh.replica=2"),
    ],
)
def test_what_cannot_be_planned(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "experiments.gpt:gpt2", *arguments]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
