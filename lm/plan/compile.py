"""Ahead-of-time compilation of a program by the TPU compiler, on a machine without a TPU: a training step, or those of
decoding (lm/plan/decoding.py).

Nothing is allocated: the state and the batch are shapes with shardings. libtpu may abort the process, so it runs in a
child process, `python -m lm.plan.compile FOLDER`, which writes the optimised program and its memory into the folder.
"""

import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm.experiment import Experiment
from lm.machine.hardware import tpu_arguments
from lm.plan.topology import Topology, parse_topology

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # the topology's devices are not this machine's
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
EXHAUSTED = "RESOURCE_EXHAUSTED"


class NoCompiler(ValueError):
    """libtpu is not installed."""


class OutOfMemory(ValueError):
    """The program needs more memory than a chip has."""


@dataclass(frozen=True)
class Compiled:
    """The compiler's memory analysis of a program on one device: bytes of arguments, outputs, what both share
    (`alias`), temporaries and the program (`code`), and the most in use at once (`peak`); seconds to lower and to
    compile."""

    arguments: int
    outputs: int
    alias: int
    temporaries: int
    code: int
    peak: int
    lower_seconds: float
    compile_seconds: float
    compiler: str


def compiler() -> str:
    """The version of libtpu. Raises NoCompiler, with how to install it."""
    try:
        return f"libtpu {importlib.metadata.version('libtpu')}"
    except importlib.metadata.PackageNotFoundError:
        raise NoCompiler('the TPU compiler is not installed: pip install -e ".[tpu]" (it needs no TPU)') from None


def compile_step(experiment: Experiment, topology: Topology, timeout_seconds: float = 3600.0) -> tuple[Compiled, str]:
    """The training step of `experiment` on `topology`; returns and raises as `compile_program`."""
    return compile_program(lower_step, experiment, experiment.mesh, topology, timeout_seconds)


def compile_program(
    lower: Callable[[Any, Any], Any],
    what: Any,
    mesh: Mapping[str, int],
    topology: Topology,
    timeout_seconds: float = 3600.0,
) -> tuple[Compiled, str]:
    """A program for `topology`: its memory, and the text of it as optimised.

    Args:
      lower: a function of a module, (what, mesh over the topology's devices) -> the program, lowered.
      what: its first argument; it is pickled.
      mesh: axis -> devices.
      topology: the devices.
      timeout_seconds: after which the compiler is stopped.

    Raises:
      NoCompiler: without libtpu.
      OutOfMemory: where it does not fit.
      ValueError: where the compiler fails otherwise, for GPUs, or after the timeout.
    """
    compiler()
    if not topology.chip.tpu:
        raise ValueError(f"{topology.name}: GPUs have no compiler that runs without one; their plan is analytic")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lm.plan.compile", folder]
        request = pickle.dumps((lower, what, dict(mesh), topology.name))
        paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
        env = {**os.environ, **ENVIRONMENT, "LIBTPU_INIT_ARGS": tpu_arguments(), "PYTHONPATH": paths}
        try:
            ran = subprocess.run(command, input=request, capture_output=True, env=env, timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{topology.name}: not compiled within {timeout_seconds:.0f} seconds") from None
        result = Path(folder) / "result.json"
        if ran.returncode or not result.exists():
            raise _failure(topology, ran.returncode, ran.stderr.decode(errors="replace"))
        return Compiled(**json.loads(result.read_text())), (Path(folder) / "program.hlo").read_text()


def _failure(topology: Topology, code: int, stderr: str) -> ValueError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith(("-", "For simpl"))]
    exhausted = next((line for line in lines if EXHAUSTED in line), "")
    if "vmem" in exhausted.lower():
        return ValueError(f"{topology.name}: a kernel needs more than a core's own memory (VMEM): lower compute.block")
    if exhausted:
        return OutOfMemory(exhausted[exhausted.index(EXHAUSTED) :])
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return ValueError(f"{topology.name}: the compiler {how}: {lines[-1] if lines else 'no message'}")


# ---------------------------------------------------------------- the child process


def topology_mesh(shape: Mapping[str, int], topology: Topology) -> Any:
    """The mesh of this shape over the devices of `topology`."""
    from jax.experimental import topologies

    from lm.sharding.mesh import make_mesh

    chips = "x".join(map(str, topology.shape))
    description = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{topology.chip.kind}:{chips}", **topology.options()
    )
    return make_mesh(shape, description.devices)


def lower_step(experiment: Experiment, mesh: Any) -> Any:
    """The training step, lowered for `mesh`; nothing is allocated."""
    import jax
    import jax.numpy as jnp

    from lm.model.transformer import Transformer
    from lm.sharding.shardings import batch_sharding
    from lm.train.step import build_step, state_shardings

    e = experiment
    learner = e.build(Transformer(e.model, e.compute.resolve(mesh.devices.flat[0].platform)))
    optimizer = e.optimizer.build(e.steps, learner.axes())
    state, _ = state_shardings(learner, optimizer, mesh, e.ema, e.layout)
    rows = batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=rows)
        for name, (shape, dtype) in batch_shapes(e).items()
    }
    step: Any = build_step(learner, optimizer, mesh, e.seed, e.accumulate, e.ema, e.layout)
    return step.lower(state, batch)


def batch_shapes(experiment: Experiment) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shapes and dtypes of a batch, from the batch of one row that the method's objective makes, and what the
    method adds; for a model with a vision tower, one image a row."""
    import numpy as np

    from lm.data.objective import ObjectiveContext, Rows

    e, vocab, objective = experiment, experiment.model.vocab, experiment.method.objective
    context = ObjectiveContext(
        e.length,
        vocab,
        *(1, 2, 3),
        encoder=e.model.has_encoder,
        special=np.zeros(vocab, bool),
        word_starts=np.ones(vocab, bool),
        cls=1,
        sep=2,
    )
    ones = np.ones((1 + objective.reads_row_pairs, objective.row_tokens(context) + 1), np.int32)
    batch = objective.batch(Rows(ones, ones, ones, ones), context)
    arrays = {name: (array.shape[1:], str(array.dtype)) for name, array in batch.items()}
    arrays |= e.method.arrays(objective.lengths(context)[1])
    if vision := e.model.vision:
        arrays["images"] = ((1, vision.image_size, vision.image_size, vision.channels), "uint8")
    return {name: ((e.rows, *shape), dtype) for name, (shape, dtype) in arrays.items()}


def main(folder: Path) -> None:
    """Compile the pickled (function that lowers, its argument, mesh, topology) on stdin."""
    lower, what, mesh, name = pickle.load(sys.stdin.buffer)
    start = time.time()
    lowered = lower(what, topology_mesh(mesh, parse_topology(name)))
    middle = time.time()
    executable = lowered.compile()
    end = time.time()
    memory = executable.memory_analysis()
    result = Compiled(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        alias=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        lower_seconds=middle - start,
        compile_seconds=end - middle,
        compiler=compiler(),
    )
    (folder / "program.hlo").write_text(executable.as_text())
    (folder / "result.json").write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
