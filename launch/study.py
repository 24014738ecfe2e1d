"""`lm study`: run what is missing of an ablation, a sweep or a ladder, and report."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from launch.find import changed, check_may_load, filled, find_study

EPILOG = """\
A finished run is recognised and not run again; a study that was killed goes on where it stopped; an arm that fails is
reported and does not stop the others. Each run is an ordinary one, in FOLDER/runs/ARM/SEED.

examples:
  lm study experiments.ablations.positions
  lm study experiments.ablations.positions --seeds 5                          more seeds: only the new ones are run
  lm study experiments.ablations.positions --only alibi rotary
  lm study experiments.ablations.positions --set steps=100 model.layers=2 --workdir runs/quick
  lm study experiments.ablations.positions --workers 2
  lm study experiments.sweep                                        a sweep: the best settings, and how sure that is
  lm study experiments.scaling                                      a ladder: the law, and how well it predicted
  lm study experiments.ablations.positions --executor slurm --sbatch "--gres=gpu:1 --time=1:00:00"
"""
MOST_SEEDS = 10_000


def add(verbs: Any) -> None:
    """Declare `lm study`."""
    verb = verbs.add_parser(
        "study", help="run an ablation, a sweep or a scaling ladder", description=__doc__, epilog=EPILOG
    )
    verb.add_argument("study", metavar="STUDY", help="module:name; the name may be missing where a page has one study")
    verb.add_argument("--workdir", type=filled, metavar="DIR", help="the study's folder (default: runs/NAME)")
    verb.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1 in place of the study's own")
    verb.add_argument("--only", nargs="+", default=[], metavar="ARM", help="run these arms only")
    verb.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="change fields of the base"
    )
    verb.add_argument("--text", type=filled, metavar="PATH", help="train on this folder (or file) of UTF-8 text")
    verb.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes at a time on this machine (2 on CPUs whose memory holds both, else 1): runs keep their digits, "
        "and are timed with what goes on beside them",
    )
    verb.add_argument(
        "--together",
        default="auto",
        choices=("auto", "turns", "vmap", "no"),
        help="how runs that could share a program do: in turn, side by side under vmap, whichever is faster (auto), or "
        "not at all, with a process for each",
    )
    verb.add_argument("--executor", default="local", choices=("local", "slurm"), help="where processes run")
    verb.add_argument("--sbatch", default="", metavar="OPTIONS", help="options for sbatch, in one text")
    verb.add_argument(
        "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to run (default: the best there is)"
    )
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Find the study, change it as asked, run what is missing of it, and report."""
    from lm.machine import hardware
    from lm.study import forkserver

    hardware.prepare_host()  # this process computes nothing: the devices are its workers'
    if args.seeds is not None and not 0 < args.seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds {args.seeds}: expected 1 to {MOST_SEEDS:,}; --seeds 3 runs the seeds 0, 1 and 2")
    imported_with = forkserver.settings()
    study, reference = find_study(args.study)
    folder = Path(args.workdir or f"runs/{reference.partition(':')[2]}")
    study = asked(study, args.set, args.text, args.seeds, folder)
    if not hasattr(study, "measure"):  # a study that trains nothing in folders: the coordinate check
        study.report(folder)
        return
    from lm.machine.output import outlive_readers
    from lm.study import runner, watch

    if remark := getattr(study, "remark", ""):
        print(remark, flush=True)
    note = {"study": reference, "set": args.set, "text": args.text, "seeds": args.seeds, "command": args.command}
    arms, share = runner.SomeArms(study, args.only), args.together != "no"
    execute = executor(args, imported_with)  # before a table on the screen has a thread
    with outlive_readers():
        with watch.table(study.measure) as shown:
            runner.run(arms, folder, note, execute, shown, share)
        write(folder)


def asked(study: Any, settings: list[str], text: str | None, seeds: int | None, folder: Path) -> Any:
    """`study` with its base and seeds changed as the command line says, in `folder` where it keeps something there."""
    study = study.at(folder) if hasattr(study, "at") else study
    if settings or text:
        study = dataclasses.replace(study, base=changed(study.base, settings, text))
    return dataclasses.replace(study, seeds=range(seeds)) if seeds else study


def executor(args: argparse.Namespace, imported_with: Any) -> Any:
    """What runs the study's processes; `imported_with` are the settings with which JAX was imported."""
    together = "auto" if args.together == "no" else args.together
    from lm.machine import hardware
    from lm.study import forkserver
    from lm.study.executors import Local, Slurm, fit_in_memory

    if args.executor == "slurm":
        if args.workers is not None:
            raise ValueError(f"--workers {args.workers}: of processes here, not of slurm's tasks; leave it out")
        return Slurm(args.sbatch, args.devices, together)
    server = None if forkserver.obstacle(imported_with, args.devices) else forkserver.ForkServer()
    if args.workers is not None:
        return Local(args.workers, args.devices, together, server)
    share = forkserver.only_cpus(args.devices) and hardware.cores() > 1
    vmap = together == "vmap"  # rounds by how many go together
    return Local(2 if share and not vmap else 1, args.devices, together, server, fit_in_memory)


def write(folder: Path) -> None:
    """Write the report of the study in `folder`, and print its verdicts and its path."""
    import json

    from lm.study import report, runner

    note = json.loads((folder / runner.NOTE).read_text())
    check_may_load(str(note["study"]))
    study, _ = find_study(note["study"])
    study = asked(study, note["set"], note["text"], note["seeds"], folder)
    print(f"report: {report.write_study(folder, study, runner.read_results(study, folder), note)}")
