"""Shardings of trees: parameters by their logical axes, optimizer state like its parameters, batches by row."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.sharding.mesh import memories
from lm.sharding.rules import MAY_REPLICATE, RULES, AnyMesh, Axes, Rule, devices_along, fitting_spec, mesh_axes_of, spec

DEVICE, HOST = "device", "pinned_host"  # kinds of memory


def shardings(shapes: Any, axes: Any, mesh: AnyMesh, rules: Mapping[str, Rule] = RULES) -> Any:
    """The NamedShardings of a tree of arrays or ShapeDtypeStructs whose logical axes are the tree `axes` of tuples.

    Raises ValueError where a dimension does not divide, but for MAY_REPLICATE."""

    def one(path: Any, x: Any, names: Axes) -> NamedSharding:
        for dimension, axis, entry in zip(x.shape, names, spec(names, rules), strict=True):
            if dimension % devices_along(mesh, entry) and axis not in MAY_REPLICATE:
                over = " x ".join(f"{a}={mesh.shape[a]}" for a in mesh_axes_of(entry) if mesh.shape[a] > 1)
                raise ValueError(
                    f"{jax.tree_util.keystr(path)} {tuple(x.shape)}: {axis} {dimension} does not divide over mesh "
                    f"{over}: choose another mesh, or replicate it with layout.replicated=({axis!r},)"
                )
        return NamedSharding(mesh, fitting_spec(mesh, x.shape, names, rules))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def shardings_like(tree: Any, params: Any, params_shardings: Any, mesh: Mesh) -> Any:
    """Shardings for `tree` (an optimizer's state, say): a leaf whose path ends with that of a parameter of its shape
    has the parameter's sharding; all others are replicated."""
    by_path = {
        jax.tree_util.keystr(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_flatten_with_path(params)[0], jax.tree.leaves(params_shardings), strict=True
        )
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path: Any, leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = by_path.get(jax.tree_util.keystr(path[start:]), ((), None))
            if sharding is not None and shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch's arrays [B, T]: by rows, over the mesh axes of "batch" in RULES."""
    return NamedSharding(mesh, spec(("batch",)))


def on_host(shapes: Any, placed: Any, mesh: Mesh) -> Any:
    """The shardings `placed` of a tree of `shapes`, with all but scalars in host memory.

    Raises ValueError where the backend has no host memory that a device can read."""
    if HOST not in (kinds := memories(mesh)):
        raise ValueError(
            f"layout.offload_optimizer=True: {mesh.devices.flat[0].platform} devices have no memory {HOST!r} "
            f"(they have {', '.join(kinds)}): set it to False"
        )
    return jax.tree.map(lambda x, s: s.with_memory_kind(HOST) if x.ndim else s, shapes, placed)
