"""`lm launch`: the same command on several processes, on a cluster or on a TPU pod.

The engines are this machine's processes, Slurm's sbatch, kubectl with JobSet, and gcloud's queued resources. Each is
one file, with `add` (its options) and `run`. The command is validated first, before any machine is used.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

from launch import control, gke, local, slurm, tpu_vm, train
from launch.find import changed, find_study
from launch.job import Job

ENGINES: dict[str, ModuleType] = {"local": local, "slurm": slurm, "gke": gke, "tpu-vm": tpu_vm}
VERBS = ("train", "study", "evaluate")  # what can be launched
EPILOG = """\
After the engine comes an lm command; without a verb it is `train`. The engine's own options may be anywhere in it.
--dry-run prints exactly what would be submitted, and submits nothing.

examples:
  lm launch local -n 2 experiments.quickstart                            two processes here
  lm launch slurm --nodes 4 --tasks-per-node 8 experiments.llama:llama3_8b --workdir /shared/run --dry-run
  lm launch slurm study experiments.ablations.heads --workdir /shared/heads
  lm launch gke --tpu v5p:4x4x4 --image IMAGE experiments.llama:llama3_8b --workdir gs://bucket/run
  lm launch tpu-vm --type v6e-16 --zone us-east5-b --spot experiments.llama:llama3_2_1b --workdir gs://bucket/run

With --status, --follow or --cancel a job that is there is asked for, by the same words or its --name:

  lm launch slurm --follow experiments.quickstart --workdir /shared/run      submit it, or find it, and show its output
  lm launch slurm --cancel experiments.quickstart

The batch and the mesh are checked against the devices that are asked for before anything is submitted or printed.
On SIGTERM a run writes a checkpoint in all its processes and exits with 143; a run that lost a process exits with 75,
or is aborted by JAX (134). The same command resumes it. See also lm launch ENGINE --help.
"""


def add(verbs: Any) -> None:
    """Declare `lm launch` and its engines."""
    verb = verbs.add_parser(
        "launch", help="run a command on several processes, a cluster or a pod", description=__doc__, epilog=EPILOG
    )
    engines = verb.add_subparsers(dest="engine", metavar="ENGINE", required=True)
    for module in ENGINES.values():
        engine = module.add(engines)
        engine.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
        engine.add_argument("--name", default="", help="the job's name (default: the experiment's)")
        if hasattr(module, "state"):
            control.add(engine)
        engine.add_argument(
            "words",
            nargs=argparse.REMAINDER,
            metavar="[VERB] EXPERIMENT ...",
            help="an lm command, with its options; `train` may be left out",
        )
        engine.set_defaults(run=run)
        engine.parse_known_args = partial(parse_options, engine, engine.parse_known_args)


def run(args: argparse.Namespace) -> int:
    """Validate the command, and run it by the engine."""
    from lm.machine import hardware

    hardware.prepare()
    if args.words and sys.stderr.isatty():
        print(f"lm: checking {shlex.join(args.words)}", file=sys.stderr, flush=True)
    if control.asked(args) and args.name and not args.words:
        return control.run(args, Job((), argparse.Namespace(), args.name), ENGINES[args.engine])
    job = parse_job(args.top, args.words, args.name)
    if control.asked(args) and not args.follow:
        return control.run(args, job, ENGINES[args.engine])
    if "://" in job.workdir and not args.dry_run:
        from lm.machine import buckets

        buckets.check_writable(job.workdir)
    if control.asked(args):
        return control.run(args, job, ENGINES[args.engine])
    return int(ENGINES[args.engine].run(args, job) or 0)


def parse_options(engine: Any, parse: Any, words: Sequence[str], namespace: Any = None) -> tuple[Any, list[str]]:
    """`engine`'s own options, parsed wherever they are in `words`; the others become `words` of the namespace."""
    own, rest = split_options(engine, words)
    namespace, _ = parse(own, namespace)
    namespace.words = rest
    return namespace, []


def split_options(parser: Any, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of `parser` among `words`, and the other words."""
    own: list[str] = []
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        action = parser._option_string_actions.get(word.partition("=")[0])
        if word == "--":
            rest += left
            break
        if action is None:
            rest.append(word)
            continue
        if action.nargs != 0 and "=" not in word and left:
            word += ("=" if word.startswith("--") else "") + left.pop(
                0
            )  # one word, since the value may begin with a dash
        own.append(word)
    return own, rest


def parse_job(top: Any, words: Sequence[str], name: str = "") -> Job:
    """The job of the lm command `words`. Raises ValueError for an error in its verb, options, experiment or fields."""
    from lm.machine import buckets

    if not words:
        raise ValueError("nothing to launch: name an experiment, as in lm launch local -n 2 experiments.quickstart")
    if words[0] in top._subparsers._group_actions[0].choices and words[0] not in VERBS:
        raise ValueError(f"lm {words[0]} cannot be launched: {', '.join(VERBS)} can")
    command = list(words) if words[0] in VERBS else ["train", *words]
    args, experiment = top.parse_args(command), None
    if command[0] == "train":
        experiment = train.asked(args)[0]
        name = name or experiment.name
    elif command[0] == "study":
        if "://" in (args.workdir or ""):
            raise ValueError(f"--workdir {args.workdir}: a study's folder is on a disk, not in a bucket")
        study, full = find_study(args.study)
        experiment = changed(study.base, args.set, args.text) if hasattr(study, "base") else None
        name = name or full.rpartition(":")[2]
    name = re.sub(r"[^a-z0-9-]+", "-", (name or command[0]).lower()).strip("-") or command[0]
    job = Job(tuple(command), args, name, experiment)
    buckets.check_url(job.workdir)
    return job
