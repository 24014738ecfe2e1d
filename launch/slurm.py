"""`lm launch slurm`: a batch job of one or more tasks.

srun starts the tasks, and JAX finds the others through Slurm. Before its time limit, or when it is preempted, the job
receives SIGTERM: all tasks write a checkpoint, and the job requeues itself.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any

from launch.job import Job

EPILOG = """\
Each process uses one GPU: give as many tasks per node as GPUs. The workdir must be on a disk that all nodes share, or
in a bucket. `lm study --executor slurm` submits each run of a study as a job of its own.

examples:
  lm launch slurm experiments.quickstart --dry-run
  lm launch slurm --nodes 2 --tasks-per-node 8 --sbatch "--gres=gpu:8 --time=4:00:00 -p long" experiments.llama
  lm launch slurm study experiments.ablations.heads
"""
# 143: stopped on SIGTERM, after a checkpoint; 75, 134 (JAX aborts): lost a task, for instance with its node
SCRIPT = Template("""\
#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
#SBATCH --output=$log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@$grace
${options}
cd $here || exit 1
export LM_PROCESSES=$processes
srun --kill-on-bad-exit=1 $command &
step=$$!
trap 'kill -TERM $$step' TERM
wait $$step; code=$$?
while kill -0 $$step 2>/dev/null; do wait $$step; code=$$?; done
case $$code in 143 | 75 | 134)
  [ "$${SLURM_RESTART_COUNT:-0}" -lt $requeues ] && scontrol requeue "$$SLURM_JOB_ID" ;;
esac
exit $$code
""")


def add(engines: Any) -> Any:
    """Declare the engine."""
    engine = engines.add_parser("slurm", help="a batch job of Slurm", description=__doc__, epilog=EPILOG)
    engine.add_argument("--nodes", type=int, default=1, metavar="N", help="how many machines (1)")
    engine.add_argument("--tasks-per-node", type=int, default=1, metavar="N", help="processes on each (1)")
    engine.add_argument("--sbatch", default="", metavar="OPTIONS", help="options for sbatch, in one text")
    engine.add_argument("--grace", type=int, default=120, metavar="SECONDS", help="for a checkpoint, before the end")
    engine.add_argument("--requeues", type=int, default=100, metavar="N", help="the most times it queues again (100)")
    return engine


def run(args: argparse.Namespace, job: Job) -> None:
    """Submit the job and print how to follow it."""
    if args.nodes < 1 or args.tasks_per_node < 1:
        raise ValueError(f"--nodes {args.nodes} --tasks-per-node {args.tasks_per_node}: expected at least 1 of each")
    if job.verb != "train" and args.nodes * args.tasks_per_node > 1:
        raise ValueError(f"lm {job.verb} is one task; lm study --executor slurm submits a job for each of its runs")
    text = script(args, job)
    if args.dry_run:
        print(text, end="")
        return
    job.need("sbatch", "slurm", "run it on a node that submits jobs")
    check_name(job.name)
    if "://" not in job.workdir:
        Path(job.workdir).mkdir(parents=True, exist_ok=True)  # for the log
    done = subprocess.run(["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"sbatch refused the job: {done.stderr.strip() or done.stdout.strip()}")
    number = done.stdout.strip().partition(";")[0]
    print(f"job {number}: squeue --job {number}; tail -f {log(job).replace('%j', number)}")


def script(args: argparse.Namespace, job: Job) -> str:
    """The batch script."""
    command = [sys.executable, "-m", "launch", *job.command]
    options = shlex.split(args.sbatch)
    return SCRIPT.substitute(
        name=job.name,
        nodes=args.nodes,
        tasks=args.tasks_per_node,
        log=log(job),
        grace=args.grace,
        options="".join(f"#SBATCH {option}\n" for option in _joined(options)),
        here=shlex.quote(os.getcwd()),
        processes="auto" if args.nodes * args.tasks_per_node > 1 else "1",
        command=shlex.join(command),
        requeues=args.requeues,
    )


def _joined(options: list[str]) -> list[str]:
    """`-p long` as one option: a line of the script has an option with its value."""
    lines: list[str] = []
    for word in options:
        if word.startswith("-") or not lines:
            lines.append(word)
        else:
            lines[-1] += f"={word}" if lines[-1].startswith("--") else word
    return lines


def log(job: Job) -> str:
    """The file of the output of all tasks."""
    return "slurm-%j.log" if "://" in job.workdir else f"{Path(job.workdir).resolve()}/slurm-%j.log"


def check_name(name: str) -> None:
    """Raises ValueError where a job of this user has the name already: two must not write to one folder."""
    command = ["squeue", "--noheader", "--me", "--format=%i %T", f"--name={name}"]
    queue = subprocess.run(command, capture_output=True, text=True, check=False)
    if existing := queue.stdout.split("\n")[0].strip():
        raise ValueError(
            f"a job {name!r} is there already ({existing}): wait for it, scancel it, or give another --name"
        )
