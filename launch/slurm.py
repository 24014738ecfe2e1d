"""`lm launch slurm`: a batch job of one or more tasks.

srun starts the tasks, and JAX finds the others through Slurm. Before its time limit, or when it is preempted, the job
receives SIGTERM: all tasks write a checkpoint, and the job requeues itself.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from string import Template
from typing import Any

from launch import control
from launch.job import Job

EPILOG = """\
Each of several processes uses one GPU: give as many tasks per node as GPUs. The workdir must be on a disk that all
nodes share, or in a bucket. `lm study --executor slurm` submits each run of a study as a job of its own.

examples:
  lm launch slurm experiments.quickstart --dry-run
  lm launch slurm --nodes 2 --tasks-per-node 8 --sbatch "--gres=gpu:8 --time=4:00:00 -p long" \\
      experiments.llama:llama3_8b --workdir /shared/run
  lm launch slurm study experiments.ablations.heads
"""
POLL_SECONDS = 2.0
MOST = 100_000  # nodes, or tasks of one
# 143: stopped on SIGTERM, after a checkpoint; 75, 134 (JAX aborts): lost a task, for instance with its node. srun ends
# with the highest code of its tasks, also where one has failed by an error of its own and the others were ended for it:
# that one leaves LM_ERROR, and the job is not queued again
SCRIPT = Template("""\
#!/bin/bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$tasks
#SBATCH $output
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@$grace
${options}
cd $here || exit 1
export LM_PROCESSES=$processes
export LM_ERROR=$error-$$SLURM_JOB_ID
rm -f "$$LM_ERROR"
srun --kill-on-bad-exit=1 $command &
step=$$!
trap 'kill -TERM $$step' TERM
wait $$step; code=$$?
while kill -0 $$step 2>/dev/null; do wait $$step; code=$$?; done
case $$code in 143 | 75 | 134)
  [ ! -e "$$LM_ERROR" ] && [ "$${SLURM_RESTART_COUNT:-0}" -lt $requeues ] && scontrol requeue "$$SLURM_JOB_ID" ;;
esac
rm -f "$$LM_ERROR"
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
    if not 1 <= min(args.nodes, args.tasks_per_node) <= max(args.nodes, args.tasks_per_node) <= MOST:
        raise ValueError(f"--nodes {args.nodes} --tasks-per-node {args.tasks_per_node}: expected 1 to {MOST:,} of each")
    if job.verb != "train" and args.nodes * args.tasks_per_node > 1:
        raise ValueError(f"lm {job.verb} is one task; lm study --executor slurm submits a job for each of its runs")
    check_devices(args, job)
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
    print(f"job {number}: squeue --job {number}; tail -f {shlex.quote(f'{log_folder(job)}slurm-{number}.log')}")


def state(args: argparse.Namespace, job: Job) -> str:
    """The jobs of that name in the queue: number, state, time, and where or why not."""
    job.need("squeue", "slurm", "run it on a node that submits jobs")
    return control.output(["squeue", "--noheader", "--me", "--format=%i %T %M %R", f"--name={job.name}"])


def cancel(args: argparse.Namespace, job: Job) -> None:
    """End the jobs. What a failed task leaves is left before, so that none queues itself again."""
    numbers = [line.split()[0] for line in state(args, job).splitlines()]
    for number in numbers if Path(log_folder(job) or ".").is_dir() else ():
        Path(f"{log_folder(job)}slurm-error-{number}").write_text("cancelled\n")
    control.output(["scancel", *numbers])


def follow(args: argparse.Namespace, job: Job) -> int:
    """Print the job's log as it grows, until the job has left the queue; 1 where Slurm's accounting, if there is one,
    says that it has not completed."""
    number, at, before = "", 0, ""
    while line := next(iter(state(args, job).splitlines()), ""):
        number, now, *_ = line.split()
        if now != before:
            print(f"job {number} is {now}", file=sys.stderr, flush=True)
        before, at = now, _print_from(Path(f"{log_folder(job)}slurm-{number}.log"), at)
        time.sleep(POLL_SECONDS)
    _print_from(Path(f"{log_folder(job)}slurm-{number}.log"), at)
    end = ""
    if shutil.which("sacct"):
        end = control.output(
            ["sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={number}"]
        )
    print(f"job {number} has left the queue{f': {end}' if end else ''}", file=sys.stderr)
    return int(bool(end) and not end.startswith("COMPLETED"))


def _print_from(file: Path, at: int) -> int:
    """Print what `file` has from byte `at` on; where it ends."""
    if not file.is_file():
        return at
    with file.open("rb") as stream:
        stream.seek(at)
        new = stream.read()
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()
    return at + len(new)


def check_devices(args: argparse.Namespace, job: Job) -> None:
    """Raises ValueError where the experiment does not fit on the devices of the tasks: a GPU each, or the devices into
    which each splits its CPU. What a single task finds is known only where the options say it."""
    cpu = getattr(job.parsed, "devices", "") == "cpu"
    tasks, gpus = args.nodes * args.tasks_per_node, 0 if cpu else gpus_per_node(args)
    split = job.experiment.compute.devices or 1 if job.experiment else 1
    if tasks > 1 and gpus and gpus != args.tasks_per_node:
        raise ValueError(
            f"--tasks-per-node {args.tasks_per_node} with {gpus} GPUs a node: each process uses one, so give "
            f"--tasks-per-node {gpus}"
        )
    if tasks > 1 or gpus or cpu:
        each = 1 if tasks > 1 and gpus else gpus or split
        job.check_devices(tasks * each, 1, f"{args.nodes} x {args.tasks_per_node} tasks")


def gpus_per_node(args: argparse.Namespace) -> int:
    """The GPUs of a node that the options of sbatch ask for, as in --gres=gpu:h100:8; 0 where none does."""
    shares = {"--gres": 1, "--gpus-per-node": 1, "--gpus-per-task": args.tasks_per_node, "--gpus": 1 / args.nodes}
    for option in _joined(words(args.sbatch)):
        name, _, text = re.sub("^-G", "--gpus=", option).partition("=")
        wanted = [part for part in text.split(",") if name != "--gres" or re.match(r"gpu\b", part)]
        if name in shares and wanted:
            number = wanted[0].rpartition(":")[2]
            return int((int(number) if number.isdigit() else 1) * shares[name])
    return 0


def words(options: str) -> list[str]:
    """The text of --sbatch as words. Raises ValueError where a quote is not closed."""
    try:
        return shlex.split(options)
    except ValueError as error:
        raise ValueError(f"--sbatch {options!r} cannot be read: {error}") from None


def quoted(option: str) -> str:
    """`option` as sbatch reads it from a line of a script: in quotes, where a backslash escapes. Raises ValueError for
    text that no line can hold."""
    if not option.isprintable():
        raise ValueError(f"{option!r}: an option of sbatch is one line of printable text")
    if re.fullmatch(r"[\w./:=,%@+-]+", option):
        return option
    return '"' + re.sub(r'(["\\])', r"\\\1", option) + '"'


def script(args: argparse.Namespace, job: Job) -> str:
    """The batch script."""
    command = [sys.executable, "-m", "launch", *job.command]
    return SCRIPT.substitute(
        name=job.name,
        nodes=args.nodes,
        tasks=args.tasks_per_node,
        output=quoted(f"--output={pattern(job)}"),
        grace=args.grace,
        options="".join(f"#SBATCH {quoted(option)}\n" for option in _joined(words(args.sbatch))),
        here=shlex.quote(os.getcwd()),
        processes="auto" if args.nodes * args.tasks_per_node > 1 else "1",
        command=shlex.join(command),
        error=shlex.quote(f"{log_folder(job)}slurm-error"),
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


def pattern(job: Job) -> str:
    """The file of the output of all tasks as Slurm's file name pattern, in which %j is the job's number. Raises
    ValueError for a workdir with a backslash, which makes Slurm replace nothing."""
    folder = log_folder(job)
    if "\\" in folder:
        raise ValueError(f"--workdir {job.workdir}: Slurm cannot write its log into a folder with a backslash")
    return f"{folder.replace('%', '%%')}slurm-%j.log"


def log_folder(job: Job) -> str:
    """Where Slurm writes the output, with a slash at the end; nothing for a bucket."""
    return "" if "://" in job.workdir else f"{Path(job.workdir).resolve()}/"


def check_name(name: str) -> None:
    """Raises ValueError where a job of this user has the name already: two must not write to one folder."""
    command = ["squeue", "--noheader", "--me", "--format=%i %T", f"--name={name}"]
    queue = subprocess.run(command, capture_output=True, text=True, check=False)
    if existing := queue.stdout.split("\n")[0].strip():
        raise ValueError(
            f"a job {name!r} is there already ({existing}): wait for it, scancel it, or give another --name"
        )
