"""The mesh and layout under which code is traced: `constrain`, and what depends on their sizes.

`use_mesh(mesh, layout)` sets both for what is traced inside it; outside it, and on one device, nothing here has an
effect. Inside `shard_map` some mesh axes are manual: each device along them runs the code on its own, so that these
axes have size 1 there.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.sharding.mesh import row_devices
from lm.sharding.rules import Axes, DecodingLayout, Layout, Rule, check_axes, fitting_spec, mesh_axes_of, spec
from lm.sharding.shardings import HOST

_CURRENT: ContextVar[tuple[Mesh, Layout | DecodingLayout] | None] = ContextVar("mesh and layout", default=None)
_MANUAL: ContextVar[tuple[str, ...]] = ContextVar("manual mesh axes of the enclosing shard_map", default=())


@contextlib.contextmanager
def use_mesh(mesh: Mesh, layout: Layout | DecodingLayout = Layout()) -> Iterator[Mesh]:
    """Trace and run under `mesh` and `layout`."""
    token = _CURRENT.set((mesh, layout))
    try:
        with jax.set_mesh(mesh):
            yield mesh
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def manual(mesh_axes: tuple[str, ...]) -> Iterator[None]:
    """Trace the body of a `shard_map` over these mesh axes."""
    token = _MANUAL.set(mesh_axes)
    try:
        yield
    finally:
        _MANUAL.reset(token)


def current() -> tuple[Mesh, Layout | DecodingLayout] | None:
    """The current mesh and layout; None outside `use_mesh`, and on a mesh of one device."""
    now = _CURRENT.get()
    return now if now and now[0].size > 1 else None


def axis_size(*mesh_axes: str) -> int:
    """The number of devices along these axes of the current mesh; 1 outside `use_mesh`, and for manual axes."""
    now, taken = _CURRENT.get(), _MANUAL.get()
    return math.prod(now[0].shape[axis] for axis in mesh_axes if axis not in taken) if now else 1


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` with its sharding constrained to the mesh axes of its logical `axes`; no effect outside `use_mesh`. A
    dimension that does not divide is replicated: one row or token, in decoding and initialisation."""
    check_axes(axes, x.shape)
    now = current()
    if now is None:
        return x
    mesh, taken = now[0], _MANUAL.get()
    partition = fitting_spec(mesh, x.shape, axes, now[1].rules)
    if not taken:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition))
    left = {axis for axis in mesh.axis_names if axis not in taken and mesh.shape[axis] > 1}
    automatic = PartitionSpec(*(tuple(n for n in mesh_axes_of(e) if n in left) for e in partition))
    return jax.lax.with_sharding_constraint(x, automatic) if any(automatic) else x


def splits_evenly(rows: int, length: int) -> bool:
    """Whether the current mesh splits a batch [rows, length], and evenly."""
    now = _CURRENT.get()
    if now is None or _MANUAL.get():
        return False
    parts, context = row_devices(now[0]), now[0].shape["context"]
    return parts * context > 1 and rows % parts == 0 and length % context == 0


def mesh_axes_for(axes: Axes, axis: str) -> Rule:
    """The mesh axes over which `axis` of a parameter with logical `axes` is split, under the current layout."""
    now = _CURRENT.get()
    return spec(axes, now[1].rules)[list(axes).index(axis)] if now else None


def shard_count(axis: str) -> int:
    """The number of shards of a parameter's logical `axis`, under the current mesh and layout."""
    return axis_size(*mesh_axes_of(mesh_axes_for((axis,), axis)))


def shard_as_state(grads: Any, axes: Any) -> Any:
    """Gradients sharded as the optimizer's state is: reduce-scattered, so that each device updates its shard."""
    now = current()
    if now is None:
        return grads
    placed = jax.tree.map(
        lambda g, a: NamedSharding(now[0], fitting_spec(now[0], g.shape, a, now[1].state_rules)), grads, axes
    )
    return jax.lax.with_sharding_constraint(grads, placed)


def to_device_memory(state: Any) -> Any:
    """The optimizer's state in device memory, where the current layout offloads it to the host."""
    now = _CURRENT.get()
    if now is None or not now[1].offload_optimizer:
        return state
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if x.ndim else x, state)


def has_host_memory() -> bool:
    """Whether the current devices can read the host's memory."""
    now = _CURRENT.get()
    first = now[0].devices.flat[0] if now else jax.devices()[0]
    return HOST in (m.kind for m in first.addressable_memories())
