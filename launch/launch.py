"""`lm launch`: the same command on several processes, on a cluster or on a TPU pod.

Engines that exist do the work: this machine's processes, Slurm's sbatch, kubectl with JobSet, gcloud's queued
resources. Each is one file, with `add` (its options) and `run`. What is to be run is checked here first: a mistake
costs no machine.
"""

import argparse
import re
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

from launch import gke, local, slurm, tpu_vm
from launch.find import changed, find, find_study
from launch.job import Job

ENGINES: dict[str, ModuleType] = {"local": local, "slurm": slurm, "gke": gke, "tpu-vm": tpu_vm}
VERBS = ("train", "study", "evaluate")  # what can be launched
EPILOG = """\
What comes after the engine is an lm command, `train` where it names none. The engine's own options may stand anywhere
in it. --dry-run prints exactly what would be submitted, and submits nothing.

examples:
  lm launch local -n 2 experiments.quickstart                            two processes here
  lm launch slurm --nodes 4 --tasks-per-node 8 experiments.quickstart --workdir /shared/run --dry-run
  lm launch slurm study experiments.ablations.heads --workdir /shared/heads
  lm launch gke --tpu v5p:4x4x4 --image IMAGE experiments.llama:llama3_8b --workdir gs://bucket/run
  lm launch tpu-vm --type v6e-16 --zone us-east5-b --spot experiments.quickstart --workdir gs://bucket/run

A run that is asked to end (SIGTERM) writes a checkpoint in all its processes and exits with 143; one that lost a
process exits with 75, or is aborted by JAX (134). The same command goes on. lm launch ENGINE --help tells more of each.
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
        engine.add_argument(
            "words",
            nargs=argparse.REMAINDER,
            metavar="[VERB] EXPERIMENT ...",
            help="an lm command, with its options; `train` may be left out",
        )
        engine.set_defaults(run=run)
        engine.parse_known_args = partial(parsed, engine, engine.parse_known_args)


def run(args: argparse.Namespace) -> int:
    """Check what is to be run, and hand it to the engine."""
    from lm.machine import hardware

    hardware.prepare()
    job = described(args.top, args.words, args.name)
    if "://" in job.workdir and not args.dry_run:
        from lm.machine import buckets

        buckets.check_writable(job.workdir)
    return int(ENGINES[args.engine].run(args, job) or 0)


def parsed(engine: Any, parse: Any, words: Sequence[str], namespace: Any = None) -> tuple[Any, list[str]]:
    """What `engine`'s own `parse` makes of its options, wherever they stand in `words`; the rest is for lm."""
    own, rest = apart(engine, words)
    namespace, _ = parse(own, namespace)
    namespace.words = rest
    return namespace, []


def apart(parser: Any, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of `parser` that stand in `words`, and the rest."""
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
            word += ("=" if word.startswith("--") else "") + left.pop(0)  # in one: its value may begin with a dash
        own.append(word)
    return own, rest


def described(top: Any, words: Sequence[str], name: str = "") -> Job:
    """The job of the lm command `words`. Raises ValueError for anything that is wrong with it: verb, options,
    experiment, fields."""
    if not words:
        raise ValueError("nothing to launch: name an experiment, as in lm launch local -n 2 experiments.quickstart")
    if words[0] in top._subparsers._group_actions[0].choices and words[0] not in VERBS:
        raise ValueError(f"lm {words[0]} cannot be launched: {', '.join(VERBS)} can")
    command = list(words) if words[0] in VERBS else ["train", *words]
    args = top.parse_args(command)
    if command[0] == "train":
        experiment = changed(find(args.experiment)[0], args.set, args.text, args.host_devices)
        name = name or experiment.name
    elif command[0] == "study":
        if "://" in (args.workdir or ""):
            raise ValueError(f"--workdir {args.workdir}: a study's folder is on a disk, not in a bucket")
        name = name or find_study(args.study)[1].rpartition(":")[2]
    name = re.sub(r"[^a-z0-9-]+", "-", (name or command[0]).lower()).strip("-")
    return Job(tuple(command), args, name)
