"""Plans beside MaxText's: the same models, chips, rows and remat through the same TPU compiler; no chip is needed.

    python -m benchmarks.plans [ROW ...] [--set FIELD=VALUE ...] --keep
    python -m benchmarks.plans --read PROGRAM.hlo v5p:4x4x4

Rows that are named are compiled now; the others are shown as plans/*.json has them. MaxText's (e591f30c, 2026-08-22)
are given twice: as they were given to us, and as `--read` finds them in the text of its own compiled step
(`maxtext.trainers.pre_train.train_compile`, use_iota_embed=true, ici_fsdp_parallelism=all, Llama 2 with its recipe's
XLA flags, under the same jax 0.10.2 and libtpu 0.0.42.1). Memory, matrix FLOPs and wire agree to the last digit, but
for Mixtral's wire: its experts' three gradient sums share a channel, and were given as one. The times given follow no
rule that was found; those read count kernels and all else alike on both sides.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import keep

FOLDER = Path(__file__).parent / "plans"


@dataclass(frozen=True)
class Row:
    """One model on one topology: what MaxText needs there, and how we are asked for the same."""

    title: str
    experiment: str
    topology: str
    settings: tuple[str, ...]
    peak: float
    temporaries: float
    matrix: float
    wire: float
    seconds: str
    kernels: float = 0.0
    read: tuple[str, ...] = ()  # of MaxText's program by --read: kernels, wire, seconds, and seconds of compilation


ROWS = {
    "llama3_8b-v5e": Row(
        "Llama 3 8B, full remat, 256 v5e, 8192 x 1",
        "experiments.llama:llama3_8b",
        "v5e:16x16",
        ("rows_per_device=1", "compute.remat=full", "compute.loss_chunk=1024"),
        *(6.87, 8.73, 469.6, 63.0, "3.73 - 3.91"),
        read=("96.8", "63.0", "3.92 - 4.10", "72"),
    ),
    "llama3_8b-v5p": Row(
        "Llama 3 8B, all products kept, 64 v5p, 8192 x 2",
        "experiments.llama:llama3_8b",
        "v5p:4x4x4",
        ("rows_per_device=2", "compute.remat=dots", "compute.loss_chunk=2048"),
        *(56.4, 64.4, 772.2, 61.2, "2.87 - 2.97"),
        read=("193.5", "61.2", "3.03 - 3.13", "71"),
    ),
    "llama3_70b-v5p": Row(
        "Llama 3 70B, full remat, 64 v5p, 8192 x 1",
        "experiments.llama:llama3_70b",
        "v5p:4x4x4",
        ("rows_per_device=1", "compute.remat=full", "compute.loss_chunk=1024"),
        *(37.1, 34.7, 4264.2, 551.5, "12.78 - 13.70"),
        read=("483.8", "551.5", "13.17 - 14.09", "75"),
    ),
    "llama2_70b-v5p": Row(
        "Llama 2 70B, all products kept but the mlp's inner two, 64 v5p, 4096 x 2",
        "experiments.llama:llama2_70b",
        "v5p:4x4x4",
        ("rows_per_device=2", "compute.remat=minimal", "compute.loss_chunk=2048"),
        *(58.4, 53.6, 4001.7, 542.2, "11.81 - 12.33"),
        read=("241.9", "542.2", "12.19 - 12.71", "107"),
    ),
    "mixtral_8x7b-v5p": Row(
        "Mixtral 8x7B, dropless, full remat, 128 v5p, 4096 x 4",
        "experiments.mixtral:mixtral_8x7b",
        "v5p:4x4x8",
        ("seq_len=4096", "rows_per_device=4", "compute.remat=full", "compute.loss_chunk=1024"),
        *(18.7, 20.5, 197.5, 253.5, "4.46 - 4.89"),
        kernels=1574.5,
        read=("1574.5", "372.8", "5.28 - 5.90", "107"),
    ),
}
OTHERS = ("palm_540b", "llama3_1_8b-131072")  # no peer's figures beside them
HEAD = (
    "side",
    "peak GB",
    "temporaries GB",
    "matrix TFLOP",
    "in kernels",
    "wire GB",
    "seconds a step",
    "compiled in, s",
)


def compile_row(name: str, more: list[str]) -> None:
    """Plan a row with the settings that it and the command have, and keep the plan as JSON."""
    row, file = ROWS[name], FOLDER / f"{name}{'-found' if more else ''}.json"
    settings = [*row.settings, *more]
    command = ["plan", row.experiment, "--topology", row.topology, "--set", *settings, "--json", str(file)]
    FOLDER.mkdir(exist_ok=True)
    if subprocess.run([sys.executable, "-m", "launch", *command]).returncode:
        return  # it has said why; the other rows go on
    plan = json.loads(file.read_text())
    file.write_text(json.dumps({"command": "lm " + " ".join(command[:-2]), **plan}, indent=1) + "\n")


def read_program(file: str, topology: str) -> str:
    """What the text of a compiled step holds, by the rules of `lm plan`."""
    from lm.plan.cost import CostAnalysis
    from lm.plan.hlo import parse_program
    from lm.plan.topology import parse_topology

    cost = CostAnalysis(parse_program(Path(file).read_text()), parse_topology(topology)).total()
    low, high = cost.seconds, cost.seconds + cost.collective_seconds(overlapped=False)
    return (
        f"matrix {cost.matrix / 1e12:.1f} TFLOP in {cost.matrix_seconds:.3f} s; kernels {cost.kernel / 1e12:.1f} in "
        f"{cost.kernel_seconds:.3f}; the rest {cost.other_seconds:.3f}; moved {cost.moved / 1e9:.2f} GB; "
        f"wire {cost.collective_bytes / 1e9:.1f} GB; "
        f"{low:.4f} - {high:.4f} s a step; unknown {dict(cost.unknown)}"
    )


def line(name: str, plan: dict[str, Any]) -> list[str]:
    """One side of the table."""
    low, high = plan["seconds"]
    memory = plan["memory"]
    return [
        *(name, f"{memory['peak'] / 1e9:.2f}", f"{memory['temporaries'] / 1e9:.2f}"),
        *(
            f"{plan['matrix_flops'] / 1e12:.1f}",
            f"{plan['kernel_flops'] / 1e12:.1f}",
            f"{plan['collective_bytes'] / 1e9:.1f}",
        ),
        *(f"{low:.2f} - {high:.2f}", f"{plan['compile_seconds']:.0f}"),
    ]


def table() -> str:
    """Every row with what is known of it, as Markdown."""
    text = [
        "## Plans beside MaxText's, from the TPU's own compiler",
        "",
        "Of one chip and step; GB = 10^9 bytes; float32 weights and Adam, bfloat16 activations. Wire: all collectives",
        "of a step; seconds: compute alone, kernels included, - and exposed collectives. MaxText's",
        "first line is as given, the second what `python -m benchmarks.plans --read` finds in its own compiled step.",
        "",
    ]
    for name, row in ROWS.items():
        theirs = [f"{v:.1f}" if v else "" for v in (row.matrix, row.kernels, row.wire)]
        memory = f"{row.peak}", f"{row.temporaries}"
        lines = [["MaxText, as given", *memory, *theirs, row.seconds, ""]]
        if row.read:
            lines.append(["MaxText, its program read", *memory, f"{row.matrix:.1f}", *row.read])
        commands = []
        for kind in ("", "-found"):
            if (file := FOLDER / f"{name}{kind}.json").exists():
                plan = json.loads(file.read_text())
                lines.append(line("ours" if not kind else "ours, found by --search", plan))
                at = f"    # at commit {plan['commit']}" if "commit" in plan else ""
                commands.append(f"    {plan['command']}{at}")
        rule = [":--" if i == 0 else "--:" for i in range(len(HEAD))]
        text += [f"### {row.title}", "", *(f"| {' | '.join(r)} |" for r in ([*HEAD], rule, *lines)), "", *commands, ""]
    others = [json.loads(f.read_text()) for f in sorted(FOLDER.glob("*.json")) if f.stem in OTHERS]
    lines = [line(f"{p['name']}, {p['devices']} x {p['topology']}", p) for p in others]
    text += ["### Compiled too", "", *(f"| {' | '.join(r)} |" for r in ([*HEAD], rule, *lines)), ""]
    return "\n".join(text + [f"    {p['command']}" for p in others if "command" in p])


def main() -> None:
    """Compile what is named, print the table, and keep it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="what a search found for the rows")
    parser.add_argument("--read", nargs=2, metavar=("PROGRAM", "TOPOLOGY"), help="what another's compiled step holds")
    parser.add_argument("--keep", action="store_true", help="write the table into RESULTS.md")
    args = parser.parse_args()
    if args.read:
        return print(read_program(*args.read))
    for name in args.rows:
        if name not in ROWS:
            parser.error(f"no row {name!r}: {', '.join(ROWS)}")
        compile_row(name, args.set)
    print(table())
    if args.keep:
        keep("plans", table())


if __name__ == "__main__":
    main()
