"""`lm launch tpu-vm`: a slice of TPU VMs for the duration of the command.

gcloud creates a queued resource and waits for it; this checkout is copied to every machine and installed, and the
command runs on all of them. Then the slice is deleted, also after an error or Ctrl-C, unless --keep.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch import control
from launch.accelerators import machines, parse_type
from launch.job import Job

EPILOG = """\
The commit HEAD is what runs. The machines' disks are deleted with them, so the workdir is in a bucket. Preempted spot
machines are deleted too: the same command resumes from the last checkpoint.

examples:
  lm launch tpu-vm --type v6e-16 --zone us-east5-b --spot experiments.llama:llama3_2_1b --workdir gs://b/run --dry-run
  lm launch tpu-vm --type v5p-128 --zone us-east5-a --reserved --project p experiments.llama:llama3_8b --workdir gs://b/run
"""
CODE = "lm.tar.gz"
# the machines' own Python is too old; uv installs another
INSTALL = (
    f"mkdir -p lm && tar -xzf {CODE} -C lm && cd lm && curl -LsSf https://astral.sh/uv/install.sh | sh && "
    "~/.local/bin/uv venv --clear --python 3.12 .venv && "
    '~/.local/bin/uv pip install --python .venv -e ".[tpu,gcs]" -c constraints.txt'
)
POLL_SECONDS = 20.0
TERMINAL = ("FAILED", "SUSPENDED", "SUSPENDING", "DELETING")  # states from which a request never becomes ACTIVE


def add(engines: Any) -> Any:
    """Declare the engine."""
    engine = engines.add_parser("tpu-vm", help="a slice of TPU VMs, by gcloud", description=__doc__, epilog=EPILOG)
    engine.add_argument("--type", default="", metavar="TYPE", help="accelerator type, as in v6e-16, v5p-128")
    engine.add_argument("--zone", default="", help="as in us-east5-b")
    engine.add_argument("--project", default="", help="default: gcloud's own")
    engine.add_argument("--runtime", default="", metavar="VERSION", help="the machines' system (the type's usual one)")
    engine.add_argument("--service-account", default="", metavar="EMAIL", help="that may write the bucket")
    engine.add_argument("--spot", action="store_true", help="machines that may be preempted")
    engine.add_argument("--reserved", action="store_true", help="machines of a reservation")
    engine.add_argument("--keep", action="store_true", help="do not delete the slice at the end")
    return engine


def run(args: argparse.Namespace, job: Job) -> int:
    """Create the slice, run the command on all of its machines, and delete it; the command's exit code."""
    steps = plan(args, job)
    if args.dry_run:
        for name, command in steps.items():
            if not (args.keep and name == "delete"):
                print(f"# {name}\n{shlex.join(command)}")
        return 0
    job.need("gcloud", "tpu-vm", "install the Google Cloud CLI, then gcloud auth login")
    if subprocess.run(steps["describe"], capture_output=True, check=False).returncode == 0:
        raise ValueError(f"a queued resource {job.name!r} is there already: delete it, or give another --name")
    try:
        _run_step(steps["create"])
        _until_active(steps["describe"])
        for name in ("pack", "copy", "install"):
            _run_step(steps[name])
        return subprocess.run(steps["run"], check=False).returncode
    finally:
        Path(CODE).unlink(missing_ok=True)
        if args.keep:
            print(f"kept; to delete it: {shlex.join(steps['delete'])}")
        else:
            _uninterrupted(lambda: subprocess.run(steps["delete"], check=False))


def state(args: argparse.Namespace, job: Job) -> str:
    """The state of the queued resource."""
    job.need("gcloud", "tpu-vm", "install the Google Cloud CLI, then gcloud auth login")
    return control.output(request(args, job, "describe", "--format=value(state.state)"), "NOT_FOUND")


def cancel(args: argparse.Namespace, job: Job) -> None:
    """Delete the slice."""
    control.output(request(args, job, "delete", "--force", "--quiet"))


def request(args: argparse.Namespace, job: Job, verb: str, *options: str) -> list[str]:
    """The gcloud command about the queued resource. Raises ValueError without a zone."""
    check_zone(args)
    where = [f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])]
    return ["gcloud", "compute", "tpus", "queued-resources", verb, job.name, *where, *options]


def check_zone(args: argparse.Namespace) -> None:
    """Raises ValueError where --zone is missing, or is none."""
    if not args.zone:
        raise ValueError("lm launch tpu-vm: --zone is missing, as in --zone us-east5-b")
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", args.zone):
        raise ValueError(f"--zone {args.zone!r}: expected a zone's name, as in us-east5-b")


def plan(args: argparse.Namespace, job: Job) -> dict[str, list[str]]:
    """The steps, in order, as commands. Raises ValueError for options that contradict each other or the job."""
    runtime = check(args, job)
    tpu = ["gcloud", "compute", "tpus"]
    where = [f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])]
    options = [f"--node-id={job.name}", f"--accelerator-type={args.type}"]
    options += [f"--runtime-version={runtime}"]
    options += [f"--service-account={args.service_account}"] if args.service_account else []
    options += [f"--{name}" for name in ("spot", "reserved") if getattr(args, name)]
    ssh = [*tpu, "tpu-vm", "ssh", job.name, *where, "--worker=all"]
    command = shlex.join([".venv/bin/python", "-m", "launch", *job.command])
    return {
        "create": request(args, job, "create", *options),
        "describe": request(args, job, "describe", "--format=value(state.state)"),
        "pack": ["git", "archive", "--format=tar.gz", f"--output={CODE}", "HEAD"],
        "copy": [*tpu, "tpu-vm", "scp", CODE, f"{job.name}:~/{CODE}", *where, "--worker=all"],
        "install": [*ssh, f"--command={INSTALL}"],
        "run": [*ssh, f"--command=cd lm && LM_PROCESSES=auto {command}"],
        "delete": request(args, job, "delete", "--force", "--quiet"),
    }


def check(args: argparse.Namespace, job: Job) -> str:
    """The machines' runtime version. Raises ValueError for options that contradict each other or the job."""
    if machines(args.type) > 1 and job.verb != "train":
        raise ValueError(f"lm {job.verb} is one process: choose a type of one machine, as v6e-8")
    check_zone(args)
    if args.spot and args.reserved:
        raise ValueError("lm launch tpu-vm: --spot and --reserved exclude each other")
    if "://" not in job.workdir and not args.keep:
        raise ValueError(
            "the machines' disks go with them: name a bucket, --workdir gs://BUCKET/RUN, or --keep the slice"
        )
    tpu, count = parse_type(args.type)
    job.check_devices(tpu.devices(count), 1, f"--type {args.type}")
    return args.runtime or tpu.runtime


def _run_step(command: list[str]) -> None:
    print(f"+ {shlex.join(command)}", flush=True)
    if code := subprocess.run(command, check=False).returncode:
        raise ValueError(f"{' '.join(command[:5])} failed with code {code}")


def _until_active(describe: list[str]) -> None:
    """Wait until the slice is there. Raises ValueError where it never will be."""
    before = ""
    while True:
        described = subprocess.run(describe, capture_output=True, text=True, check=False)
        state = described.stdout.strip()
        if described.returncode:
            raise ValueError(f"gcloud does not know the request: {described.stderr.strip()}")
        if state != before:
            print(f"the request is {state}", flush=True)
        if state == "ACTIVE":
            return
        if state in TERMINAL:
            raise ValueError(f"the request is {state}: try another zone or type, --spot or --reserved")
        before = state
        time.sleep(POLL_SECONDS)


def _uninterrupted(f: Callable[[], Any]) -> None:
    """`f()`, repeated after Ctrl-C: a slice that is not deleted costs money."""
    while True:
        try:
            f()
            return
        except KeyboardInterrupt:
            print("deleting the slice: wait", file=sys.stderr)
