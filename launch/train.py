"""`lm train`: train an experiment, or resume it."""

import argparse
import shlex
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.find import changed, filled, find, maker_of

if TYPE_CHECKING:
    from lm.experiment import Experiment

EPILOG = """\
On the same workdir it resumes from the last checkpoint; a workdir of a different experiment is refused. Ctrl-C or
SIGTERM stops the run after a checkpoint. More steps than before go on from there where the schedule allows it
(Constant, InverseSquareRoot, WSD). At the end the report links to inside.html, what the model has inside for the first
sample (as `lm inspect` draws it).

examples:
  lm train experiments.quickstart
  lm train experiments.quickstart --set steps=100 seed=1 model.layers=4 optimizer.learning_rate=2e-3
  lm train experiments.quickstart --set "model.positions=Rotary(theta=5e5)" "data.mixture.weights.code=0.9"
  lm train experiments.quickstart --text ~/my-texts --workdir runs/mine
  lm train experiments.quickstart --devices cpu --host-devices 4 --set mesh.data=2 mesh.tensor=2
  lm train experiments.llama:llama3_70b --smoke
  lm train experiments.quickstart --workdir runs/traced --set steps=20 --profile 12:15

--smoke trains what the page declares in the folder runs/NAME-smoke by these rules, after which --set applies:
  20 steps, of which 5 at most warm up; rows of 128 tokens, 4 a device and micro-batch, 2 micro-batches at most
  the first layers and one round of the pattern (at least 2 layers), width 64, 4 heads, 4 experts, and so on; the ids
  that tokenizer and objective need
  an evaluation every 10 steps on 4,096 tokens a source, the last on all; samples of 16 tokens; one checkpoint
  no mesh, no file of embeddings; of a model that is the start the tokenizer alone
"""


def add_experiment_arguments(verb: Any) -> None:
    """Declare the arguments that name an experiment and change it."""
    verb.add_argument(
        "experiment",
        metavar="EXPERIMENT",
        help="a module or a page's path, or module:name (the name is `experiment` otherwise)",
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
    verb.add_argument(
        "--smoke", action="store_true", help="try the experiment in two minutes, with few steps and small sizes (below)"
    )
    verb.add_argument(
        "--profile",
        type=steps_of,
        default=range(0),
        metavar="FIRST:LAST",
        help="trace these steps into the folder's profile/, and list the operations that took longest (5:8)",
    )
    verb.set_defaults(run=run)


def steps_of(text: str) -> range:
    """The steps of `5:8`, or of `5`. Raises ArgumentTypeError for another text."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and (last or first).isdecimal() and 1 <= int(first) <= int(last or first)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected the first and the last step, as in 5:8")
    return range(int(first), int(last or first) + 1)


def check_start(path: str) -> None:
    """Raise ValueError, with the command that makes it, where a run that is a start is not there."""
    folder = Path(path).expanduser()
    if folder.parent.name != "runs" or folder.exists():
        return
    made = f": `lm train {maker}` makes it" if (maker := maker_of(folder.name)) else ""
    raise ValueError(f"the start {path} is not there{made}")


def asked(args: argparse.Namespace) -> "tuple[Experiment, str]":
    """The experiment that the arguments name, changed as they say, and its full reference."""
    experiment, reference = find(args.experiment)
    if start := experiment.start:
        check_start(start.path)
    if args.smoke:
        from lm.run.smoke import smoke

        experiment = smoke(experiment)
    return changed(experiment, args.set, args.text, args.host_devices), reference


def run(args: argparse.Namespace) -> None:
    """Find the experiment, change it by the arguments, and train it."""
    from lm.machine import hardware

    hardware.prepare(args.devices)
    experiment, reference = asked(args)
    if args.profile.stop > experiment.steps + 1:
        shown = f"{args.profile.start}:{args.profile.stop - 1}"
        raise ValueError(f"--profile {shown}: expected steps from 1 to {experiment.steps}, as in 5:8")
    from lm.machine import processes
    from lm.machine.output import outlive_readers
    from lm.run.course import train

    folder = args.workdir or f"runs/{experiment.name}"
    with outlive_readers():
        train(experiment, folder, reference, args.command, stepping(args.profile))
        if not args.smoke:
            from lm.run.inside import look_inside  # not before training begins

            look_inside(folder)
        if processes.is_first():
            print(what_next(experiment, folder))


def stepping(steps: range) -> Any:
    """In what a run takes its steps: a trace of some, or nothing."""
    if not steps:
        return nullcontext
    from lm.run.profile import profiled

    return partial(profiled, steps=steps)


def what_next(experiment: "Experiment", folder: str) -> str:
    """The commands that a finished run is for."""
    quoted, prompt = shlex.quote(folder), next(filter(str.isprintable, experiment.prompts), "")
    try:
        experiment.model.check_generates()
        about = " --image FILE --prompt 'What is this?'" if experiment.model.vision else ""
        reads = [f"lm sample {quoted}{about or (f' --prompt {shlex.quote(prompt)}' if prompt else '')}"]
    except ValueError:  # an encoder, or a reward model
        fills = bool(experiment.model.output.logit_count(experiment.model.vocab))
        reads = [f"lm sample {quoted} --prompt '… [MASK] …'" if fills else f"lm score {quoted} 'a text'"]
    return "next: " + "; ".join([*reads, f"lm evaluate {quoted}", f"lm report {quoted}"])
