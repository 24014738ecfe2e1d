"""`lm launch gke`: the JobSet that would be submitted, against its published schema."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.accelerators import parse_slice
from tests.launch.commands import GKE, PAGE, SCALED, Tool, said

SCHEMA = Path(__file__).parents[2] / ".." / "shared" / "data" / "schemas" / "jobset-crd.yaml"

pytestmark = pytest.mark.usefixtures("bucket")


def manifest(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    return dict(yaml.safe_load(said(capsys, *GKE, *options)))


@pytest.mark.parametrize(
    ("tpu", "label", "pods", "chips"),
    [
        ("v4:2x2x4", "tpu-v4-podslice", 4, 4),
        ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
        ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
        ("v5p:2x2x1", "tpu-v5p-slice", 1, 4),
        ("v5p:4x4x4", "tpu-v5p-slice", 16, 4),
        ("v6e:1x1", "tpu-v6e-slice", 1, 1),
        ("v6e:4x8", "tpu-v6e-slice", 8, 4),
    ],
)
def test_slices_and_their_machines(
    tpu: str, label: str, pods: int, chips: int, capsys: pytest.CaptureFixture[str]
) -> None:
    made = manifest(capsys, "--tpu", tpu, "--slices", "2")
    (job,) = made["spec"]["replicatedJobs"]
    assert (
        job["replicas"] == 2
        and job["template"]["spec"]["completions"] == pods == job["template"]["spec"]["parallelism"]
    )
    pod = job["template"]["spec"]["template"]["spec"]
    topology = tpu.partition(":")[2]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips} == container["resources"]["requests"]
    assert container["env"] == [{"name": "LM_PROCESSES", "value": "auto"}]
    assert container["command"] == ["python", "-m", "launch", "train", PAGE, *SCALED, "--workdir", "gs://bucket/run"]
    whole(made)


def test_gpus_queue_and_account(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--queue",
        "multislice-queue",
        "--service-account",
        "writer",
        "--env",
        "A=b=c",
        "--spot",
        "--priority",
        "high",
    )
    made = manifest(capsys, "--gpu", "h100", "--machines", "4", *options)
    assert made["metadata"]["labels"] == {
        "xpk.google.com/workload": "quickstart",
        "kueue.x-k8s.io/queue-name": "multislice-queue",
    }
    (job,) = made["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    env = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
    assert env == {
        "LM_COORDINATOR": "quickstart-slice-job-0-0.quickstart:55527",
        "LM_PROCESSES": "4",
        "LM_PROCESS": None,
        "A": "b=c",
    }
    assert pod["nodeSelector"]["cloud.google.com/gke-accelerator"] == "nvidia-h100-80gb"
    assert (pod["serviceAccountName"], pod["priorityClassName"]) == ("writer", "high")
    whole(made)


def whole(made: dict[str, Any]) -> None:
    """What a cluster checks: the definition of JobSet where it is at hand, and what it says no more than in words."""
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = made["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["template"]["spec"]["restartPolicy"] == "Never"
    for container in spec["template"]["spec"]["containers"]:
        assert all(isinstance(e.get("value", ""), str) for e in container["env"])
        assert all(isinstance(word, str) for word in container["command"])
    pod = f"{made['metadata']['name']}-{job['name']}-{job['replicas']}-{spec['completions']}-abcde"
    assert len(pod) <= 63


def closed(schema: Any) -> Any:
    """An openAPIV3Schema of Kubernetes that refuses fields that it does not know, as its server does."""
    if isinstance(schema, list):
        return [closed(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {k: closed(v) for k, v in schema.items() if not k.startswith("x-kubernetes")}
    if "properties" in made and "additionalProperties" not in made and isinstance(made.get("type"), str):
        made["additionalProperties"] = False
    return made


def test_the_manifest_is_what_kubernetes_defines(capsys: pytest.CaptureFixture[str]) -> None:
    if not SCHEMA.exists():
        pytest.skip(f"the definition of JobSet is not at {SCHEMA}")
    import jsonschema

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    (definition,) = (d for d in yaml.load_all(SCHEMA.read_text(), loader) if d)
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1alpha2")
    validator = jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))
    full = ("--queue", "q", "--service-account", "w", "--env", "A=b", "--spot", "--priority", "high")
    for options in (
        ("--tpu", "v5p:4x4x4", "--slices", "2"),
        ("--gpu", "h100", "--machines", "4"),
        ("--tpu", "v6e:2x4", *full),
    ):
        made = manifest(capsys, *options)
        assert [error.message for error in validator.iter_errors(made)] == []
    made["spec"]["replicatedJobs"][0]["replica"] = 2
    assert "'replica' was unexpected" in next(validator.iter_errors(made)).message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "name a --tpu, as in v5p:4x4x4, or a --gpu"),
        (("--tpu", "v9:2x2"), "unknown TPU 'v9'"),
        (("--tpu", "v5p:4x4"), "expected 3 sides, as in v5p:4x4x4"),
        (("--tpu", "v5p:4x4x3"), "no such slice"),
        (("--tpu", "v5p:8x4x4"), "sides are in ascending order"),
        (("--tpu", "v6e:3x4"), "there are 1x1, 2x2, 2x4, 4x4, 4x8"),
        (("--gpu", "h900"), "unknown GPU 'h900'"),
        (("--gpu", "h100", "--env", "1A"), "--env 1A: expected NAME=VALUE"),
        (("--gpu", "h100", "--name", "x" * 41), "expected at most 40 of a-z"),
        (("--gpu", "h100", "--workdir", "runs/a"), "a pod's disk goes with it"),
        (("--gpu", "h100", "--image="), "--image is missing"),
    ],
)
def test_what_no_cluster_has(options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in said(capsys, *GKE, *options, code=1)


def test_kubectl_applies_it(tool: Tool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [word for word in GKE if word != "--dry-run"] + ["--tpu", "v5p:4x4x4"]
    assert "kubectl is not on the PATH" in said(capsys, *argv, code=1)
    tool("kubectl", f'case "$*" in *apply*) cat > {tmp_path}/applied;; *) echo NotFound >&2; exit 1;; esac')
    assert "logs -f job/quickstart-slice-job-0" in said(capsys, *argv)
    assert (tmp_path / "applied").read_text() == said(capsys, *argv, "--dry-run")
    tool("kubectl", "exit 0")
    assert "a JobSet 'quickstart' is there already" in said(capsys, *argv, code=1)
    tool("kubectl", "echo 'no cluster' >&2; exit 1")
    assert "kubectl cannot ask the cluster for JobSets: no cluster" in said(capsys, *argv, code=1)


def test_known_slices() -> None:
    assert parse_slice("v5p:2x2x4")[0].hosts("2x2x4") == 4
    assert parse_slice("v5p:12x12x16")[0].hosts("12x12x16") == 576
