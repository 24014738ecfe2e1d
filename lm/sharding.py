"""Where arrays live: the mesh, the logical axes, and the one table that joins them.

A parameter is born with logical axes (the long names of the letters B T D N K H F V L), an activation is `constrain`ed
with them in a few places, and RULES says which mesh axis each takes. Everything else (parameters, optimizer state,
checkpoints) follows from the tree of logical axes. Policy is the table; changing it changes no model code.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.value import suggest

MESH_AXES = ("data", "fsdp", "tensor", "expert")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp", "expert"),
    "seq": None,
    # parameters: ZeRO-3 over fsdp on the model width, Megatron's tensor parallelism on the other side
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "experts": "expert",
    "layers": None,
    "norm": None,  # vectors of width D: too small to be worth gathering
    # activations of width D and H are not split over fsdp, which already splits their batch
    "act_embed": None,
}

Axes = Sequence[str | None]


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of MESH_AXES over `devices` (default: all). Axes not named in `shape` have size 1; with no shape all
    devices are data parallel.

    Raises ValueError when an axis is unknown or the sizes do not multiply to the number of devices."""
    devices = list(jax.devices()) if devices is None else list(devices)
    shape = dict(shape or {"data": len(devices)})
    for axis, size in shape.items():
        if axis not in MESH_AXES:
            raise ValueError(f"mesh has no axis {axis!r}: {suggest(axis, MESH_AXES)}")
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"mesh axis {axis}={size!r}: expected a whole number of devices, at least 1")
    sizes = tuple(shape.get(axis, 1) for axis in MESH_AXES)
    if math.prod(sizes) != len(devices):
        product = " x ".join(f"{a} {s}" for a, s in shape.items())
        raise ValueError(
            f"mesh {product} needs {math.prod(sizes)} devices, {len(devices)} are here: "
            f"choose sizes that multiply to {len(devices)}, for instance data={len(devices)}"
        )
    return Mesh(np.array(devices).reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def using(mesh: Mesh) -> Iterator[Mesh]:
    """Trace and run under `mesh`: both halves of what flax's constraints need, which do nothing without the first."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(RULES.items())):
        yield mesh


def check_axes(axes: Sequence[str | None], shape: Sequence[int]) -> None:
    """A mistyped logical axis would silently mean "not sharded": refuse it."""
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axes {tuple(axes)} for an array of shape {tuple(shape)}")
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r}: {suggest(axis, RULES)}")


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` with its sharding pinned to the mesh axes that RULES gives `axes`; no effect outside `using`."""
    check_axes(axes, x.shape)
    return nn.with_logical_constraint(x, axes)


def per_device(f: Callable[..., jax.Array], inputs: Sequence[Axes], output: Axes) -> Callable[..., jax.Array]:
    """`f` run by each device on its own part of arrays with logical axes `inputs`, for what the compiler cannot
    partition itself (a kernel). Outside `using`, and on a mesh of one device, `f`."""

    def run(*arrays: jax.Array) -> jax.Array:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return f(*arrays)
        shapes = [a.shape for a in arrays]
        specs = tuple(_fitting(mesh, s, spec(axes)) for s, axes in zip(shapes, inputs, strict=True))
        # the output has the axes and the sizes of the first input
        return jax.shard_map(f, in_specs=specs, out_specs=_fitting(mesh, shapes[0], spec(output)), check_vma=False)(
            *arrays
        )

    return run


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array with logical `axes`, from RULES, each mesh axis used once."""
    used: set[str] = set()
    parts: list[Any] = []
    for axis in axes:
        rule = RULES[axis] if axis is not None else None
        mesh_axes = tuple(m for m in ((rule,) if isinstance(rule, str) else rule or ()) if m not in used)
        used.update(mesh_axes)
        parts.append(mesh_axes if len(mesh_axes) > 1 else mesh_axes[0] if mesh_axes else None)
    return PartitionSpec(*parts)


def _fitting(mesh: Any, shape: Sequence[int], partition: PartitionSpec) -> PartitionSpec:
    """`partition` without the entries whose mesh axes do not divide the dimension: those stay whole on every device."""

    def size(entry: Any) -> int:
        return math.prod(mesh.shape[a] for a in ((entry,) if isinstance(entry, str) else entry or ()))

    return PartitionSpec(*(e if d % size(e) == 0 else None for d, e in zip(shape, partition, strict=True)))


def shardings(shapes: Any, axes: Any, mesh: Mesh) -> Any:
    """The NamedShardings of a tree of arrays or ShapeDtypeStructs whose logical axes are the tree `axes` of tuples."""
    return jax.tree.map(lambda x, a: NamedSharding(mesh, _fitting(mesh, x.shape, spec(a))), shapes, axes)


def like(tree: Any, params: Any, params_shardings: Any, mesh: Mesh) -> Any:
    """Shardings for `tree` (an optimizer's state, say): a leaf whose path ends with a parameter's path and whose shape
    is that parameter's is placed as it is; everything else is replicated."""
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
    """The sharding of a batch's arrays [B, T]: rows over data and fsdp."""
    return NamedSharding(mesh, spec(("batch",)))
