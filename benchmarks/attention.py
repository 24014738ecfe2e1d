"""Milliseconds of attention alone on a CPU, forward and with its gradients, by each kernel that computes there.

    python -m benchmarks.attention --keep

Kernels take turns, and each one's best of the rounds counts: what else a machine does only adds. Causal, one segment,
in float32, and by blocks with products in bfloat16 too, which is for CPUs that have units for them.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from benchmarks import report
from benchmarks.machine import describe

SHAPES = ((12, 64, 4, 4, 32), (12, 256, 6, 6, 64), (8, 512, 8, 8, 64), (2, 2048, 8, 2, 64))  # B, T, N, K, H
SIDES = {"blocked": ("blocked", "float32"), "blocked bf16": ("blocked", "bfloat16"), "native": ("native", "float32")}
CALLS = 4  # timed together


def cases(shape: tuple[int, ...]) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """side -> its forward pass, and that with gradients, of random queries, keys and values."""
    import jax
    import numpy as np

    from lm.model.compute import Compute
    from lm.model.kernels import KERNELS
    from lm.model.scoring import Mask, Scoring

    B, T, N, K, H = shape
    rng = np.random.default_rng(0)
    q, dy, k, v = (jax.device_put(rng.standard_normal((B, T, n, H), dtype=np.float32)) for n in (N, N, K, K))
    found = {}
    for side, (name, matmul) in SIDES.items():
        compute = Compute(matmul=matmul, dtype="float32").resolve()

        def attend(q: Any, k: Any, v: Any, name: str = name, compute: Compute = compute) -> Any:
            return KERNELS[name](q, k, v, Scoring(Mask()), compute)

        forward = jax.jit(attend)
        both = jax.jit(lambda q, k, v, dy, attend=attend: jax.vjp(attend, q, k, v)[1](dy))
        found[side] = (lambda f=forward: f(q, k, v)), (lambda f=both: f(q, k, v, dy))
    return found


def milliseconds(call: Callable[[], Any]) -> float:
    """Of one call, of CALLS one after the other."""
    import jax

    begun = time.perf_counter()
    for _ in range(CALLS):
        out = call()
    jax.block_until_ready(out)
    return (time.perf_counter() - begun) * 1e3 / CALLS


def main() -> None:
    """Measure all shapes, print the table, and with --keep write it to RESULTS.md."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    from lm.machine import hardware

    hardware.prepare("cpu")
    hardware.run_steps_in_turn()
    rows = []
    for shape in SHAPES:
        sides = cases(shape)
        best = {side: [float("inf")] * 2 for side in sides}
        for number in range(options.rounds + 1):
            for side, calls in sides.items():
                times = [milliseconds(call) for call in calls]
                if number:  # the first compiles
                    best[side] = [min(pair) for pair in zip(best[side], times, strict=True)]
        for side, (forward, both) in best.items():
            ratios = [f"{a / b:.2f}" for a, b in zip(best["blocked"], (forward, both), strict=True)]
            rows.append([f"{' x '.join(map(str, shape))}, {side}", f"{forward:.1f}", f"{both:.1f}", *ratios])
    title = "Attention alone: rows x tokens x heads x key heads x head size"
    columns = ["shape, kernel", "forward, ms", "with gradients, ms", "times blocked's speed", "with gradients"]
    notes = [
        f"{time.strftime('%Y-%m-%d')}, the best of {options.rounds} rounds of {CALLS} calls, in turn.",
        report.setting(describe(), {}),
    ]
    report.show(title, columns, rows, notes)
    if options.keep:
        report.keep("attention", report.markdown(title, columns, rows, notes))


if __name__ == "__main__":
    main()
