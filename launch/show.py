"""`lm show`: a resolved experiment, its parameters, FLOPs and memory; or a published model.

No data is read, but for --examples: documents of the first batches, with what carries loss in colour."""

import argparse
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
  lm show experiments.tune.sft_small --examples 3
  lm show model.gguf                             or a Hugging Face model directory
"""


def add(verbs: Any) -> None:
    """Declare `lm show`."""
    verb = verbs.add_parser(
        "show", help="an experiment, its parameters, FLOPs and memory", description=__doc__, epilog=EPILOG
    )
    add_experiment_arguments(verb)
    help = "documents of training, what is learned in colour"
    verb.add_argument("--examples", type=int, default=0, metavar="N", help=help)
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the experiment, its parts and its costs."""
    from lm.machine import hardware

    # counting needs no accelerator, and must not occupy one
    hardware.prepare(args.devices or "cpu")
    hardware.check_backend()
    from lm.legal import check_devices

    if args.examples < 0 or (args.examples and is_published(args.experiment)):
        raise ValueError(f"--examples {args.examples}: expected how many documents of an experiment to show")
    if is_published(args.experiment):
        return show_model(args.experiment)
    experiment, reference = find(args.experiment)
    experiment = changed(experiment, args.set, args.text, args.host_devices)
    devices = math.prod(size for size in experiment.mesh.values() if size > 0)
    check_devices(experiment, devices)
    experiment = experiment.on(devices)
    from lm.machine.monitor import terminal

    console = terminal()
    console.print(tree(experiment, reference))
    for table in (parts(experiment.model), costs(experiment)):
        console.print(table)
    for shown in learned(experiment, args.examples) if args.examples else ():
        console.print(shown)


def is_published(path: str) -> bool:
    """Whether `path` is a model directory or a GGUF file rather than an experiment."""
    return Path(path).suffix == ".gguf" or (Path(path) / "config.json").is_file()


def show_model(path: str) -> None:
    """Print the config and the parts of a published model; its tensors are not read."""
    from lm.machine.monitor import terminal
    from lm.pretrained.checkpoint import open_checkpoint

    cfg = open_checkpoint(Path(path)).cfg
    terminal().print(tree(cfg, path))
    terminal().print(parts(cfg))


def tree(shown: "Experiment | ModelConfig", reference: str) -> Any:
    """The resolved value as a tree."""
    from rich.markup import escape
    from rich.tree import Tree

    from lm.value import plain

    def grow(branch: Any, data: dict[str, Any]) -> None:
        for key, value in ((k, v) for k, v in data.items() if k != "type"):
            if isinstance(value, dict) and set(value) - {"type"}:
                grow(branch.add(f"{escape(key)} [bold cyan]{escape(value.get('type', ''))}[/]"), value)
            else:
                shown = value["type"] + "()" if isinstance(value, dict) and "type" in value else repr(value)
                branch.add(f"[dim]{escape(key)}[/] {escape(shown)}")

    top = Tree(f"[bold]{escape(reference)}[/]")
    grow(top, plain(shown))
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
    from lm.model.transformer import Transformer
    from lm.tune.trains import All

    e = experiment
    if e.trains == All():
        return []
    learner = e.build(Transformer(e.model, e.compute.resolve("cpu")))
    params, _ = jax.eval_shape(learner.init, jax.random.key(0))
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
    rate = experiment.optimizer.schedule_fn(experiment.steps)
    at = sorted(
        {
            0,
            min(experiment.optimizer.schedule.warmup_steps, experiment.steps - 1),
            experiment.steps // 2,
            experiment.steps - 1,
        }
    )
    return ", ".join(f"{float(rate(step)):.2e} at step {step + 1:,}" for step in at)


def memory(experiment: "Experiment") -> list[tuple[str, str]]:
    """The memory of the training state on all devices together, without activations."""
    import jax

    from lm.model import count
    from lm.model.transformer import Transformer

    e = experiment
    learner = e.build(Transformer(e.model, e.compute.resolve("cpu")))
    shapes, frozen = jax.eval_shape(learner.init, jax.random.key(0))
    params = count.tree_bytes(shapes)
    optimizer = count.tree_bytes(jax.eval_shape(e.optimizer.build(e.steps, learner.axes()).init, shapes))
    sizes = {
        "parameters": params,
        "frozen": count.tree_bytes(frozen),
        "optimizer": optimizer,
        "gradients": params,
        "average": params if e.ema else 0,
    }
    shown = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in sizes.items() if size)
    return [("memory of state", f"{sum(sizes.values()) / 2**20:,.1f} MiB: {shown}")]
