"""`evaluate`: a run's newest checkpoint, or another that it has kept, on held-out data, on any devices."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from lm.experiment import Experiment
from lm.legal import check_mesh
from lm.machine import buckets, hardware
from lm.machine.cache import cache_dir
from lm.pretrained import read_experiment
from lm.run.prepared import prepare_run
from lm.sharding.mesh import make_mesh
from lm.sharding.rules import Layout
from lm.train.checkpoint import Checkpoints
from lm.train.kept import LAST, kept_step
from lm.train.step import params_shardings


def evaluate(run: str | Path, step: str = LAST) -> dict[str, dict[str, float]]:
    """source -> the method's measures of its held-out data, and its baselines (gzip and xz, of bits per byte).
    NAME/SOURCE -> the measures of the experiment's extra evaluations.

    Parameters alone are restored (their moving average, where the run keeps one), of the checkpoint that `step` names
    (lm/train/kept.py), onto this process's devices, whatever the run was trained on. Raises ValueError for a folder
    that is not a run, or has no such checkpoint."""
    folder = buckets.local_mirror(run)
    hardware.use_compilation_cache(cache_dir())
    hardware.check_backend()
    experiment, mesh = on_available_devices(read_experiment(folder))
    prepared = prepare_run(experiment, folder, mesh)
    part = "ema" if experiment.ema else "params"
    params, frozen = params_shardings(prepared.learner, mesh, experiment.layout)
    checkpoints = Checkpoints(buckets.checkpoint_path(folder), experiment.keep_last, experiment.keep_best)
    state, _, _ = checkpoints.restore({part: params, "frozen": frozen}, only=kept_step(checkpoints, step))
    checkpoints.close()
    measures = {prefix: one.by_source(state[part], state["frozen"]) for prefix, one in prepared.heldout.items()}
    own, baselines = measures.pop("eval"), prepared.learner.baselines(prepared.data)
    return {source: values | baselines.get(source, {}) for source, values in own.items()} | {
        f"{prefix.removeprefix('evaluations/')}/{source}": values
        for prefix, by_source in measures.items()
        for source, values in by_source.items()
    }


def on_available_devices(experiment: Experiment) -> tuple[Experiment, Mesh]:
    """`experiment` on a mesh of this process's devices, and that mesh: training's where it fits; otherwise as many
    devices as the parameters (or else the rows) divide over."""
    for mesh, layout, devices in _candidates(experiment):
        one = dataclasses.replace(experiment, mesh=mesh, layout=layout)
        try:
            available = make_mesh(mesh, devices)
            check_mesh(one, available.shape)
        except ValueError:
            continue
        return one, available
    raise AssertionError("one device computes every experiment")


def _candidates(experiment: Experiment) -> Iterator[tuple[dict[str, int], Layout, list[jax.Device]]]:
    """Meshes in order of preference, each with a layout and its devices."""
    devices = jax.devices()
    yield experiment.mesh, experiment.layout, devices
    for count in range(len(devices), 0, -1):
        for axis in ("fsdp", "data"):
            yield {axis: count}, Layout(), devices[:count]
