"""A job that is there: its state, its output, its end, by tools that are shell scripts."""

from pathlib import Path

import pytest

from launch.__main__ import main
from tests.launch.commands import PAGE, SCALED, Tool, said

SLURM = ("launch", "slurm", PAGE)
GKE = ("launch", "gke", "--image", "IMAGE", "--tpu", "v5p:4x4x4", PAGE, *SCALED, "--workdir", "gs://bucket/run")
TPU = ("launch", "tpu-vm", "--zone", "us-east5-b", "--name", "one")
TURNS = """
folder=$(dirname "$0"); file=$folder/$(basename "$0").turns
read -r first rest < $file; echo $rest > $file
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in ("slurm", "gke"):
        monkeypatch.setattr(f"launch.{engine}.POLL_SECONDS", 0.0)


@pytest.fixture
def turns(tool: Tool, tmp_path: Path) -> Tool:
    """A tool that goes through answers: in its script $first is the one of this call."""

    def make(name: str, script: str) -> Path:
        answers, _, rest = script.partition("\n")
        (tmp_path / "bin" / "basename").exists() or (tmp_path / "bin" / "basename").symlink_to("/usr/bin/basename")
        (tmp_path / "bin" / f"{name}.turns").write_text(f"{answers}\n")
        return tool(name, f"{TURNS}\n{rest}")

    return make


def test_the_state_of_a_slurm_job(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    calls = tool("squeue", "echo '7 RUNNING 3:05 node1'")
    assert said(capsys, *SLURM, "--status") == "7 RUNNING 3:05 node1\n"
    assert said(capsys, "launch", "slurm", "--status", "--name", "other") == "7 RUNNING 3:05 node1\n"
    assert calls.read_text().splitlines() == [
        f"--noheader --me --format=%i %T %M %R --name={name}" for name in ("quickstart", "other")
    ]
    tool("squeue", "")
    assert "lm launch slurm: no job 'quickstart' is there" in said(capsys, *SLURM, "--status", code=1)
    tool("squeue", "echo 'E1128 23:03:13.02 Unhandled Error' >&2; echo 'no' >&2; echo 'controller' >&2; exit 1")
    assert "squeue --noheader --me failed: no controller" in said(capsys, *SLURM, "--cancel", code=1)


def test_a_cancelled_slurm_job_does_not_queue_itself_again(
    tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its script looks for this file (tests/launch/test_launch.py)."""
    (tmp_path / "run").mkdir()
    tool("squeue", "echo '7 RUNNING 1 n'; echo '8 PENDING 0 Priority'")
    calls = tool("scancel", "")
    assert "quickstart: cancelled" in said(capsys, *SLURM, "--workdir", str(tmp_path / "run"), "--cancel")
    assert calls.read_text() == "7 8\n"
    assert {f.name for f in (tmp_path / "run").iterdir()} == {"slurm-error-7", "slurm-error-8"}


def test_a_slurm_job_is_submitted_and_followed(
    tool: Tool, turns: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    submitted = tool("sbatch", f"cat > /dev/null; echo 7; echo line 1 > {run}/slurm-7.log")
    # asked for it before, by the check of its name, and then while it is followed
    turns(
        "squeue",
        f"- - PENDING RUNNING RUNNING -\n[ $first = - ] || echo 7 $first 0 n; echo $first >> {run}/slurm-7.log",
    )
    assert main([*SLURM, "--workdir", str(run), "--follow"]) == 0
    out, err = capsys.readouterr()
    assert submitted.exists() and "line 1\nPENDING\nRUNNING\nRUNNING\n-\n" in out and out.count("line 1") == 1
    assert err.splitlines() == ["job 7 is PENDING", "job 7 is RUNNING", "job 7 has left the queue"]
    submitted.unlink()
    turns("squeue", "RUNNING RUNNING -\n[ $first = - ] || echo 7 $first 0 n")
    assert main([*SLURM, "--workdir", str(run), "--follow"]) == 0 and not submitted.exists()
    assert "line 1" in capsys.readouterr().out


@pytest.mark.parametrize(("end", "code"), [("COMPLETED", 0), ("CANCELLED by 0", 1), ("", 0)])
def test_how_a_slurm_job_ended_is_told(
    end: str, code: int, tool: Tool, turns: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns("squeue", "RUNNING RUNNING -\n[ $first = - ] || echo 7 $first 0 n")
    calls = tool("sacct", f"echo '{end}'")
    assert main([*SLURM, "--workdir", str(tmp_path), "--follow"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"job 7 has left the queue{f': {end}' if end else ''}"
    assert "--jobs=7" in calls.read_text()


def test_the_state_and_the_end_of_a_jobset(tool: Tool, bucket: None, capsys: pytest.CaptureFixture[str]) -> None:
    calls = tool("kubectl", 'case "$*" in *" get jobset "*) echo a set;; *" get pods "*) echo its pods;; esac')
    assert said(capsys, *GKE, "--status") == "a set\nits pods\n"
    assert "quickstart: cancelled" in said(capsys, *GKE, "--cancel")
    assert calls.read_text().splitlines()[-1] == "--namespace default delete jobset quickstart"
    tool("kubectl", "echo 'jobset NotFound' >&2; exit 1")
    assert "no job 'quickstart' is there" in said(capsys, *GKE, "--status", code=1)


@pytest.mark.parametrize(("end", "code"), [("Completed", 0), ("Failed", 1)])
def test_a_jobset_is_followed_through_a_restart(
    end: str, code: int, turns: Tool, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = f"restarts: restarts: restarts:1 restarts:1,{end}"
    calls = turns(
        "kubectl",
        f"""{answers}
case "$*" in
  *jsonpath*) echo "$first" | tr , ' ';;
  *" logs "*) echo "$first $rest" > $file; echo log;;
  *) echo "$first $rest" > $file; echo there;;
esac""",
    )
    (Path(calls).parent / "bin" / "tr").symlink_to("/usr/bin/tr")
    assert main(["launch", "gke", "--name", "one", "--follow"]) == code
    out, err = capfd.readouterr()
    assert out == "log\nlog\n" and err.splitlines() == ["one is under way", f"one is {end}"]


def test_a_slice_is_asked_for_and_deleted(tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    calls = tool("gcloud", "echo ACTIVE")
    assert said(capsys, *TPU, "--status") == "ACTIVE\n"
    assert "one: cancelled" in said(capsys, *TPU, "--cancel")
    where = "compute tpus queued-resources {} one --zone=us-east5-b"
    assert calls.read_text().splitlines()[-1] == f"{where.format('delete')} --force --quiet"
    tool("gcloud", "echo 'NOT_FOUND: no such' >&2; exit 1")
    assert "lm launch tpu-vm: no job 'one' is there" in said(capsys, *TPU, "--status", code=1)
    assert "--zone is missing" in said(capsys, "launch", "tpu-vm", "--name", "one", "--status", code=1)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ((*SLURM, "--status", "--cancel"), 2, "not allowed with argument"),
        ((*SLURM, "--status", "--dry-run"), 1, "--dry-run is of what would be submitted"),
        (("launch", "slurm", "--status"), 1, "nothing to launch: name an experiment"),
        (("launch", "slurm", "--follow", "--name", "one"), 1, "no job 'one' is there"),
        (("launch", "slurm", "--status", "experiments.nowhere"), 1, "unknown experiment"),
    ],
)
def test_what_cannot_be_asked(
    argv: tuple[str, ...], code: int, message: str, tool: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    tool("squeue", "")
    assert message in said(capsys, *argv, code=code)
