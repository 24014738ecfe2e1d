"""What traced code may know of the mesh it is compiled for: `constrain`, and a few questions.

`using(mesh, layout)` sets both for everything traced inside it; outside it, and on one device, nothing here has any
effect. Inside `shard_map` some mesh axes are manual: each device along them runs the code by itself, so that there
these axes have size 1.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.sharding.mesh import row_devices
from lm.sharding.rules import Axes, Layout, Rule, check_axes, fitting_spec, mesh_axes_of, spec
from lm.sharding.shardings import HOST

_CURRENT: ContextVar[tuple[Mesh, Layout] | None] = ContextVar("mesh and layout", default=None)
_MANUAL: ContextVar[tuple[str, ...]] = ContextVar("mesh axes that a shard_map around this code has taken", default=())


@contextlib.contextmanager
def using(mesh: Mesh, layout: Layout = Layout()) -> Iterator[Mesh]:
    """Trace and run under `mesh`: what `constrain` and the functions below ask for."""
    token = _CURRENT.set((mesh, layout))
    try:
        with jax.set_mesh(mesh):
            yield mesh
    finally:
        _CURRENT.reset(token)


@contextlib.contextmanager
def manual(mesh_axes: tuple[str, ...]) -> Iterator[None]:
    """Trace what a `shard_map` over these axes runs: along them each device works by itself."""
    token = _MANUAL.set(mesh_axes)
    try:
        yield
    finally:
        _MANUAL.reset(token)


def current() -> tuple[Mesh, Layout] | None:
    """The mesh and the layout in use; None outside `using`, and on a mesh of one device."""
    now = _CURRENT.get()
    return now if now and now[0].size > 1 else None


def axis_size(*mesh_axes: str) -> int:
    """The devices along these axes of the mesh in use; 1 outside `using`, and for manual axes."""
    now, taken = _CURRENT.get(), _MANUAL.get()
    return math.prod(now[0].shape[axis] for axis in mesh_axes if axis not in taken) if now else 1


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` with its sharding pinned to the mesh axes that the rules give `axes`; no effect outside `using`. A dimension
    that does not divide stays whole: a row or a token by itself, when something is decoded or born."""
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


def rows_divide(rows: int, length: int) -> bool:
    """Whether the mesh in use splits a batch of so many rows and tokens a row, and into whole parts."""
    now = _CURRENT.get()
    if now is None or _MANUAL.get():
        return False
    parts, context = row_devices(now[0]), now[0].shape["context"]
    return parts * context > 1 and rows % parts == 0 and length % context == 0


def split_by(axes: Axes, axis: str) -> Rule:
    """The mesh axes over which `axis` of a parameter with logical `axes` is split, under the layout in use."""
    now = _CURRENT.get()
    return spec(axes, now[1].rules)[list(axes).index(axis)] if now else None


def shard_count(axis: str) -> int:
    """Into how many parts a parameter's logical `axis` is split, under the mesh and the layout in use."""
    return axis_size(*mesh_axes_of(split_by((axis,), axis)))


def as_state(grads: Any, axes: Any) -> Any:
    """Gradients split as the optimizer's state is: summed by a reduce-scatter, and each device updates its part."""
    now = current()
    if now is None:
        return grads
    placed = jax.tree.map(
        lambda g, a: NamedSharding(now[0], fitting_spec(now[0], g.shape, a, now[1].state_rules)), grads, axes
    )
    return jax.lax.with_sharding_constraint(grads, placed)


def to_device(state: Any) -> Any:
    """The optimizer's state in the devices' memory, where the layout in use keeps it on the host."""
    now = _CURRENT.get()
    if now is None or not now[1].optimizer_on_host:
        return state
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if x.ndim else x, state)


def has_host_memory() -> bool:
    """Whether the devices in use can read the host's memory."""
    now = _CURRENT.get()
    first = now[0].devices.flat[0] if now else jax.devices()[0]
    return HOST in (m.kind for m in first.addressable_memories())
