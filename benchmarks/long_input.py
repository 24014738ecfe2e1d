"""A forward and backward pass over one long input: seconds, the most memory that the process ever held, and how far the
result is from the plain kernel's where both fit."""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

from lm.machine import hardware

hardware.prepare("cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from rich_argparse import RichHelpFormatter  # noqa: E402

from benchmarks import machine, report  # noqa: E402
from lm.model.compute import Compute  # noqa: E402
from lm.model.families import llama  # noqa: E402
from lm.model.transformer import Transformer  # noqa: E402
from lm.tune.pretrain import Pretrain  # noqa: E402

WHERE_BOTH_FIT = 4096


def step(length: int, attention: str) -> tuple[Any, float]:
    """The loss and gradients of a Llama of 2 layers, width 128 and 4 heads at `length` random tokens, and seconds."""
    cfg = llama(vocab=512, layers=2, width=128, heads=4, kv_heads=2, mlp=344, context=length)
    compute = Compute("float32", "float32", attention, block=512, remat="full").resolve()
    learner = Pretrain().build(Transformer(cfg, compute))
    ids = np.random.default_rng(0).integers(512, size=(1, length + 1), dtype=np.int32)
    weights = np.full((1, length), 1 / length, np.float32)
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}
    run = jax.jit(jax.value_and_grad(lambda p: learner.loss(p, (), batch, None)[0]))
    compiled = run.lower(learner.init(jax.random.key(0))[0]).compile()
    params = learner.init(jax.random.key(0))[0]
    start = time.perf_counter()
    return jax.block_until_ready(compiled(params)), time.perf_counter() - start


def main() -> None:
    """Measure, show, and keep where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_input", description=__doc__)
    parser.formatter_class = RichHelpFormatter
    parser.add_argument("length", type=int, nargs="?", default=65536, help="tokens")
    parser.add_argument("--keep", action="store_true", help="write the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    (loss, _), seconds = step(options.length, "flash")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    ours, plain = (step(min(options.length, WHERE_BOTH_FIT), name)[0] for name in ("flash", "plain"))
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain[1]))
    apart = max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (ours, plain)), strict=True))
    columns = ["tokens", "loss", "seconds", "peak memory, GB", f"largest difference to plain at {WHERE_BOTH_FIT:,}"]
    row = [f"{options.length:,}", f"{loss:.4f}", f"{seconds:.1f}", f"{peak:.2f}", f"{apart / scale:.1e}"]
    title = "Long input: forward and backward pass of a Llama of 2 layers, width 128, 4 heads"
    notes = [
        "Peak memory is all that the process ever held, Python and compiler included; the difference is that of any "
        "gradient, relative to the largest.",
        report.setting(machine.describe(), {"jax": jax.__version__}),
    ]
    report.show(title, columns, [row], notes)
    if options.keep:
        report.keep("long input", report.markdown(title, columns, [row], notes), Path(report.RESULTS))


if __name__ == "__main__":
    main()
