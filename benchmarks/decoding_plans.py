"""Plans of decoding beside MaxText's step: the same models, chips, rows and context through the same TPU compiler.

    python -m benchmarks.decoding_plans [ROW ...] --keep

Rows that are named are compiled now; the others are shown as plans/decode_*.json has them. MaxText's step (e591f30c,
2026-08-22) is `MaxEngine.generate` as benchmarks/maxtext_decode.py compiles it (jax 0.10.2, libtpu 0.0.42.1), read by
`python -m benchmarks.plans --read`: bfloat16 parameters and cache, half of it for the prompt, unrolled layers,
`dot_product` attention. Its inference.yml cannot trace Mixtral's experts by megablox; with sparse_matmul=false it can,
in about twice the time.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import keep, markdown

FOLDER = Path(__file__).parent / "plans"
BATCH, CONTEXT = 32, 2048
HEAD = ("side", "GB held", "GB moved", "ms of operations", "ms of memory", "ms exposed", "ms a step", "tokens/s a chip")


@dataclass(frozen=True)
class Row:
    """A model on a topology: how we are asked for it, and what `--read` finds in MaxText's steps."""

    title: str
    experiment: str
    topology: str
    chips: int
    theirs: tuple["Theirs", ...]


@dataclass(frozen=True)
class Theirs:
    """A step of MaxText's: its settings, the bytes of its arguments and those that it moves (GB), and milliseconds of
    operations, and of exposed collectives."""

    settings: str
    held: float
    moved: float
    operations: float
    exposed: float


FLAGS = "with the flags of its mixtral_offline_run.sh"
ROWS = {
    "llama3_8b-v5e": Row(
        "Llama 3 8B, 8 v5e",
        "experiments.llama:llama3_8b",
        "v5e:2x4",
        8,
        (Theirs("inference.yml, tensor 8", 3.09, 3.530, 2.717, 0.365), Theirs(FLAGS, 3.09, 3.530, 2.668, 0.368)),
    ),
    "llama3_70b-v5e": Row(
        "Llama 3 70B, 16 v5e",
        "experiments.llama:llama3_70b",
        "v5e:4x4",
        16,
        (Theirs("llama3_70b_v5e-16.yml, tensor 8 x autoregressive 2", 11.01, 11.606, 6.270, 1.686),),
    ),
    "mixtral_8x7b-v5e": Row(
        "Mixtral 8x7B, 8 v5e",
        "experiments.mixtral:mixtral_8x7b",
        "v5e:2x4",
        8,
        (
            Theirs("base.yml, tensor 8, megablox", 12.76, 12.848, 18.990, 0.312),
            Theirs(FLAGS, 12.76, 12.882, 18.786, 0.314),
            Theirs(f"{FLAGS}, megablox=false", 12.76, 12.912, 18.535, 0.314),
        ),
    ),
}


def seconds(operations: float, memory: float, exposed: float) -> float:
    """Of a step: operations, or memory where it takes longer to give what is read than that, and the collectives."""
    return max(operations, memory) + exposed


def compile_row(name: str) -> None:
    """Plan a row, and keep the plan as JSON."""
    row, file = ROWS[name], FOLDER / f"decode_{name}.json"
    command = ["plan", row.experiment, "--decode", "--topology", row.topology]
    command += ["--batch", str(BATCH), "--context", str(CONTEXT), "--json", str(file)]
    if subprocess.run([sys.executable, "-m", "launch", *command]).returncode:
        return  # it has said why; the other rows go on
    plan = json.loads(file.read_text())
    file.write_text(json.dumps({"command": "lm " + " ".join(command[:-2]), **plan}, indent=1) + "\n")


def cells(side: str, numbers: tuple[float, float, float, float, float], chips: int) -> list[str]:
    """A line: GB held and moved, milliseconds of operations, of memory and of exposed collectives."""
    held, moved, operations, memory, exposed = numbers
    step = seconds(operations, memory, exposed)
    amounts = (f"{n:.2f}" for n in (held, moved, operations, memory, exposed, step))
    return [side, *amounts, f"{BATCH / step * 1e3 / chips:,.0f}"]


def ours(plan: dict[str, Any]) -> tuple[float, float, float, float, float]:
    """The numbers of a plan of ours."""
    parts = plan["step"]["parts"]
    operations = parts["matrix"] + parts["kernels"] + parts["rest"]
    held = plan["parameters"] + plan["cache"]
    times = operations, plan["moved"] / plan["bandwidth"], parts["exposed"]
    return held / 1e9, plan["moved"] / 1e9, *(t * 1e3 for t in times)  # type: ignore[return-value]


def table() -> str:
    """Every row with what is known of it, as Markdown."""
    text = [
        "## Decoding planned beside MaxText's step, from the TPU's own compiler",
        "",
        f"Of one chip and step, {BATCH} rows of {CONTEXT} tokens, bfloat16 parameters and cache; GB = 10^9 bytes.",
        "Moved: what is read from and written to the chip's memory, in the background too; a step takes the longer of",
        "its operations and of that, and its exposed collectives. How often MaxText's time is ours stands behind it.",
        "",
    ]
    for name, row in ROWS.items():
        plan = json.loads((FOLDER / f"decode_{name}.json").read_text())
        mine = ours(plan)
        lines = []
        for other in row.theirs:
            memory = other.moved * 1e12 / plan["bandwidth"]
            numbers = other.held, other.moved, other.operations, memory, other.exposed
            ratio = seconds(*numbers[2:]) / seconds(*mine[2:])
            line = cells(f"MaxText, {other.settings}", numbers, row.chips)
            lines.append([*line[:-2], f"{line[-2]} ({ratio:.2f}x)", line[-1]])
        lines.append(cells("ours", mine, row.chips))
        section = markdown(row.title, HEAD, lines, [f"    {plan['command']}"])
        text += [section.replace("## ", "### ", 1), ""]
    return "\n".join(text).rstrip()


def main() -> None:
    """Compile what is named, print the table, and keep it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--keep", action="store_true", help="write the table into RESULTS.md")
    args = parser.parse_args()
    for name in args.rows:
        if name not in ROWS:
            parser.error(f"no row {name!r}: {', '.join(ROWS)}")
        compile_row(name)
    print(table())
    if args.keep:
        keep("decoding plans", table())


if __name__ == "__main__":
    main()
