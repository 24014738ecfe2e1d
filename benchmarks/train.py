"""Tokens per second of the whole training step, ours over the peer's: sides take turns on an otherwise quiet machine.

    python -m benchmarks.train baby --nanogpt CLONE --peer-python /tmp/peers/bin/python

Every side is a process that stays; a round asks each for about the same time of training, in the order A B C and then
C B A. A ratio is the median over rounds of what the two sides did in the same round, so a drift of the machine cancels.
Rounds in which other processes used more than `--others` of the cores are repeated. `--control` adds a twin to every
side: what the two differ by is noise.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks import report
from benchmarks.machine import Others, describe
from benchmarks.sides import PRECISIONS, Side, our_sides, peer_sides
from benchmarks.sizes import SIZES, Size
from benchmarks.worker import Worker

Round = dict[str, float]  # side -> tokens per second


def measure(
    workers: dict[str, Worker], size: Size, rounds: int, seconds: float, others: float
) -> tuple[list[Round], list[float]]:
    """The rounds, and the largest share of the machine that others had in each. At most `rounds` are repeated."""
    steps = {name: _steps(worker, seconds) for name, worker in workers.items()}
    taken: list[tuple[float, Round]] = []
    while len(taken) < 2 * rounds and sum(share <= others for share, _ in taken) < rounds:
        order = list(workers) if len(taken) % 2 == 0 else list(reversed(workers))
        shares, speeds = [], {}
        for name in order:
            time.sleep(0.2)  # the last side's threads go to sleep
            watch = Others(workers[name].cpu_seconds())
            speeds[name] = steps[name] * size.tokens / workers[name].train(steps[name])
            shares.append(watch.share(workers[name].cpu_seconds()))
        taken.append((max(shares), speeds))
        print(
            f"round {len(taken)}: "
            + ", ".join(f"{n} {s:,.0f}" for n, s in speeds.items())
            + f"; others {max(shares):.0%}"
        )
    kept = sorted(taken, key=lambda r: r[0])[:rounds]  # the quietest
    return [r for _, r in kept], [share for share, _ in kept]


def _steps(worker: Worker, seconds: float) -> int:
    """How many steps take about `seconds`, after a warm-up."""
    worker.train(1)
    return max(1, round(seconds / worker.train(1)))


def ratios(rounds: Sequence[Round], side: str, base: str) -> tuple[float, float, float]:
    """Median, least and greatest of side's speed over base's in the same round."""
    each = [r[side] / r[base] for r in rounds]
    return statistics.median(each), min(each), max(each)


def fastest(rounds: Sequence[Round], sides: Sequence[Side]) -> str:
    """The name of the side with the greatest median speed."""
    return max((s.name for s in sides), key=lambda name: statistics.median(r[name] for r in rounds))


def table(size: Size, sides: Sequence[Side], rounds: Sequence[Round]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: speed, the ratio to the peer's float32 and its range; then best against best."""
    base = next((s for s in sides if not s.ours), sides[0]).name
    rows = []
    for side in sides:
        middle, least, most = ratios(rounds, side.name, base)
        speed = statistics.median(r[side.name] for r in rounds)
        rows.append(
            [
                side.name,
                f"{speed:,.0f}",
                f"{size.tokens / speed * 1000:,.1f}",
                f"{middle:.2f}",
                f"{least:.2f} - {most:.2f}",
            ]
        )
    plain = [s for s in sides if not s.settings.get("packed")]  # packed ones do more than the peer
    ours, theirs = [s for s in plain if s.ours], [s for s in plain if not s.ours]
    for label, keep in [
        *((f"{short} against {short}", p) for p, short in PRECISIONS.items()),
        ("best against best", None),
    ]:
        pair = [[s for s in group if keep in (None, s.precision)] for group in (ours, theirs)]
        if all(pair):
            mine, other = (fastest(rounds, group) for group in pair)
            middle, least, most = ratios(rounds, mine, other)
            rows.append([f"{label}: {mine} / {other}", "", "", f"{middle:.2f}", f"{least:.2f} - {most:.2f}"])
    return ["side", "tokens/s", "ms a step", f"ratio to {base}", "range"], rows


def main() -> None:
    """Measure one size, print the table, and with --keep write it to RESULTS.md."""
    options = _options()
    name, size = options.size, SIZES[options.size]
    sides = [] if options.only == "ours" else peer_sides(name, options.peer_python, options.nanogpt, options.compile)
    if options.only != "peers":
        sides += our_sides(name, tuple(options.devices), (False, True) if options.packed else (False,))
    sides = [side for side in sides if side.precision in options.precisions]
    if options.control:
        sides = [dataclasses.replace(s, name=s.name + twin) for s in sides for twin in ("", " (twin)")]
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        cache = stack.enter_context(tempfile.TemporaryDirectory())
        for side in sides:
            print(f"starting {side.name}", flush=True)
            workers[side.name] = side.start(cache)
            stack.callback(workers[side.name].close)
        rounds, shares = measure(workers, size, options.rounds, options.seconds, options.others)
        versions = {k: v for worker in workers.values() for k, v in worker.versions.items()}
    columns, rows = table(size, sides, rounds)
    title = f"Training, {name}{', A/A control' if options.control else ''}: {_words(size)}"
    notes = [
        f"{time.strftime('%Y-%m-%d')}, {len(rounds)} rounds of about {options.seconds:g} s a side, in turn; medians. "
        f"Others used at most {max(shares):.0%} of the cores in a round.",
        report.setting(describe(), versions),
    ]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep(
            f"train {name}{' control' if options.control else ''}", report.markdown(title, columns, rows, notes)
        )


def _words(size: Size) -> str:
    return (
        f"{size.layers} layers, width {size.width}, {size.heads} heads, ffn {size.mlp}, vocabulary {size.vocab}, "
        f"{size.batch} x {size.seq} tokens a step"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--nanogpt", metavar="CLONE", default="", help="a clone of github.com/karpathy/nanoGPT")
    parser.add_argument("--peer-python", default=sys.executable, help="the one with benchmarks/requirements.txt")
    parser.add_argument("--compile", action="store_true", help="the peer through torch.compile too (slow to start)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=list(PRECISIONS),
        help="where a CPU has no bfloat16 unit, float32 alone saves hours (machine: avx512_bf16 or amx_bf16)",
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[0], help="host devices of our side; 0 is JAX's one")
    parser.add_argument("--packed", action="store_true", help="ours on packed documents too: segment ids, positions")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="training time a side and round")
    parser.add_argument("--others", type=float, default=0.05, help="repeat a round if others used more cores")
    parser.add_argument("--only", choices=["ours", "peers"], help="one camp alone")
    parser.add_argument("--control", action="store_true", help="every side twice: how far from 1 is the same thing?")
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    if SIZES[options.size].peer == "nanogpt" and options.only != "ours" and not options.nanogpt:
        parser.error("this size's peer is nanoGPT: give its clone with --nanogpt")
    return options


if __name__ == "__main__":
    main()
