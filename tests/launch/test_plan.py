"""`lm plan` from the command line, by arithmetic."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.find import find
from launch.plan import ranking
from lm.plan import analytic
from lm.plan.search import Candidate
from lm.plan.topology import parse_topology
from tests.pretrained.small import BY_NAME, LLAMA, checkpoint


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


def test_candidates_that_differ_in_vector_memory_are_told_apart() -> None:
    topology = parse_topology("v5p:4x4x4")
    e = find("experiments.llama:llama3_8b")[0].on(topology.devices)
    some = [replace(e, compute=replace(e.compute, scoped_vmem=mib)) for mib in (0, 64)]
    table = ranking([Candidate(one, analytic.plan(one, topology)) for one in some])
    assert list(table.columns[3].cells) == ["128", "128, vmem 64"]


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


def test_a_plan_of_decoding_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plans" / "plan.json"
    command = ["plan", "experiments.llama:llama3_8b", "--decode", "--topology", "h100:8", "--json", str(file)]
    assert main([*command, "--batch", "16", "--context", "4096"]) == 0
    said, plan = " ".join(capsys.readouterr().out.split()), json.loads(file.read_text())
    assert "llama3_8b decodes on 8 devices of h100:8: tensor 8" in said and "a chip" in said
    assert "16 rows of 4,096 tokens, bfloat16 parameters" in said and "bound by memory bandwidth" in said
    assert plan["batch"] == 16 and plan["fits"] and plan["step"]["mesh"] == {"tensor": 8}
    assert plan["tokens_per_second"] == 8 * plan["tokens_per_second_per_chip"] == plan["step"]["tokens_per_second"]


def test_a_mesh_is_chosen_unless_it_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", "experiments.llama:llama3_8b", "--decode", "--topology", "h100:8", "--set"]
    assert main([*command, "model.layers=2"]) == 0 and "tensor 8" in capsys.readouterr().out
    assert main([*command, "mesh.fsdp=2", "mesh.tensor=4"]) == 0
    assert "fsdp 2 x tensor 4" in capsys.readouterr().out
    assert main([*command, "mesh.tensor=4"]) == 0 and "fsdp 2 x tensor 4" in capsys.readouterr().out


def test_the_model_of_a_file_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(BY_NAME[LLAMA], tmp_path / "small")
    command = ["plan", str(tmp_path / "small"), "--decode", "--topology", "h100:2", "--context", "32", "--set"]
    assert main([*command, "mesh.tensor=2"]) == 0
    assert "small decodes on 2 devices of h100:2: tensor 2" in capsys.readouterr().out
    assert main([*command, "model.layers=2"]) == 1
    assert "of a model's file only the mesh can be set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("llama:llama3_8b", ["--context", "9000"], "llama3_8b has a context of 8192 tokens"),
        ("llama:llama3_8b", ["--batch", "0"], "--batch 0 --context 2048: expected at least 1 of each"),
        ("llama:llama3_8b", ["--weights", "int8"], "int8 is for one CPU alone"),
        ("llama:llama3_8b", ["--search"], "--search is not for --decode"),
        ("llama:llama3_8b", ["--set", "mesh.expert=8"], "this model has no experts"),
        ("llama:llama3_8b", ["--set", "mesh.tensor=3", "mesh.fsdp=1"], "needs 3 devices, 8 are here"),
        ("llama:llama3_8b", ["--set", "mesh.context=8"], "mesh axis context=8 splits rows"),
        ("llama:llama3_70b", [], "its bfloat16 parameters take 17.6 and the cache of 32 rows of 2048 tokens 2.7"),
        ("bert:bert_base", [], "this model is an encoder"),
        ("t5:t5_base", [], "reads an encoder: a plan of decoding is of a decoder alone"),
    ],
)
def test_what_cannot_be_decoded(
    model: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", f"experiments.{model}", "--decode", "--topology", "v5e:2x4", "--analytic", *arguments]
    assert main(command) == 1
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "what"), [((), "the step"), (("--decode", "--context", "512"), "decoding and the prefill")]
)
def test_what_is_compiled_is_said(
    more: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise ValueError("not compiled")

    monkeypatch.setattr("launch.plan.has_compiler", lambda: True)
    monkeypatch.setattr("lm.plan.compile.compile_step", failing)
    monkeypatch.setattr("lm.plan.decoding.plan", failing)
    command = ["plan", "experiments.gpt:gpt2", "--topology", "v5e:2x2", *more]
    assert main(command) == 1
    assert capsys.readouterr().err == "lm: not compiled\n"
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # a terminal
    assert main(command) == 1
    assert f"compiling {what} for v5e:2x2" in capsys.readouterr().err


def test_a_batch_is_of_decoding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "experiments.gpt:gpt2", "--topology", "v5e:4x4", "--batch", "8"]) == 1
    assert "--batch is of a plan of decoding: add --decode" in capsys.readouterr().err
