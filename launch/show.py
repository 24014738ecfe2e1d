"""`lm show`: a resolved experiment, its parameters, FLOPs and memory; or a published model.

No data is read, but for --examples: documents of the first batches, with what carries loss in colour."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.find import changed, find
from launch.train import add_experiment_arguments

if TYPE_CHECKING:
    from lm.experiment import Experiment
    from lm.model.config import ModelConfig

EPILOG = """\
examples:
  lm show experiments.quickstart
  lm show experiments.quickstart --set model.layers=12 model.width=768 optimizer=Muon
  lm show experiments.quickstart --values model.positions        what may stand in a field
  lm show experiments.quickstart --diff experiments.llama        the fields that differ; also of a run's folder
  lm show experiments.quickstart --json | jq .experiment.model
  lm show experiments.tune.sft_small --examples 3
  lm show runs/quickstart                        that of a run
  lm show model.gguf                             or a Hugging Face model directory
"""


SHORT = 28  # characters of a value that is explained on its own line


def add(verbs: Any) -> None:
    """Declare `lm show`."""
    verb = verbs.add_parser(
        "show", help="an experiment, its parameters, FLOPs and memory", description=__doc__, epilog=EPILOG
    )
    add_experiment_arguments(verb)
    help = "documents of training, what is learned in colour"
    verb.add_argument("--examples", type=int, default=0, metavar="N", help=help)
    verb.add_argument("--values", metavar="FIELD", help="what may stand in this field: a range, names, classes")
    verb.add_argument("--diff", metavar="OTHER", help="only the fields in which OTHER is another")
    verb.add_argument("--json", action="store_true", help="print JSON: what is shown, as data")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the experiment, its parts and its costs; or what is asked of it."""
    from lm.machine import hardware

    # counting needs no accelerator, and must not occupy one
    hardware.prepare(args.devices or "cpu")
    hardware.check_backend()
    published = is_published(args.experiment)
    if args.examples < 0 or (args.examples and published):
        raise ValueError(f"--examples {args.examples}: expected how many documents of an experiment to show")
    if sum(map(bool, (args.examples, args.values, args.diff))) > 1:
        raise ValueError("--examples, --values and --diff: give one of them")
    shown, reference = declared(args.experiment)
    if not published:
        shown = placed(changed(shown, args.set, args.text, args.host_devices))
    elif args.set or args.text:
        raise ValueError(f"{args.experiment} is a model that is there: --set and --text are of an experiment")
    if args.values:
        return show_values(shown, args.values, args.json)
    if args.diff:
        return show_diff(shown, declared(args.diff)[0], (reference, args.diff), args.json)
    if args.json:
        return print(json.dumps(as_data(shown, reference), ensure_ascii=False))
    from lm.machine.monitor import terminal

    console = terminal()
    console.print(tree(shown, reference))
    for table in (parts(shown),) if published else (parts(shown.model), costs(shown)):
        console.print(table)
    for text in learned(shown, args.examples) if args.examples else ():
        console.print(text)


def declared(path: str) -> tuple[Any, str]:
    """What `path` names, and its full reference: an experiment of a page or of a run's folder, or the config of a
    published model, whose tensors are not read. Raises ValueError where there is none."""
    if is_published(path):
        from lm.pretrained.checkpoint import open_checkpoint

        return open_checkpoint(Path(path)).cfg, path
    if (Path(path) / "experiment.json").is_file():
        from lm.pretrained import read_experiment

        return read_experiment(path), path
    return find(path)


def placed(experiment: "Experiment") -> "Experiment":
    """It on the devices that its mesh asks for. Raises ValueError where it does not divide over them."""
    from lm.legal import check_devices

    devices = math.prod(size for size in experiment.mesh.values() if size > 0)
    check_devices(experiment, devices)
    return experiment.on(devices)


def is_published(path: str) -> bool:
    """Whether `path` is a model directory or a GGUF file rather than an experiment."""
    return Path(path).suffix == ".gguf" or (Path(path) / "config.json").is_file()


def show_values(shown: Any, path: str, as_json: bool) -> None:
    """Print what may stand in the field at `path`."""
    from rich.text import Text

    from launch.fields import allowed, find_field
    from lm.machine.monitor import terminal
    from lm.page.source import as_python
    from lm.value import plain

    found = find_field(shown, path)
    rows = allowed(found.hint, found.names)
    if as_json:
        values = [{"value": value, "about": about} for value, about in rows]
        return print(json.dumps({"field": path, "now": plain(found.value), "values": values}, ensure_ascii=False))
    console = terminal()
    console.print(Text.assemble((path, "bold"), f" is {as_python(plain(found.value))}"), soft_wrap=True)
    if found.about:
        console.print(Text(found.about, "dim"), soft_wrap=True)
    console.print("it may be")
    for value, about in rows:
        apart = f"\n      {about}" if len(value) > SHORT else f"{'':{SHORT - len(value)}}{about}"
        console.print(Text.assemble(f"  {value}", (apart if about else "", "dim")), soft_wrap=True)


def show_diff(first: Any, second: Any, names: tuple[str, str], as_json: bool) -> None:
    """Print the fields in which two experiments differ; of a published model and an experiment those of the model."""
    from rich.table import Table
    from rich.text import Text

    from lm.experiment import Experiment
    from lm.machine.monitor import terminal
    from lm.page.words import NONE
    from lm.value import differences, plain

    both = [first, second]
    if not all(isinstance(one, Experiment) for one in both):
        both = [one.model if isinstance(one, Experiment) else one for one in both]
    plains = [plain(one) for one in both]
    found = differences(*plains)
    if as_json:
        return print(json.dumps([dict(field=path, first=x, second=y) for path, x, y in found], ensure_ascii=False))
    table = Table("field", *names)
    for path, x, y in found:
        sides = zip((x, y), both, plains, strict=True)
        table.add_row(path, *(Text(explained(one, v, path) if has(data, path) else NONE) for one, v, data in sides))
    terminal().print(table if found else f"{names[0]} and {names[1]} are the same")


def explained(data: Any, value: Any, path: str) -> str:
    """`data`, what stands at `path` of `value`, in Python; a number that is a sentinel with what it means."""
    from launch.fields import find_field
    from lm.bounds import meaning
    from lm.page.source import as_python

    try:
        means = meaning(find_field(value, path).hint, data)
    except ValueError:  # the name of a class
        means = ""
    return as_python(data) + (f" ({means})" if means else "")


def has(data: Any, path: str) -> bool:
    """Whether plain data have a field at the dotted `path`, None or not."""
    for name in path.split("."):
        if not isinstance(data, dict) or name not in data:
            return False
        data = data[name]
    return True


def as_data(shown: Any, reference: str) -> dict[str, Any]:
    """What `lm show` prints of an experiment or a model, as JSON data."""
    from lm.experiment import Experiment
    from lm.model import count
    from lm.value import plain

    if not isinstance(shown, Experiment):
        return {"model": plain(shown), "parameters": count.by_part(shown)}
    return {
        "reference": reference,
        "experiment": plain(shown),
        "parameters": count.by_part(shown.model),
        "flops_per_token": shown.flops_per_token,
        "tokens": shown.steps * shown.batch_tokens,
        "state_bytes": state_bytes(shown),
    }


def tree(shown: "Experiment | ModelConfig", reference: str) -> Any:
    """The resolved value as a tree; a number that stands for something else with what it means."""
    from rich.markup import escape
    from rich.tree import Tree

    from launch.fields import members
    from lm.bounds import meaning
    from lm.page.source import as_python
    from lm.value import plain

    def grow(branch: Any, value: Any, hint: Any = Any) -> None:
        for name, (one, kind) in members(value, hint).items():
            data = plain(one)
            if members(one):
                title = data.get("type", "") if not isinstance(one, dict) else ""
                grow(branch.add(f"{escape(name)} [bold cyan]{escape(title)}[/]"), one, kind)
            else:
                means = f" ({meaning(kind, one)})" if meaning(kind, one) else ""
                branch.add(f"[dim]{escape(name)}[/] {escape(as_python(data))}[dim]{escape(means)}[/]")

    top = Tree(f"[bold]{escape(reference)}[/]")
    grow(top, shown)
    return top


def learned(experiment: "Experiment", count: int) -> list[Any]:
    """Documents of training, what carries loss in bold green, and what one should know of the data."""
    from rich.panel import Panel
    from rich.text import Text

    from lm.data.examples import examples
    from lm.data.loader import prepare
    from lm.machine.monitor import preparing
    from lm.run.prepared import tokenizer_of

    e = experiment
    with preparing() as progress:
        tokenizer = tokenizer_of(e, progress)
        shape = e.length, e.rows, e.seed, e.method.objective, tokenizer, progress, e.model.has_encoder
        data = prepare(e.data, *shape)
    texts = [Text.assemble(*((t, "bold green" if loss else "dim") for t, loss in one)) for one in examples(data, count)]
    return [*(Panel(text, title=f"example {i}") for i, text in enumerate(texts, start=1)), *map(Text, data.remarks())]


def parts(cfg: "ModelConfig") -> Any:
    """Parameters by part."""
    from rich.table import Table

    from lm.model import count

    by_part = count.by_part(cfg)
    total = sum(by_part.values())
    table = Table("part", "parameters", "share", show_footer=True)
    table.columns[0].footer, table.columns[1].footer = "all", f"{total:,}"
    for column in table.columns[1:]:
        column.justify = "right"
    for path, number in by_part.items():
        table.add_row(path, f"{number:,}", f"{number / total:.1%}")
    return table


def costs(experiment: "Experiment") -> Any:
    """FLOPs, the memory of the training state, steps and tokens."""
    from rich.table import Table

    from lm.machine.monitor import human
    from lm.model import count

    e = experiment
    flops, tokens = e.flops_per_token, e.steps * e.batch_tokens
    encoder, length = e.lengths
    row = f"an input of {encoder} and a target of {length}" if encoder else f"sequence of {length}"
    total = count.parameters(e.model) + e.trains.added(e.model)
    table = Table(show_header=False, box=None, padding=(0, 2))
    for what, how_much in (
        ("FLOPs per token", f"{flops:,.0f} (forward and backward, {row})"),
        ("the run", f"{human(flops * tokens)} FLOPs"),
        (
            "steps",
            f"{e.steps:,} of {e.batch_tokens:,} tokens: {e.rows} rows of {e.length} (micro-batches: {e.accumulate})",
        ),
        ("tokens", f"{tokens:,} ({tokens / total:.1f} a parameter)"),
        ("learning rate", rates(e)),
        *trained(e),
        *balancing(e),
        *memory(e),
    ):
        table.add_row(f"[dim]{what}[/]", how_much)
    return table


def trained(experiment: "Experiment") -> list[tuple[str, str]]:
    """How many parameters are trained and how many frozen, where these are not all."""
    import jax

    from lm.model import count
    from lm.model.transformer import Transformer, key_shape
    from lm.tune.trains import All

    e = experiment
    if e.trains == All():
        return []
    learner = e.build(Transformer(e.model, e.compute.resolve("cpu")))
    params, _ = jax.eval_shape(learner.init, key_shape())
    moving = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    frozen = sum(count.by_part(e.model)[path] for path in e.trains.frozen(e.model))
    return [("trained", f"{moving:,} parameters ({moving / (moving + frozen):.2%}); frozen: {frozen:,}")]


def balancing(experiment: "Experiment") -> list[tuple[str, str]]:
    """Over which tokens experts are balanced, where it is not the batch."""
    balanced = any(getattr(slot.ffn, "load_balance_weight", 0) for slot in experiment.model.slots.values())
    if experiment.accumulate == 1 or not balanced:
        return []
    return [("load balancing", f"over each of the {experiment.accumulate} micro-batches, not the batch")]


def rates(experiment: "Experiment") -> str:
    """The learning rate at a few steps."""
    import numpy as np

    rate = experiment.optimizer.schedule_fn(experiment.steps)
    at = sorted(
        {
            0,
            min(experiment.optimizer.schedule.warmup_steps, experiment.steps - 1),
            experiment.steps // 2,
            experiment.steps - 1,
        }
    )
    return ", ".join(f"{x:.2e} at step {step + 1:,}" for step, x in zip(at, rate(np.array(at)), strict=True))


def memory(experiment: "Experiment") -> list[tuple[str, str]]:
    """The memory of the training state on all devices together, without activations."""
    sizes = state_bytes(experiment)
    shown = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in sizes.items() if size)
    return [("memory of state", f"{sum(sizes.values()) / 2**20:,.1f} MiB: {shown}")]


def state_bytes(experiment: "Experiment") -> dict[str, int]:
    """The bytes of each part of the training state, and of the gradients."""
    import jax

    from lm.model import count
    from lm.model.transformer import Transformer, key_shape

    e = experiment
    learner = e.build(Transformer(e.model, e.compute.resolve("cpu")))
    shapes, frozen = jax.eval_shape(learner.init, key_shape())
    params = count.tree_bytes(shapes)
    optimizer = count.tree_bytes(jax.eval_shape(e.optimizer.build(e.steps, learner.axes()).init, shapes))
    return {
        "parameters": params,
        "frozen": count.tree_bytes(frozen),
        "optimizer": optimizer,
        "gradients": params,
        "average": params if e.ema else 0,
    }
