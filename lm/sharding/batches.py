"""Batches of the host on the devices: which rows a process reads, and the global arrays made of them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.sharding.rules import spec
from lm.sharding.shardings import batch_sharding


def local_rows(mesh: Mesh, rows: int) -> np.ndarray | None:
    """The indices, ascending, of those rows of a batch of `rows` that this process's devices hold; None: all."""
    held: Any = NamedSharding(mesh, spec(("batch",))).addressable_devices_indices_map((rows,))
    local = np.unique(np.concatenate([np.arange(rows)[index] for index in held.values()]))
    return None if len(local) == rows else local


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, local: np.ndarray | None = None, rows: int = 0
) -> dict[str, jax.Array]:
    """The global arrays of a host batch, which has all rows (`local` None) or this process's `local` ones of `rows`.

    On CPUs they are there when it returns: a step that is called with what is still copied, as images are, would be
    dispatched to run behind others, with temporaries of its own (`hardware.run_steps_in_turn`)."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        placed = jax.device_put(dict(batch), sharding)
        return jax.block_until_ready(placed) if mesh.devices.flat[0].platform == "cpu" else placed

    def global_array(array: np.ndarray) -> jax.Array:
        present = np.arange(len(array)) if local is None else local
        shape = (len(array) if local is None else rows, *array.shape[1:])
        indices = np.arange(shape[0])

        def shard(index: Any) -> np.ndarray:
            return np.asarray(array[np.searchsorted(present, indices[index[0]])][(slice(None), *index[1:])])

        return jax.make_array_from_callback(shape, sharding, shard)

    return {name: global_array(array) for name, array in batch.items()}


def replicate(tree: Any) -> Any:
    """A tree of arrays that are sharded over several processes, all of it on one device of each. All processes call
    it."""

    def on_each(x: jax.Array) -> jax.Array:
        replicated = NamedSharding(x.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
        return jax.jit(lambda a: a, out_shardings=replicated)(x).addressable_data(0)

    return jax.tree.map(on_each, tree)


def on_host(tree: Any) -> Any:
    """A tree of arrays of all rows on the host of every process. All processes call it."""
    if jax.process_count() > 1:
        tree = jax.tree.map(lambda x: replicate(x) if isinstance(x, jax.Array) else x, tree)
    return jax.tree.map(np.asarray, jax.device_get(tree))


def broadcast(array: np.ndarray) -> np.ndarray:
    """The first process's `array`, of one shape in all. All processes call it."""
    if jax.process_count() == 1:
        return array
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
