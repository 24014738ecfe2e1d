"""`lm launch gke`: a JobSet on Kubernetes, on TPU slices or GPU machines.

A slice is a job of the set, with a pod per machine; several slices are one run. The manifest has the form of xpk's, so
that `xpk workload list` and `delete` find it, and Kueue queues it. kubectl applies it.
"""

import argparse
import math
import re
import subprocess
import sys
import time
from typing import Any

from launch import control
from launch.accelerators import GPUS, chips, parse_slice
from launch.job import Job
from lm.value import suggest

EPILOG = """\
The image has this code, installed by `pip install ".[tpu]"` or ".[cuda]". The workdir is in a bucket, or on a disk that
the pods share.

examples:
  lm launch gke --tpu v5p:4x4x4 --image IMAGE experiments.llama:llama3_8b --workdir gs://bucket/run --dry-run
  lm launch gke --tpu v6e:16x16 --slices 4 --image IMAGE experiments.llama:llama3_8b --workdir gs://bucket/run \\
      --set mesh.replica=4 --queue multislice-queue
  lm launch gke --gpu h100 --machines 4 --image IMAGE experiments.llama:llama3_8b --workdir gs://bucket/run
"""
POLL_SECONDS = 5.0
ENDED = 'restarts:{.status.restarts} {.status.conditions[?(@.status=="True")].type}'  # what has come of a JobSet
JOB, PORT = "slice-job", 55527  # xpk's name of the replicated job; the port of the first GPU pod
GRACE_SECONDS = 120  # from SIGTERM to SIGKILL, for a checkpoint
MOST = 100_000  # slices or machines
FINAL = (1, 2)  # exit codes of an error that a restart would repeat
PLAIN = r"[A-Za-z][A-Za-z0-9_./-]*"  # text that needs no quotes in YAML, unless a parser takes it for
NO_TEXT = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"])


def add(engines: Any) -> Any:
    """Declare the engine."""
    engine = engines.add_parser("gke", help="a JobSet on Kubernetes", description=__doc__, epilog=EPILOG)
    engine.add_argument("--tpu", default="", metavar="TYPE:TOPOLOGY", help="as in v5p:4x4x4, v6e:16x16")
    engine.add_argument("--slices", type=int, default=1, metavar="N", help="TPU slices (1)")
    engine.add_argument("--gpu", default="", metavar="TYPE", help=f"one of {', '.join(GPUS)}")
    engine.add_argument("--machines", type=int, default=1, metavar="N", help="GPU machines (1)")
    engine.add_argument("--gpus-per-machine", type=int, default=0, metavar="N", help="GPUs of each (the usual ones)")
    engine.add_argument("--image", default="", help="the container's image, with this code installed")
    engine.add_argument("--queue", default="", metavar="QUEUE", help="Kueue's LocalQueue")
    engine.add_argument("--priority", default="", metavar="CLASS", help="a PriorityClass")
    engine.add_argument("--namespace", default="default", help="the namespace (default)")
    engine.add_argument("--service-account", default="", metavar="NAME", help="that may write the bucket")
    engine.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the container")
    engine.add_argument("--spot", action="store_true", help="on spot machines")
    engine.add_argument("--restarts", type=int, default=10, metavar="N", help="of the set, when a pod is lost (10)")
    return engine


def run(args: argparse.Namespace, job: Job) -> None:
    """Apply the manifest, or print it."""
    text = as_yaml(manifest(args, job))
    if args.dry_run:
        print(text, end="")
        return
    job.need("kubectl", "gke", "install it, and point it at a cluster: gcloud container clusters get-credentials")
    kubectl = ["kubectl", "--namespace", args.namespace]
    existing = subprocess.run([*kubectl, "get", "jobset", job.name], capture_output=True, text=True, check=False)
    if existing.returncode == 0:
        raise ValueError(
            f"a JobSet {job.name!r} is there already: kubectl delete jobset {job.name}, or give another --name"
        )
    if "NotFound" not in existing.stderr:
        raise ValueError(f"kubectl cannot ask the cluster for JobSets: {existing.stderr.strip()}")
    done = subprocess.run([*kubectl, "apply", "-f", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"kubectl refused the manifest: {done.stderr.strip()}")
    print(done.stdout.strip())
    follow = f"kubectl --namespace {args.namespace}"
    print(f"{follow} get jobset {job.name}; {follow} logs -f job/{job.name}-{JOB}-0")


def state(args: argparse.Namespace, job: Job) -> str:
    """The JobSet and its pods, as kubectl lists them."""
    job.need("kubectl", "gke", "install it, and point it at a cluster: gcloud container clusters get-credentials")
    kubectl = ["kubectl", "--namespace", args.namespace, "get"]
    found = control.output([*kubectl, "jobset", job.name], "NotFound")
    pods = f"--selector=jobset.sigs.k8s.io/jobset-name={job.name}"
    return f"{found}\n{control.output([*kubectl, 'pods', pods])}".strip() if found else ""


def cancel(args: argparse.Namespace, job: Job) -> None:
    """Delete the JobSet: its pods get SIGTERM, and GRACE_SECONDS for a checkpoint."""
    control.output(["kubectl", "--namespace", args.namespace, "delete", "jobset", job.name])


def follow(args: argparse.Namespace, job: Job) -> int:
    """Print the log of the first pod, and of that which comes in its place after a restart, until the JobSet ends; 0
    where it is complete."""
    kubectl, shown, before = ["kubectl", "--namespace", args.namespace], "", [""]
    asked = [*kubectl, "get", "jobset", job.name, f"--output=jsonpath={ENDED}"]
    while True:
        restarts, *reached = control.output(asked, "NotFound").split() or ["", "Deleted"]
        if reached != before:
            print(f"{job.name} is {' '.join(reached) or 'under way'}", file=sys.stderr, flush=True)
        before = reached
        if restarts != shown and not subprocess.run([*kubectl, "logs", "-f", f"job/{job.name}-{JOB}-0"]).returncode:
            shown = restarts
        elif {"Completed", "Failed", "Deleted"} & {*reached}:
            return 0 if "Completed" in reached else 1
        else:
            time.sleep(POLL_SECONDS)


def as_yaml(data: dict[str, Any]) -> str:
    """`data` as YAML that parsers of versions 1.1 and 1.2 read alike: every text is quoted that one of them could take
    for something else, as 1e3, 08 or no."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, one: str) -> yaml.ScalarNode:
        plain = re.fullmatch(PLAIN, one) and one.lower() not in NO_TEXT
        return dumper.represent_scalar("tag:yaml.org,2002:str", one, style=None if plain else '"')

    Dumper.add_representer(str, text)
    return str(yaml.dump(data, Dumper=Dumper, sort_keys=False, width=math.inf, allow_unicode=False))


def literal(text: str) -> str:
    """`text` so that Kubernetes, which replaces $(NAME) in commands and environments by a variable, leaves it alone."""
    return text.replace("$", "$$")


def manifest(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    """The JobSet. Raises ValueError for anything that a cluster would refuse."""
    check(args, job)
    pods, replicas, nodes, resource, env = _tpu(args) if args.tpu else _gpu(args, job)
    env += [{"name": name, "value": literal(text)} for name, _, text in (e.partition("=") for e in args.env)]
    container = {
        "name": "jax-tpu" if args.tpu else "jax-gpu",
        "image": args.image,
        "command": ["python", "-m", "launch", *map(literal, job.command)],
        "env": env,
        "ports": [{"containerPort": port} for port in ((8471, 8080, 8482) if args.tpu else (PORT,))],
        "resources": {"requests": dict(resource), "limits": dict(resource)},
        "securityContext": {"privileged": True} if args.tpu else {},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": nodes | ({"cloud.google.com/gke-spot": "true"} if args.spot else {}),
        "tolerations": [{"key": "google.com/tpu" if args.tpu else "nvidia.com/gpu", "operator": "Exists"}],
        "containers": [{k: v for k, v in container.items() if v}],
    }
    if args.spot:
        pod["tolerations"] += [{"key": "cloud.google.com/gke-spot", "operator": "Exists"}]
    if args.service_account:
        pod["serviceAccountName"] = args.service_account
    if args.priority:
        pod["priorityClassName"] = args.priority
    ours = {"xpk.google.com/workload": job.name}
    queue = {"kueue.x-k8s.io/queue-name": args.queue} if args.queue else {}  # of the set: Kueue would queue pods, too
    spec = {"parallelism": pods, "completions": pods, "completionMode": "Indexed", "backoffLimit": 0}
    spec["podFailurePolicy"] = {
        "rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": list(FINAL)}}]
    }
    template = {"spec": {**spec, "template": {"metadata": {"labels": dict(ours)}, "spec": pod}}}
    pool = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": args.namespace,
            "labels": ours | queue,
            **({"annotations": pool} if args.tpu else {}),
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": args.restarts,
                "rules": [{"name": "error", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": JOB, "replicas": replicas, "template": template}],
        },
    }


def check(args: argparse.Namespace, job: Job) -> None:
    """Raises ValueError for options that contradict each other or the job."""
    if bool(args.tpu) == bool(args.gpu):
        raise ValueError("lm launch gke: name a --tpu, as in v5p:4x4x4, or a --gpu, as in h100")
    if not args.image:
        raise ValueError("lm launch gke: --image is missing: the container that holds this code")
    if not re.fullmatch(r"[\w./:@-]+", args.image, re.ASCII):
        raise ValueError(f"--image {args.image!r}: expected a container's name, as in REGISTRY/PROJECT/NAME:TAG")
    if not 1 <= min(args.slices, args.machines) <= max(args.slices, args.machines) <= MOST or args.restarts < 0:
        raise ValueError(f"lm launch gke: --slices and --machines are 1 to {MOST:,}, --restarts at least 0")
    if wrong := next((e for e in args.env if not re.fullmatch(r"[A-Za-z_]\w*=.*", e, re.DOTALL)), None):
        raise ValueError(f"--env {wrong}: expected NAME=VALUE")
    # a pod is called NAME-slice-job-0-0-xxxxx, and that is at most 63 characters
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", job.name):
        raise ValueError(f"--name {job.name}: expected at most 40 of a-z, 0-9 and -, from a letter on")
    if job.verb != "train" and (args.slices > 1 or args.machines > 1 or (args.tpu and hosts(args.tpu) > 1)):
        raise ValueError(f"lm {job.verb} is one process: choose one machine, as in --tpu v6e:2x4")
    if "://" not in job.workdir and not job.workdir.startswith("/"):
        raise ValueError(
            f"--workdir {job.workdir}: a pod's disk goes with it; name a bucket, --workdir gs://BUCKET/RUN, or a "
            "shared disk by its full path"
        )
    if args.tpu:
        tpu, topology = parse_slice(args.tpu)
        slices = f"{args.slices} x " if args.slices > 1 else ""
        job.check_devices(tpu.devices(chips(topology)) * args.slices, args.slices, f"--tpu {slices}{args.tpu}")
    else:
        gpus = gpus_per_machine(args)
        job.check_devices(gpus * args.machines, 1, f"{args.machines} x {gpus} {args.gpu}")


def hosts(text: str) -> int:
    """The machines of the slice `text`."""
    tpu, topology = parse_slice(text)
    return tpu.hosts(topology)


def _tpu(args: argparse.Namespace) -> tuple[int, int, dict[str, str], dict[str, int], list[dict[str, Any]]]:
    """Pods per slice, slices, node selector, resources of a pod, and its environment; JAX finds its peers by the
    variables that GKE sets in each pod of a slice."""
    tpu, topology = parse_slice(args.tpu)
    pods = tpu.hosts(topology)
    nodes = {"cloud.google.com/gke-tpu-accelerator": tpu.label, "cloud.google.com/gke-tpu-topology": topology}
    env = [{"name": "LM_PROCESSES", "value": "auto" if pods * args.slices > 1 else "1"}]
    return pods, args.slices, nodes, {"google.com/tpu": chips(topology) // pods}, env


def _gpu(args: argparse.Namespace, job: Job) -> tuple[int, int, dict[str, str], dict[str, int], list[dict[str, Any]]]:
    """As `_tpu`; a pod has all GPUs of a machine, and the first pod is found by its name."""
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    env: list[dict[str, Any]] = [
        {"name": "LM_COORDINATOR", "value": f"{job.name}-{JOB}-0-0.{job.name}:{PORT}"},
        {"name": "LM_PROCESSES", "value": str(args.machines)},
        {"name": "LM_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]
    nodes = {"cloud.google.com/gke-accelerator": GPUS[args.gpu][0]}
    return args.machines, 1, nodes, {"nvidia.com/gpu": gpus_per_machine(args)}, env


def gpus_per_machine(args: argparse.Namespace) -> int:
    """As asked for, or the usual number. Raises ValueError for a GPU that is not known, and a negative number."""
    if args.gpu not in GPUS:
        raise ValueError(f"unknown GPU {args.gpu!r}: {suggest(args.gpu, GPUS)}")
    if args.gpus_per_machine < 0:
        raise ValueError(f"--gpus-per-machine {args.gpus_per_machine}: expected at least 1")
    return args.gpus_per_machine or GPUS[args.gpu][1]
