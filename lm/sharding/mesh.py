"""The mesh: devices in an array of named axes, slower links on earlier ones."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lm.sharding.rules import MESH_AXES, RULES, AnyMesh, devices_along
from lm.value import suggest


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of MESH_AXES over `devices` (default: all). Axes that `shape` does not name have size 1; without a shape
    all devices are data parallel, and slices are replicas.

    Raises ValueError for an unknown axis, for sizes whose product is not the number of devices, or where an axis other
    than replica would cross slices."""
    devices = list(jax.devices()) if devices is None else list(devices)
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    shape = dict(shape or ({"replica": slices} if slices > 1 else {}) | {"data": len(devices) // slices})
    check_shape(shape, len(devices))
    sizes = tuple(shape.get(axis, 1) for axis in MESH_AXES)
    if sizes[0] % slices:
        raise ValueError(
            f"mesh axis replica={sizes[0]}: these {len(devices)} devices are in {slices} slices, which only replica "
            f"crosses: set replica to {slices} or a multiple"
        )
    return Mesh(_arranged(sizes, devices, slices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def check_shape(shape: Mapping[str, int], devices: int) -> None:
    """Raise ValueError where `shape` is not a mesh of that many devices."""
    for axis, size in shape.items():
        if axis not in MESH_AXES:
            raise ValueError(f"mesh has no axis {axis!r}: {suggest(axis, MESH_AXES)}")
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"mesh axis {axis}={size!r}: expected a whole number of devices, at least 1")
    if (needed := math.prod(shape.values())) != devices:
        product = " x ".join(f"{a} {s}" for a, s in shape.items())
        raise ValueError(
            f"mesh {product} needs {needed} devices, {devices} are here: choose sizes that multiply to {devices}, "
            f"for instance {_nearest(shape, devices)}"
        )


def _nearest(shape: Mapping[str, int], devices: int) -> str:
    """`shape` with one axis changed, as little as possible, so that its product is `devices`."""
    found = [
        (abs(math.log(size / shape[axis])), {**shape, axis: size})
        for axis in shape
        if devices % (others := math.prod(shape.values()) // shape[axis]) == 0
        for size in [devices // others]
    ]
    best = min(found, key=lambda f: f[0])[1] if found else {"data": devices}
    return " ".join(f"{axis}={size}" for axis, size in best.items())


def _arranged(sizes: tuple[int, ...], devices: list[jax.Device], slices: int) -> np.ndarray:
    """The devices as an array of these `sizes`, network neighbours along the last axes."""
    if slices > 1:
        dcn, ici = (slices, *(1,) * (len(sizes) - 1)), (sizes[0] // slices, *sizes[1:])
        return mesh_utils.create_hybrid_device_mesh(ici, dcn, devices, allow_split_physical_axes=True)
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return np.array(devices).reshape(sizes)


def row_devices(mesh: AnyMesh) -> int:
    """The number of shards of a batch's rows."""
    return devices_along(mesh, RULES["batch"])


def memories(mesh: Mesh) -> tuple[str, ...]:
    """The kinds of memory that the mesh's devices have."""
    return tuple(m.kind for m in mesh.devices.flat[0].addressable_memories())
