"""What is launched is checked against the devices that are asked for, before anything is printed or submitted."""

import itertools

import pytest
import yaml

from launch.accelerators import TPUS, parse_type
from tests.launch.commands import GKE, SCALED, said

LLAMA = "experiments.llama"
PLACE = ("--workdir", "gs://bucket/run", "--dry-run")
CLUSTER = ("launch", "gke", "--image", "IMAGE", *PLACE)
ZONE = ("launch", "tpu-vm", "--zone", "us-east5-b", *PLACE)
NODES = ("launch", "slurm", *PLACE)
STUDY = ("launch", "slurm", "study", "experiments.ablations.heads", "--dry-run")

pytestmark = pytest.mark.usefixtures("bucket")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((*CLUSTER, "--tpu", "v5p:4x4x4", LLAMA), "llama cannot run on the 64 devices of --tpu v5p:4x4x4: 8"),
        ((*CLUSTER, "--tpu", "tpu7x:2x2x1", LLAMA, "--set", "mesh.fsdp=4"), "needs 4 devices, 8 are"),
        ((*CLUSTER, "--tpu", "v6e:2x4", "--slices", "2", f"{LLAMA}:llama3_8b"), "set mesh.replica=2"),
        ((*CLUSTER, "--gpu", "h100", "--machines", "4", LLAMA), "the 32 devices of 4 x 8 h100: 8 rows"),
        ((*CLUSTER, "--gpu", "l4", "--gpus-per-machine", "3", LLAMA), "the 3 devices of 1 x 3 l4: 8 rows"),
        ((*CLUSTER, "--gpu", "l4", "--machines", "9999999999", LLAMA), "--machines are 1 to 100,000"),
        ((*NODES, "--nodes", "9999999999", LLAMA), "expected 1 to 100,000 of each"),
        ((*CLUSTER, "--gpu", "l4", "--gpus-per-machine", "-1", LLAMA), "--gpus-per-machine -1: expected at least 1"),
        ((*CLUSTER, "--tpu", "v5p:48x48x48", f"{LLAMA}:llama3_8b"), "a slice of v5p has at most 6,144"),
        ((*ZONE, "--type", "v6e-16", LLAMA), "the 16 devices of --type v6e-16: 8 rows a micro-batch"),
        ((*ZONE, "--type", "v5p-16", LLAMA, "--set", "mesh.tensor=8"), "cannot be divided over mesh tensor=8"),
        ((*ZONE, "--type", "v6e-17", LLAMA), "--type v6e-17: no such slice; the nearest are v6e-8 or v6e-16 or v6e-32"),
        ((*ZONE, "--type", "v5p-12", LLAMA), "no such slice; the nearest are v5p-8 or v5p-16"),
        ((*ZONE, "--type", "v5litepod-512", LLAMA), "no such slice; the nearest are v5litepod-128 or v5litepod-256"),
        ((*NODES, "--nodes", "4", "--tasks-per-node", "8", "--sbatch", "--gres=gpu:8", LLAMA), "32 devices of 4 x 8"),
        ((*NODES, "--nodes", "3", LLAMA, "--devices", "cpu"), "the 3 devices of 3 x 1 tasks: 8 rows"),
        ((*NODES, LLAMA, "--devices", "cpu", "--host-devices", "3"), "the 3 devices of 1 x 1 tasks"),
        ((*NODES, "--sbatch", "--gpus-per-node=h100:3", LLAMA), "the 3 devices of 1 x 1 tasks"),
        ((*NODES, "--tasks-per-node", "8", "--sbatch", "--gres gpu:4", LLAMA), "so give --tasks-per-node 4"),
        ((*NODES, "--nodes", "2", "--sbatch", "-G8", LLAMA), "so give --tasks-per-node 4"),
        ((*STUDY, "--set", "mesh.data=2", "--devices", "cpu"), "mesh data 2 needs 2 devices"),
    ],
)
def test_what_the_devices_cannot_hold(
    command: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, *command, code=1)


@pytest.mark.parametrize(
    "command",
    [
        (*CLUSTER, "--tpu", "tpu7x:2x2x1", LLAMA, "--set", "mesh.fsdp=8"),
        (*CLUSTER, "--tpu", "v6e:2x4", "--slices", "2", f"{LLAMA}:llama3_8b", "--set", "mesh.replica=2"),
        (*CLUSTER, "--tpu", "v6e:2x2", "--slices", "2", LLAMA),  # without a mesh, slices are replicas
        (*CLUSTER, "--gpu", "h100", LLAMA),
        (*ZONE, "--type", "v5p-16", LLAMA, "--set", "mesh.fsdp=4", "mesh.tensor=2"),
        (*NODES, "--nodes", "2", "--tasks-per-node", "4", "--sbatch", "--gres=gpu:h100:4,lustre:1", LLAMA),
        (*NODES, "--tasks-per-node", "4", "--sbatch", "--gpus-per-task=1", LLAMA),
        (*NODES, "--nodes", "2", LLAMA, "--devices", "cpu", "--host-devices", "4"),
        (*NODES, "--sbatch", "-p gpu --exclusive", LLAMA, "--set", "mesh.fsdp=8"),  # who knows what is there
    ],
    ids=" ".join,
)
def test_what_they_can(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, *command)


@pytest.mark.parametrize("kind", TPUS)
def test_types_are_of_the_slices_there_are(kind: str) -> None:
    tpu = TPUS[kind]
    for chips in tpu.sizes():
        assert parse_type(f"{tpu.type}-{chips * tpu.cores}") == (tpu, chips)
    assert all(2 * a <= 2 * b for a, b in itertools.pairwise(tpu.sizes())) and tpu.sizes()[-1] == tpu.most


def test_an_error_of_the_page_is_not_restarted(capsys: pytest.CaptureFixture[str]) -> None:
    """A container that exits with 1 or 2 fails its job for the reason PodFailurePolicy, which fails the set; every
    other failure is one of those that `maxRestarts` counts."""
    made = yaml.safe_load(said(capsys, *GKE, "--tpu", "v5p:4x4x4"))
    assert made["spec"]["failurePolicy"] == {
        "maxRestarts": 10,
        "rules": [{"name": "error", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    (job,) = made["spec"]["replicatedJobs"]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2]}}
    assert job["template"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # as a pod failure policy needs
    assert SCALED[0] in GKE
