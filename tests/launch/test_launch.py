"""`lm launch`: what would be submitted, and what a mistake says before anything is. Tools are stood in for by scripts
that note how they were called."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch import local
from launch.__main__ import main
from launch.launch import split_options
from lm.machine import buckets
from tests.launch.commands import GKE, PAGE, SCALED, Tool, said

TPU = ("launch", "tpu-vm", "--type", "v6e-16", "--zone", "us-east5-b", PAGE, *SCALED, "--workdir", "gs://bucket/run")

CHECK = buckets.check_writable

pytestmark = pytest.mark.usefixtures("bucket")


# ---------------------------------------------------------------- what is to be run


def test_an_engine_s_options_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    one = said(capsys, "launch", "local", "-n", "3", "--dry-run", PAGE, "--set", "steps=50", "seed=1")
    other = said(capsys, "launch", "local", "train", PAGE, "--set", "steps=50", "seed=1", "--dry-run", "-n", "3")
    assert one == other
    assert one.splitlines()[2] == (
        "LM_COORDINATOR=127.0.0.1:PORT LM_PROCESSES=3 LM_PROCESS=2 "
        f"{sys.executable} -m launch train {PAGE} --set steps=50 seed=1"
    )


def test_what_belongs_to_the_engine() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("-n", "--processes")
    parser.add_argument("--dry-run", action="store_true")
    words = ["train", "page", "--dry-run", "--set", "a=1", "--processes=3", "-n", "2", "--", "-n", "5"]
    rest = ["train", "page", "--set", "a=1", "-n", "5"]
    assert split_options(parser, words) == (["--dry-run", "--processes=3", "-n2"], rest)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 1, "nothing to launch: name an experiment"),
        (("experiments.nowhere",), 1, "unknown experiment 'experiments.nowhere'"),
        ((PAGE, "--set", "model.layer=2"), 1, "layers"),
        ((PAGE, "--seeds", "2"), 2, "unrecognized arguments: --seeds 2"),
        (("sample", "runs/a"), 1, "lm sample cannot be launched: train, study, evaluate can"),
        (("study", "experiments.ablations.heads"), 1, "lm study is one process: -n 1"),
        ((PAGE, "-n", "0"), 1, "-n 0: expected at least 1"),
    ],
)
def test_a_mistake_costs_no_machine(
    words: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, "launch", "local", *words, code=code)


def test_a_bucket_that_cannot_be_written(
    tool: Tool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tool("gcloud", "")
    monkeypatch.setattr("lm.machine.buckets.check_writable", CHECK)
    assert "nowhere://bucket/run" in said(capsys, *TPU[:-1], "nowhere://bucket/run", code=1)
    assert not calls.exists()


# ---------------------------------------------------------------- local


def test_one_that_fails_ends_the_others(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.2)
    code = "import os, time; print('here', flush=True); os.environ['LM_PROCESS'] == '1' and os._exit(3); time.sleep(60)"
    began = time.monotonic()
    each = [local.environment(i, 2, []) for i in range(2)]
    assert local.run_processes([sys.executable, "-c", code], each, tmp_path / "logs") == 3
    assert time.monotonic() - began < 10
    assert "process 1 of 2 failed with code 3: the others were ended; its output:" in capfd.readouterr().err
    assert (tmp_path / "logs" / "process-1.txt").read_text() == "here\n"


def test_one_that_is_killed_ends_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.2)
    code = "import os, time; os.environ['LM_PROCESS'] == '0' and os.kill(os.getpid(), 9); time.sleep(60)"
    each = [local.environment(i, 2, []) for i in range(2)]
    assert local.run_processes([sys.executable, "-c", code], each, tmp_path) == 128 + signal.SIGKILL
    assert "process 0 of 2 was killed by signal 9: the others were ended" in capfd.readouterr().err


def test_gpus_are_shared_out(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    tool("nvidia-smi", "for i in 0 1 2 3; do echo GPU $i: H100; done")
    lines = said(capsys, "launch", "local", "-n", "2", "--dry-run", PAGE).splitlines()
    assert "CUDA_VISIBLE_DEVICES=0,1 " in lines[0] and "CUDA_VISIBLE_DEVICES=2,3 " in lines[1]
    assert "4 GPUs do not divide among 3 processes" in said(capsys, "launch", "local", "-n", "3", PAGE, code=1)


# ---------------------------------------------------------------- slurm

SLURM = ("launch", "slurm", PAGE, "--nodes", "2", "--tasks-per-node", "4")


def test_the_script_of_slurm(capsys: pytest.CaptureFixture[str]) -> None:
    script = said(capsys, *SLURM, "--sbatch", "-p long --gres=gpu:4 --time 4:00:00", "--set", "steps=50", "--dry-run")
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in (
        "--job-name=quickstart",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--requeue",
        "--signal=B:TERM@120",
        "-plong",
        "--gres=gpu:4",
        "--time=4:00:00",
    ):
        assert f"#SBATCH {option}" in lines
    assert "export LM_PROCESSES=auto" in lines
    assert f"srun --kill-on-bad-exit=1 {sys.executable} -m launch train {PAGE} --set steps=50 &" in lines


def test_an_option_of_sbatch_may_stand_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (
        ("--sbatch", "--overcommit", PAGE),
        (PAGE, "--sbatch", "--overcommit"),
        ("--sbatch=--overcommit", PAGE),
    ):
        assert "#SBATCH --overcommit\n" in said(capsys, "launch", "slurm", *argv, "--dry-run")


def test_slurm_submits_once(tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tool("squeue", "")
    tool("sbatch", f"cat > {tmp_path}/script; echo '12;cluster'")
    out = said(capsys, *SLURM, "--workdir", str(tmp_path / "run"))
    assert out.startswith("job 12: squeue --job 12; tail -f ") and f"{tmp_path}/run/slurm-12.log" in out
    assert (tmp_path / "script").read_text() == said(capsys, *SLURM, "--workdir", str(tmp_path / "run"), "--dry-run")


def test_what_slurm_refuses(tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    workdir = ("--workdir", str(tmp_path / "run"))
    assert "sbatch is not on the PATH" in said(capsys, *SLURM, *workdir, code=1)
    calls = tool("sbatch", "echo 'invalid partition' >&2; exit 1")
    tool("squeue", "")
    assert "sbatch refused the job: invalid partition" in said(capsys, *SLURM, *workdir, code=1)
    calls.unlink()
    tool("squeue", "echo '7 RUNNING'")
    assert "a job 'quickstart' is there already (7 RUNNING)" in said(capsys, *SLURM, *workdir, code=1)
    assert not calls.exists()


@pytest.mark.parametrize(
    ("task", "code", "queued"),
    [("", 75, True), ("", 143, True), ("echo no > $LM_ERROR", 143, False), ("", 1, False)],
)
def test_an_error_of_the_page_is_not_queued_again(
    task: str, code: int, queued: bool, tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """srun's code is the highest of its tasks: where one fails and the others are ended for it, 143."""
    script = said(capsys, *SLURM, "--workdir", str(tmp_path / "a b"), "--dry-run")
    (tmp_path / "a b").mkdir()
    shutil.copy(shutil.which("rm", path="/bin:/usr/bin") or "", tmp_path / "bin")
    tool("srun", f"{task}\nexit {code}")
    calls = tool("scontrol", "")
    environment = {"PATH": str(tmp_path / "bin"), "SLURM_JOB_ID": "7"}
    run = subprocess.run(["/bin/bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == code, run.stderr
    assert (calls.exists() and calls.read_text() == "requeue 7\n") == queued
    assert list((tmp_path / "a b").iterdir()) == []


@pytest.mark.parametrize("argv", [["show", "experiments.nowhere"], ["trian"]])
def test_a_command_that_fails_says_so_to_its_job(argv: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LM_ERROR", str(tmp_path / "error"))
    assert main(argv) in (1, 2) and "unknown " in (tmp_path / "error").read_text()


# ---------------------------------------------------------------- tpu-vm


def gcloud(states: str, run: str = "exit 0") -> str:
    """A gcloud whose request goes through `states`, once it is made; `run` is what ssh does to the command."""
    return f"""
folder=$(dirname "$0")
case "$*" in
  *" create "*) echo {states} > $folder/states;;
  *" describe "*)
    [ -f $folder/states ] || exit 1
    read -r first rest < $folder/states; echo $first; [ -z "$rest" ] || echo $rest > $folder/states;;
  *" ssh "*LM_PROCESSES*) {run};;
esac
"""


def verbs(calls: Path) -> list[str]:
    """What was asked of gcloud: its verbs, one after the other."""
    known = ("create", "describe", "scp", "ssh", "delete")
    found = [next(v for v in known if f" {v} " in f" {line} ") for line in calls.read_text().splitlines()]
    return [v for i, v in enumerate(found) if i == 0 or found[i - 1] != v]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import subprocess

    monkeypatch.setattr("launch.tpu_vm.POLL_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)  # a checkout to pack
    subprocess.run(
        "git init -q && git -c user.name=a -c user.email=a commit -q --allow-empty -m a", shell=True, check=True
    )


@pytest.mark.parametrize(("run", "code"), [("exit 0", 0), ("exit 7", 7)])
def test_a_slice_is_made_used_and_deleted(
    run: str, code: int, tool: Tool, quick: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls = tool("gcloud", gcloud("WAITING_FOR_RESOURCES PROVISIONING ACTIVE", run))
    assert main(TPU) == code
    assert verbs(calls) == ["describe", "create", "describe", "scp", "ssh", "delete"]
    text = calls.read_text()
    assert "--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e" in text
    command = f"train {PAGE} --set rows_per_device=1 --workdir gs://bucket/run"
    assert f"LM_PROCESSES=auto .venv/bin/python -m launch {command}" in text
    assert text.splitlines()[-1] == "compute tpus queued-resources delete quickstart --zone=us-east5-b --force --quiet"
    assert not (tmp_path / "lm.tar.gz").exists()


def test_a_slice_that_does_not_come_is_deleted(tool: Tool, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    calls = tool("gcloud", gcloud("WAITING_FOR_RESOURCES FAILED"))
    assert "the request is FAILED: try another zone" in said(capsys, *TPU, code=1)
    assert verbs(calls)[-1] == "delete"


def test_an_interrupted_slice_is_deleted_or_kept(
    tool: Tool, quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(describe: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("launch.tpu_vm._until_active", interrupted)
    calls = tool("gcloud", gcloud("ACTIVE"))
    assert main(TPU) == 130
    assert verbs(calls) == ["describe", "create", "delete"]
    calls.unlink()
    (calls.parent / "bin" / "states").unlink()
    assert main([*TPU, "--keep"]) == 130
    assert verbs(calls) == ["describe", "create"]
    assert "kept; to delete it: gcloud compute tpus queued-resources delete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--type", "v9-8"), "unknown accelerator type 'v9-8'"),
        (("--type", "v6e"), "expected an accelerator type, as in v6e-16"),
        (("--zone", ""), "--zone is missing"),
        (("--spot", "--reserved"), "--spot and --reserved exclude each other"),
        (("--workdir", "runs/a"), "the machines' disks go with them"),
        ((), "gcloud is not on the PATH"),
    ],
)
def test_what_no_zone_has(
    options: tuple[str, ...], message: str, tool: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, *TPU, *options, code=1)


def test_a_name_that_is_taken(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    calls = tool("gcloud", "echo ACTIVE")
    assert "a queued resource 'quickstart' is there already" in said(capsys, *TPU, code=1)
    assert verbs(calls) == ["describe"]


def test_a_dry_run_asks_nobody(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    calls = [tool(name, "exit 1") for name in ("gcloud", "kubectl", "sbatch", "squeue")]
    for argv in ((*TPU, "--dry-run"), (*GKE, "--tpu", "v5p:4x4x4"), (*SLURM, "--dry-run")):
        assert said(capsys, *argv)
    assert not any(file.exists() for file in calls)
    assert json.dumps("gcloud compute tpus queued-resources create quickstart --zone=us-east5-b")[1:-1] in said(
        capsys, *TPU, "--dry-run"
    )
