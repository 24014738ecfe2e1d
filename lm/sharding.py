"""Where arrays live: the mesh, the logical axes, and the one table that joins them.

A parameter is born with logical axes (the long names of the letters B T D N K H F V L), an activation is `constrain`ed
with them in a few places, and RULES says which mesh axes each takes. Everything else (parameters, optimizer state,
checkpoints) follows from the tree of logical axes. Policy is the table, and `Layout` its few variants; changing them
changes no model code. What a mesh cannot meet is refused: of an experiment in lm/legal.py, of an array in `shardings`.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.value import suggest

# From the slowest links to the fastest: replica goes across slices (data-centre network), tensor to neighbours.
MESH_AXES = ("replica", "data", "fsdp", "expert", "context", "tensor")
Rule = str | tuple[str, ...] | None

RULES: dict[str, Rule] = {
    # activations: rows over every axis that is not needed otherwise, the sequence over context
    "batch": ("replica", "data", "fsdp", "expert"),
    "seq": "context",
    "stream": "context",  # the sequence of the residual stream, between sublayers
    "act_embed": None,
    # what was looked up in a table lies as the table's width does; half-way to the axes above, so that XLA goes from
    # each to the next by an all-to-all
    "found_batch": ("replica", "data"),
    "found_seq": None,
    "found_embed": ("fsdp", "expert"),
    # parameters: ZeRO-3 on the model width, Megatron's tensor parallelism on the other side
    "embed": ("fsdp", "expert", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "experts": "expert",
    "layers": None,
    "norm": None,  # vectors of width D: too small to be worth gathering
}
# Fewer kv heads than devices on the tensor axis are kept whole on each, which takes the one that its queries look at.
MAY_STAY_WHOLE = ("kv_heads",)
DEVICE, HOST = "device", "pinned_host"  # kinds of memory

Axes = Sequence[str | None]


@dataclass(frozen=True)
class Layout:
    """How a mesh is used, where there is a choice.

    - `zero`: 3 splits parameters, their gradients and the optimizer's state over the axes of "embed" in RULES; 1 keeps
      parameters whole there, and splits the optimizer's state and the moving average over these and data (1910.02054).
    - `sequence`: under tensor parallelism, split the residual stream's sequence over tensor too, so that norms and
      residual sums are not repeated on each device of the axis (2205.05198).
    - `whole`: logical axes kept whole on every device, for sizes that do not divide (a published vocabulary).
    - `optimizer_on_host`: keep the optimizer's state in the host's memory between steps."""

    zero: int = 3
    sequence: bool = False
    whole: tuple[str, ...] = ()
    optimizer_on_host: bool = False

    def __post_init__(self) -> None:
        if self.zero not in (1, 3):
            raise ValueError(f"layout.zero={self.zero}: expected 3 (parameters split too) or 1 (optimizer state alone)")
        for axis in self.whole:
            if axis not in RULES:
                raise ValueError(f"layout.whole: unknown logical axis {axis!r}: {suggest(axis, RULES)}")

    @property
    def rules(self) -> dict[str, Rule]:
        """Logical axis -> mesh axes, for activations and parameters."""
        changed: dict[str, Rule] = {}
        if self.zero == 1 or "embed" in self.whole:
            changed |= {"embed": None, "found_embed": None}
            changed |= {"found_batch": RULES["batch"], "found_seq": RULES["seq"]}
        if self.sequence:
            changed |= {"stream": ("context", "tensor")}
        return {**RULES, **changed, **dict.fromkeys(self.whole)}

    @property
    def state_rules(self) -> dict[str, Rule]:
        """Logical axis -> mesh axes, for the optimizer's state."""
        embed = (*_names(RULES["embed"]), "data") if self.zero == 1 else RULES["embed"]
        return {**self.rules, "embed": None if "embed" in self.whole else embed}


def _names(entry: Any) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


# ---------------------------------------------------------------- the mesh


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of MESH_AXES over `devices` (default: all). Axes not named in `shape` have size 1; with no shape all
    devices are data parallel, and slices replicas. Where devices lie in several slices, replica goes over these.

    Raises ValueError when an axis is unknown, the sizes do not multiply to the number of devices, or an axis other than
    replica would have to cross slices."""
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
    """Raise ValueError where `shape` is no mesh of so many devices."""
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
    """`shape` with one axis changed so that it multiplies to `devices`, as little as may be."""
    found = [
        (abs(math.log(size / shape[axis])), {**shape, axis: size})
        for axis in shape
        if devices % (others := math.prod(shape.values()) // shape[axis]) == 0
        for size in [devices // others]
    ]
    best = min(found, key=lambda f: f[0])[1] if found else {"data": devices}
    return " ".join(f"{axis}={size}" for axis, size in best.items())


def _arranged(sizes: tuple[int, ...], devices: list[jax.Device], slices: int) -> np.ndarray:
    """The devices as an array of that shape, neighbours on the network close on the last axes."""
    if slices > 1:
        dcn, ici = (slices, *(1,) * (len(sizes) - 1)), (sizes[0] // slices, *sizes[1:])
        return mesh_utils.create_hybrid_device_mesh(ici, dcn, devices, allow_split_physical_axes=True)
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return np.array(devices).reshape(sizes)


# ---------------------------------------------------------------- tracing under a mesh

_NOW: ContextVar[tuple[Mesh, Layout] | None] = ContextVar("mesh and layout", default=None)
_APART: ContextVar[tuple[str, ...]] = ContextVar("mesh axes whose devices work apart", default=())


@contextlib.contextmanager
def using(mesh: Mesh, layout: Layout = Layout()) -> Iterator[Mesh]:
    """Trace and run under `mesh`: what `constrain` and the functions below ask for."""
    token = _NOW.set((mesh, layout))
    try:
        with jax.set_mesh(mesh):
            yield mesh
    finally:
        _NOW.reset(token)


def size(*mesh_axes: str) -> int:
    """The devices along these axes of the mesh in use; 1 outside `using`, and of axes whose devices work apart."""
    now, apart = _NOW.get(), _APART.get()
    return math.prod(now[0].shape[axis] for axis in mesh_axes if axis not in apart) if now else 1


def platform() -> str:
    """What the mesh in use is made of (cpu, gpu, tpu), which need not be here; outside `using`, JAX's own backend."""
    now = _NOW.get()
    return now[0].devices.flat[0].platform if now else jax.default_backend()


def check_axes(axes: Sequence[str | None], shape: Sequence[int]) -> None:
    """A mistyped logical axis would silently mean "not sharded": refuse it."""
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axes {tuple(axes)} for an array of shape {tuple(shape)}")
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r}: {suggest(axis, RULES)}")


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` with its sharding pinned to the mesh axes that the rules give `axes`; no effect outside `using`. A dimension
    that does not divide stays whole: a row or a token by itself, when something is decoded or born."""
    check_axes(axes, x.shape)
    now = _NOW.get()
    if now is None or now[0].size == 1:
        return x
    partition, apart = _fitting(now[0], x.shape, axes, now[1].rules), _APART.get()
    if not apart:
        return jax.lax.with_sharding_constraint(x, NamedSharding(now[0], partition))
    left = PartitionSpec(*(tuple(n for n in _names(e) if n not in apart and now[0].shape[n] > 1) for e in partition))
    return jax.lax.with_sharding_constraint(x, left) if any(left) else x


def per_device(f: Callable[..., Any], inputs: Sequence[Axes | None], output: Axes) -> Callable[..., Any]:
    """`f` run by each device on its own part of arrays with logical axes `inputs` (None: whole on each, or no array at
    all), for what the compiler cannot partition itself. The output has the axes `output` and the sizes of the first
    input. Outside `using`, and on a mesh of one device, `f`."""

    def run(*arrays: Any) -> Any:
        now = _NOW.get()
        if now is None or now[0].size == 1:
            return f(*arrays)
        mesh, rules = now[0], now[1].rules
        specs = tuple(
            PartitionSpec() if axes is None else _fitting(mesh, a.shape, axes, rules)
            for a, axes in zip(arrays, inputs, strict=True)
        )
        out = _fitting(mesh, arrays[0].shape, output, rules)
        return jax.shard_map(f, in_specs=specs, out_specs=out, check_vma=False)(*arrays)

    return run


def gathered(x: jax.Array, mesh_axes: Rule, axis: int) -> jax.Array:
    """Inside `per_device`: the parts of `x` along these mesh axes, joined on `axis`. Gradients are reduce-scattered."""
    names = tuple(name for name in _names(mesh_axes) if size(name) > 1)
    return jax.lax.all_gather(x, names, axis=axis, tiled=True) if names else x


def scattered(x: jax.Array, mesh_axes: Rule, axis: int) -> jax.Array:
    """Inside `per_device`: the sum of `x` along these mesh axes, of which each device keeps its part of `axis`."""
    names = tuple(name for name in _names(mesh_axes) if size(name) > 1)
    return jax.lax.psum_scatter(x, names, scatter_dimension=axis, tiled=True) if names else x


def summed(x: jax.Array, mesh_axes: Rule) -> jax.Array:
    """Inside `per_device`: the sum of `x` along these mesh axes."""
    names = tuple(name for name in _names(mesh_axes) if size(name) > 1)
    return jax.lax.psum(x, names) if names else x


def number(mesh_axis: str) -> jax.Array | int:
    """Inside `per_device`: this device's number along a mesh axis."""
    return jax.lax.axis_index(mesh_axis) if size(mesh_axis) > 1 else 0


def rows_divide(rows: int, length: int) -> bool:
    """Whether the mesh in use splits a batch of so many rows and tokens a row, and into whole parts."""
    now = _NOW.get()
    if now is None or _APART.get():
        return False
    parts, context = row_devices(now[0]), now[0].shape["context"]
    return parts * context > 1 and rows % parts == 0 and length % context == 0


def on_own_rows(
    f: Callable[..., Any], params_axes: Sequence[Axes], dtype: Any, sums: Any, learns: bool = True
) -> Callable[[Sequence[jax.Array], Any], Any]:
    """`f(params, rows)` run by each device on its own rows and tokens of the arrays `rows` [B, T, ...], with whole
    parameters, gathered once and in `dtype`; tensor parallelism inside is left to the compiler. `f` returns sums (a
    tree of scalars), a list of gradients of the parameters (empty unless it `learns`), and a tree of arrays by row: the
    first two are summed over the devices, the gradients once, at the end and in `sums`, into the parts that each
    keeps."""
    now = _NOW.get()
    assert now is not None
    mesh, rules = now[0], now[1].rules
    apart = tuple(axis for axis in MESH_AXES if axis != "tensor") if mesh.shape["tensor"] > 1 else MESH_AXES
    by_row = tuple(axis for axis in apart if axis != "tensor" and mesh.shape[axis] > 1)

    def manual(partition: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(tuple(n for n in _names(e) if n in by_row) or None for e in partition))

    def run(params: Sequence[jax.Array], rows: Any) -> Any:
        splits = [manual(_fitting(mesh, p.shape, a, rules)) for p, a in zip(params, params_axes, strict=True)]
        tokens = manual(spec(("batch", "seq"), rules))

        def own(params: Sequence[jax.Array], rows: Any) -> Any:
            whole = [_whole(p, split, dtype) for p, split in zip(params, splits, strict=True)]
            token = _APART.set(apart)
            try:
                totals, gradients, made = f(whole, rows)
            finally:
                _APART.reset(token)
            parts = [_own_sum(g, split, by_row, sums) for g, split in zip(gradients, splits, strict=learns)]
            return jax.lax.psum(totals, by_row), parts, made

        return jax.shard_map(
            own,
            in_specs=(splits, tokens),
            out_specs=(PartitionSpec(), splits if learns else [], tokens),
            axis_names=set(apart),
            check_vma=False,
        )(list(params), rows)

    return run


def _whole(x: jax.Array, split: PartitionSpec, dtype: Any) -> jax.Array:
    """A device's part of a parameter, joined with the others' in `dtype`; what is not split stays as it is."""
    for axis, names in enumerate(split):
        if names:
            x = jax.lax.all_gather(x.astype(dtype), names, axis=axis, tiled=True)
    return x


def _own_sum(x: jax.Array, split: PartitionSpec, axes: tuple[str, ...], dtype: Any) -> jax.Array:
    """The sum of whole gradients over `axes`, of which each device keeps the part that it has of the parameter."""
    for axis, names in enumerate(split):
        if names:
            x = jax.lax.psum_scatter(x.astype(dtype), names, scatter_dimension=axis, tiled=True)
    left = tuple(a for a in axes if a not in {n for names in split for n in _names(names)})
    return (jax.lax.psum(x, left) if left else x).astype(jnp.float32)


# ---------------------------------------------------------------- specs and shardings


def spec(axes: Axes, rules: Mapping[str, Rule] = RULES) -> PartitionSpec:
    """The PartitionSpec of an array with logical `axes`, from `rules`, each mesh axis used once."""
    used: set[str] = set()
    parts: list[Any] = []
    for axis in axes:
        mesh_axes = tuple(m for m in _names(rules[axis] if axis is not None else None) if m not in used)
        used.update(mesh_axes)
        parts.append(mesh_axes if len(mesh_axes) > 1 else mesh_axes[0] if mesh_axes else None)
    return PartitionSpec(*parts)


def split_by(axes: Axes, axis: str) -> Rule:
    """The mesh axes over which `axis` of a parameter with logical `axes` is split, under the layout in use."""
    now = _NOW.get()
    return spec(axes, now[1].rules)[list(axes).index(axis)] if now else None


def pieces(axis: str) -> int:
    """Into how many parts a parameter's logical `axis` is split, under the mesh and the layout in use."""
    return size(*_names(split_by((axis,), axis)))


def _fitting(mesh: Mesh, shape: Sequence[int], axes: Axes, rules: Mapping[str, Rule]) -> PartitionSpec:
    """The spec of `axes` without the entries whose mesh axes do not divide the dimension."""
    entries = zip(shape, spec(axes, rules), strict=True)
    return PartitionSpec(*(e if d % _devices(mesh, e) == 0 else None for d, e in entries))


def _devices(mesh: Mesh, entry: Any) -> int:
    return math.prod(mesh.shape[a] for a in _names(entry))


def shardings(shapes: Any, axes: Any, mesh: Mesh, rules: Mapping[str, Rule] = RULES) -> Any:
    """The NamedShardings of a tree of arrays or ShapeDtypeStructs whose logical axes are the tree `axes` of tuples.

    Raises ValueError where a dimension does not divide, but for MAY_STAY_WHOLE."""

    def one(path: Any, x: Any, names: Axes) -> NamedSharding:
        for dimension, axis, entry in zip(x.shape, names, spec(names, rules), strict=True):
            if dimension % _devices(mesh, entry) and axis not in MAY_STAY_WHOLE:
                over = " x ".join(f"{a}={mesh.shape[a]}" for a in _names(entry) if mesh.shape[a] > 1)
                raise ValueError(
                    f"{jax.tree_util.keystr(path)} {tuple(x.shape)}: {axis} {dimension} does not divide over mesh "
                    f"{over}: choose another mesh, or keep it whole with layout.whole=({axis!r},)"
                )
        return NamedSharding(mesh, _fitting(mesh, x.shape, names, rules))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


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
    """The sharding of a batch's arrays [B, T]: rows over the axes of "batch" in RULES, and whole rows."""
    return NamedSharding(mesh, spec(("batch",)))


def row_devices(mesh: Mesh) -> int:
    """Over how many parts the rows of a batch are split."""
    return _devices(mesh, RULES["batch"])


def on_host(shapes: Any, placed: Any, mesh: Mesh) -> Any:
    """The shardings `placed` of a tree of `shapes`, with all but scalars moved to the host's memory.

    Raises ValueError where the backend has none that a device can read."""
    if HOST not in (kinds := memories(mesh)):
        raise ValueError(
            f"layout.optimizer_on_host=True: {mesh.devices.flat[0].platform} devices have no memory {HOST!r} "
            f"(they have {', '.join(kinds)}): set it to False"
        )
    return jax.tree.map(lambda x, s: s.with_memory_kind(HOST) if x.ndim else s, shapes, placed)


def as_state(grads: Any, axes: Any) -> Any:
    """Gradients split as the optimizer's state is: summed by a reduce-scatter, and each device updates its part."""
    now = _NOW.get()
    if now is None or now[0].size == 1:
        return grads
    placed = jax.tree.map(
        lambda g, a: NamedSharding(now[0], _fitting(now[0], g.shape, a, now[1].state_rules)), grads, axes
    )
    return jax.lax.with_sharding_constraint(grads, placed)


def to_device(state: Any) -> Any:
    """The optimizer's state in the devices' memory, where the layout in use keeps it on the host."""
    now = _NOW.get()
    if now is None or not now[1].optimizer_on_host:
        return state
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device) if x.ndim else x, state)


def memories(mesh: Mesh) -> tuple[str, ...]:
    """The kinds of memory of the mesh's devices."""
    return tuple(m.kind for m in mesh.devices.flat[0].addressable_memories())


def has_host_memory() -> bool:
    """Whether the devices in use can read the host's memory."""
    now = _NOW.get()
    first = now[0].devices.flat[0] if now else jax.devices()[0]
    return HOST in (m.kind for m in first.addressable_memories())
