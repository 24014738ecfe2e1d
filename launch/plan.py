"""`lm plan`: memory, FLOPs, communication and time of a training step, or of decoding, on other chips, by their
compiler; none is needed."""

import argparse
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.find import changed, find
from launch.train import add_experiment_arguments

if TYPE_CHECKING:
    from lm.experiment import Experiment
    from lm.plan.plan import Plan
    from lm.plan.search import Candidate
    from lm.plan.topology import Topology

EPILOG = """\
Plans for TPUs come from the TPU compiler, an extra that needs no TPU: pip install -e ".[tpu]". Without it, and for
GPUs, a plan is analytic, and marked so.

examples:
  lm plan experiments.llama:llama3_8b --topology v5p:4x4x4
  lm plan experiments.llama:llama3_8b --topology v5e:16x16 --set rows_per_device=1 compute.remat=full
  lm plan experiments.llama:llama3_70b --topology v5p:4x4x4 --search
  lm plan experiments.mixtral:mixtral_8x7b --topology v5p:4x4x8 --set mesh.expert=8 seq_len=4096 --json plan.json
  lm plan experiments.gpt:gpt2 --topology h100:8
  lm plan experiments.llama:llama3_8b --decode --topology v5e:2x4 --batch 32 --context 2048
  lm plan model.gguf --decode --topology v5e:2x2 --set mesh.tensor=4

--decode plans a step of decoding --batch rows whose caches hold --context tokens, and the prefill of a prompt of as
many. EXPERIMENT may then be a model directory, a GGUF file or a run's folder too, of which the config alone is read.
"""


def add(verbs: Any) -> None:
    """Declare `lm plan`."""
    verb = verbs.add_parser("plan", help="what a step would cost on other chips", description=__doc__, epilog=EPILOG)
    add_experiment_arguments(verb)
    verb.add_argument(
        "--topology", required=True, metavar="KIND:SHAPE", help="v4, v5e, v5p, v6e, tpu7x, a100 or h100: v5p:4x4x4"
    )
    verb.add_argument("--search", action="store_true", help="try meshes x remat x micro-batches x attention blocks")
    verb.add_argument(
        "--compile", type=int, default=3, metavar="N", help="with --search: compile the best N (default 3)"
    )
    verb.add_argument("--analytic", action="store_true", help="an analytic plan, at once")
    decoding = verb.add_argument_group("decoding, in place of a training step")
    decoding.add_argument("--decode", action="store_true", help="plan a step of decoding, and a prefill")
    decoding.add_argument("--batch", type=int, metavar="B", help="rows that are decoded at once (32)")
    decoding.add_argument("--context", type=int, metavar="N", help="tokens of a row that the cache holds (2048)")
    decoding.add_argument("--weights", choices=("float32", "bfloat16", "int8"), help="of the parameters (bfloat16)")
    verb.add_argument("--json", metavar="FILE", help="write the plan (with --search: the ranked plans)")
    verb.add_argument("--hlo", metavar="FILE", help="write the optimised program")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plan, print, and write the files named."""
    from lm.machine import hardware

    hardware.prepare("cpu")
    from lm.plan.topology import parse_topology

    topology = parse_topology(args.topology)
    for name in ("batch", "context", "weights"):
        if getattr(args, name) is not None and not args.decode:
            raise ValueError(f"--{name} is of a plan of decoding: add --decode")
    if args.decode:
        return run_decoding(args, topology)
    experiment = changed(find(args.experiment)[0], args.set, args.text).on(topology.devices)
    if not args.search:  # which chooses a mesh itself
        check(experiment, topology)
    analytic = is_analytic(args, topology)
    if args.search:
        ranked = run_search(experiment, topology, analytic, args.compile)
        write(args.json, [candidate_data(c) for c in ranked[:20]])
        return
    plan, program = one(experiment, topology, analytic)
    show(rows(plan, experiment))
    write(args.json, plan.as_data())
    write_program(args.hlo, program)


def run_decoding(args: argparse.Namespace, topology: "Topology") -> None:
    """The same of decoding."""
    from launch.decoding import rows, serving
    from lm.plan.decoding import check, plan

    served = serving(args, topology)
    check(served)
    analytic = is_analytic(args, topology)
    with nullcontext() if analytic else compiling("decoding and the prefill", topology):
        found, program = plan(served, topology, analytic)
    show(rows(found))
    write(args.json, found.as_data())
    write_program(args.hlo, program)


def compiling(what: str, topology: "Topology") -> AbstractContextManager[None]:
    """Says on standard error what is compiled, and for how long."""
    from lm.machine.monitor import waiting_aside

    return waiting_aside(f"compiling {what} for {topology.name}")


def is_analytic(args: argparse.Namespace, topology: "Topology") -> bool:
    """Whether the plan is, as asked or for want of a compiler; the folders of the files named are made."""
    for file in filter(None, (args.json, args.hlo)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    return args.analytic or not topology.chip.tpu or not has_compiler()


def check(experiment: "Experiment", topology: "Topology") -> None:
    """Raises ValueError where the experiment's mesh or batch does not divide over the topology's devices."""
    import dataclasses

    from lm.legal import check_devices

    mesh = experiment.mesh or {"data": topology.devices}
    check_devices(dataclasses.replace(experiment, mesh=mesh), topology.devices, topology.slices)


def has_compiler() -> bool:
    """Whether libtpu is installed; prints how to install it where not."""
    from lm.plan.compile import NoCompiler, compiler

    try:
        return bool(compiler())
    except NoCompiler as missing:
        print(f"{missing}; the plan is analytic\n")
        return False


def one(experiment: "Experiment", topology: "Topology", analytic: bool) -> "tuple[Plan, str]":
    """The plan of one experiment, and the compiled program ("" for an analytic plan). Raises ValueError, with what
    would fit, for a step that does not."""
    from lm.plan import analytic as arithmetic
    from lm.plan.compile import OutOfMemory, compile_step
    from lm.plan.cost import CostAnalysis
    from lm.plan.hlo import parse_program
    from lm.plan.plan import attended_fraction, from_compiler

    if analytic:
        return arithmetic.plan(experiment, topology), ""
    try:
        with compiling("the step", topology):
            memory, program = compile_step(experiment, topology)
    except OutOfMemory as error:
        raise ValueError(out_of_memory(experiment, topology, str(error))) from None
    return from_compiler(
        experiment,
        topology,
        memory,
        CostAnalysis(parse_program(program), topology, attended_fraction(experiment.model, experiment.length)).total(),
    ), program


def out_of_memory(experiment: "Experiment", topology: "Topology", message: str) -> str:
    """By how much a step does not fit, and what would make it fit."""
    from lm.plan.advice import advice, excess

    return f"{experiment.name} does not fit {topology.name}: {excess(message)}; {advice(experiment, topology)}"


def run_search(experiment: "Experiment", topology: "Topology", analytic: bool, most: int) -> "list[Candidate]":
    """The ranked candidates, printed, and the best of them to paste. Raises ValueError where none fits."""
    from lm.machine.monitor import terminal
    from lm.plan.search import search

    console = terminal()

    def compile_one(e: "Experiment") -> "Plan":
        return one(e, topology, False)[0]

    ranked = search(experiment, topology, None if analytic else compile_one, most, console.print)
    console.print(ranking(ranked[:12]))
    best = ranked[0]
    if not best.fits:
        raise ValueError(nothing_fits(experiment, ranked, topology))
    show(rows(best.best, best.experiment))
    console.print(f"[bold]paste[/]  {best.paste}", soft_wrap=True, highlight=False)
    console.print(f"[bold]or[/]     --set {best.settings}", soft_wrap=True, highlight=False)
    return ranked


def nothing_fits(experiment: "Experiment", ranked: "list[Candidate]", topology: "Topology") -> str:
    """That none of the candidates does, and by how much the nearest misses."""
    peak = min(c.best.memory["peak"] for c in ranked)
    return (
        f"{experiment.name} fits {topology.name} in none of the {len(ranked)} settings that were tried; the smallest "
        f"takes {peak / 1e9:.1f} of {topology.hbm / 1e9:.1f} GB, as far as known: take more chips, fewer "
        "rows_per_device, or a shorter seq_len"
    )


def ranking(candidates: "list[Candidate]") -> Any:
    """The candidates as a table, the best first."""
    from rich.table import Table

    from lm.plan.plan import mesh_text

    table = Table("mesh", "remat", "micro-batches", "block", "by", "s a step", "MFU", "peak GB", "")
    for c in candidates:
        plan, e = c.best, c.experiment
        low, high = plan.seconds
        block = f"{e.compute.block}{f', vmem {e.compute.scoped_vmem}' if e.compute.scoped_vmem else ''}"
        table.add_row(
            *(mesh_text(e.mesh), kept(e), str(e.accumulate), block, plan.source),
            *(f"{low:.2f} - {high:.2f}", f"{plan.mfu:.1%}", f"{plan.memory['peak'] / 1e9:.1f}"),
            "" if c.fits else "does not fit",
        )
    return table


def kept(experiment: "Experiment") -> str:
    """The recomputation of a layer, as text."""
    compute = experiment.compute
    return f"all but {', '.join(compute.keep)}" if compute.keep else compute.remat


def candidate_data(candidate: "Candidate") -> dict[str, Any]:
    """One candidate as JSON data."""
    return {"settings": candidate.settings, "failure": candidate.failure, **candidate.best.as_data()}


def write(file: str | None, data: Any) -> None:
    """`data` as JSON, where a file is named."""
    if file:
        Path(file).write_text(json.dumps(data, indent=1) + "\n")


def write_program(file: str | None, program: str) -> None:
    """A compiled program, where a file is named. Raises ValueError where the plan is analytic."""
    if file and not program:
        raise ValueError("--hlo writes what the compiler makes, and this plan is analytic")
    if file:
        Path(file).write_text(program)


def show(lines: list[tuple[str, str]]) -> None:
    """Print the lines of a plan."""
    from rich.table import Table

    from lm.machine.monitor import terminal

    table = Table(show_header=False, box=None, padding=(0, 2))
    for what, how_much in lines:
        table.add_row(f"[dim]{what}[/]", how_much)
    terminal().print(table)


def rows(plan: "Plan", experiment: "Experiment") -> list[tuple[str, str]]:
    """The lines of a plan: (label, text); GB = 10^9 bytes."""
    from lm.plan.advice import advice
    from lm.plan.plan import NOT_MODELLED, mesh_text
    from lm.plan.topology import parse_topology

    gb = {k: v / 1e9 for k, v in plan.memory.items()}
    low, high = plan.seconds
    source = f"{plan.compiler}, {plan.compile_seconds:.0f} s" if plan.compiler else "analytic, coarse"
    lines = [
        (
            "plan",
            f"{plan.name} on {plan.devices} devices of {plan.topology}: {mesh_text(plan.mesh)}, remat {plan.remat}",
        ),
        ("by", source),
        ("batch", f"{plan.tokens:,} tokens: {experiment.rows} rows of {experiment.length}"),
        ("bytes a device", ", ".join(f"{k} {v:.2f}" for k, v in gb.items() if k != "peak" and v) + " GB"),
        ("peak", f"{gb['peak']:.2f} of {plan.hbm / 1e9:.2f} GB" + ("" if plan.fits else ": DOES NOT FIT")),
        ("FLOPs a device", flops_line(plan)),
        *((f"{c.kind}, {c.network}", traffic_line(c)) for c in plan.collectives),
        ("collectives", f"{plan.collective_bytes / 1e9:.1f} GB"),
        ("seconds a step", f"{low:.2f} (compute) - {high:.2f} (and exposed collectives)"),
        ("tokens a second", f"{plan.tokens_per_second:,.0f}, {plan.tokens_per_second / plan.devices:,.0f} a device"),
        ("MFU", f"{plan.mfu:.1%}"),
        ("bound by", f"{plan.bottleneck}: " + ", ".join(f"{k} {v:.2f} s" for k, v in plan.parts.items() if v)),
        *((("not counted", ", ".join(f"{n:g} x {k}" for k, n in plan.unknown.items())),) if plan.unknown else ()),
        ("not modelled", NOT_MODELLED),
    ]
    if not plan.fits:
        over = (plan.memory["peak"] - plan.hbm) / 1e9
        lines.insert(5, ("over by", f"{over:.2f} GB; {advice(experiment, parse_topology(plan.topology))}"))
    return lines


def flops_line(plan: "Plan") -> str:
    """FLOPs of the model and of the hardware."""
    hardware = plan.matrix_flops + plan.kernel_flops
    kernels = f" + {plan.kernel_flops / 1e12:,.1f} in kernels" if plan.kernel_flops else ""
    model, matrix = plan.model_flops / 1e12, plan.matrix_flops / 1e12
    ratio = hardware / plan.model_flops
    return f"{model:,.1f} TFLOP of the model, {matrix:,.1f} of matrix products{kernels} ({ratio:.2f} x)"


def traffic_line(c: Any) -> str:
    """The collectives of one kind."""
    overlap = "overlapped" if c.overlapped else "exposed"
    return f"{c.count:,.0f} of {c.bytes / 1e9:.2f} GB in all, {c.seconds:.2f} s, {overlap}"
