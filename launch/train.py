"""`lm train`: train an experiment, or resume it."""

import argparse
from typing import Any

from launch.find import changed, filled, find

EPILOG = """\
On the same workdir it resumes from the last checkpoint; a workdir of a different experiment is refused. Ctrl-C or
SIGTERM stops the run after a checkpoint.

examples:
  lm train experiments.quickstart
  lm train experiments.quickstart --set steps=100 seed=1 model.layers=4 optimizer.learning_rate=2e-3
  lm train experiments.quickstart --set "model.positions=Rotary(theta=5e5)" "data.mixture.weights.code=0.9"
  lm train experiments.quickstart --text ~/my-texts --workdir runs/mine
  lm train experiments.quickstart --devices cpu --host-devices 4 --set mesh.data=2 mesh.tensor=2
"""


def add_experiment_arguments(verb: Any) -> None:
    """Declare the arguments that name an experiment and change it."""
    verb.add_argument(
        "experiment", metavar="EXPERIMENT", help="a module, or module:name (the name is `experiment` otherwise)"
    )
    verb.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="change fields, as in steps=100 model.layers=4",
    )
    verb.add_argument(
        "--text",
        type=filled,
        metavar="PATH",
        help="train on this folder (or file) of UTF-8 text, .jsonl or .parquet in place of the experiment's sources",
    )
    verb.add_argument(
        "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to run (default: the best there is)"
    )
    verb.add_argument("--host-devices", type=int, default=0, metavar="N", help="split the CPU into N devices")


def add(verbs: Any) -> None:
    """Declare `lm train`."""
    verb = verbs.add_parser("train", help="train an experiment, or resume it", description=__doc__, epilog=EPILOG)
    add_experiment_arguments(verb)
    verb.add_argument("--workdir", type=filled, metavar="DIR", help="the run's folder (default: runs/NAME)")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Find the experiment, change it by the arguments, and train it."""
    from lm.machine import hardware

    hardware.prepare(args.devices)
    experiment, reference = find(args.experiment)
    experiment = changed(experiment, args.set, args.text, args.host_devices)
    from lm.run.course import train

    train(experiment, args.workdir or f"runs/{experiment.name}", reference, args.command)
