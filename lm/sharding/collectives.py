"""Code that each device runs on its own shards, and its collectives.

These are JAX's (`jax.lax.all_gather`, `psum_scatter`, `psum`, `axis_index`), without the axes of size 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm.sharding.rules import MESH_AXES, Axes, Rule, fitting_spec, mesh_axes_of, spec
from lm.sharding.tracing import axis_size, current, manual


def per_device(f: Callable[..., Any], inputs: Sequence[Axes | None], output: Axes) -> Callable[..., Any]:
    """`f` run by each device on its own shards, for what the compiler cannot partition; outside `use_mesh`, and on one
    device, `f` itself.

    `inputs` are the logical axes of its arguments (None: replicated, or not an array), `output` those of its result,
    which has the sizes of the first input."""

    def run(*arrays: Any) -> Any:
        now = current()
        if now is None:
            return f(*arrays)
        mesh, rules = now[0], now[1].rules
        specs = tuple(
            PartitionSpec() if axes is None else fitting_spec(mesh, a.shape, axes, rules)
            for a, axes in zip(arrays, inputs, strict=True)
        )
        out = fitting_spec(mesh, arrays[0].shape, output, rules)
        return jax.shard_map(f, in_specs=specs, out_specs=out, check_vma=False)(*arrays)

    return run


def all_gather(x: jax.Array, mesh_axes: Rule, axis: int) -> jax.Array:
    """Inside `per_device`: the shards of `x` along these mesh axes, concatenated on `axis`. Gradients are
    reduce-scattered."""
    names = tuple(name for name in mesh_axes_of(mesh_axes) if axis_size(name) > 1)
    return jax.lax.all_gather(x, names, axis=axis, tiled=True) if names else x


def psum_scatter(x: jax.Array, mesh_axes: Rule, axis: int) -> jax.Array:
    """Inside `per_device`: the sum of `x` along these mesh axes, of which each device keeps its shard of `axis`."""
    names = tuple(name for name in mesh_axes_of(mesh_axes) if axis_size(name) > 1)
    return jax.lax.psum_scatter(x, names, scatter_dimension=axis, tiled=True) if names else x


def psum(x: jax.Array, mesh_axes: Rule) -> jax.Array:
    """Inside `per_device`: the sum of `x` along these mesh axes."""
    names = tuple(name for name in mesh_axes_of(mesh_axes) if axis_size(name) > 1)
    return jax.lax.psum(x, names) if names else x


def axis_index(mesh_axis: str) -> jax.Array | int:
    """Inside `per_device`: this device's index along a mesh axis."""
    return jax.lax.axis_index(mesh_axis) if axis_size(mesh_axis) > 1 else 0


def manual_data_parallel(
    f: Callable[..., Any], params_axes: Sequence[Axes], dtype: Any, sums: Any, has_gradients: bool = True
) -> Callable[[Sequence[jax.Array], Any], Any]:
    """`f(params, rows)` run by each device on its own rows and tokens, with parameters gathered once for all of them.

    Left to itself, the compiler gathers a parameter and sums its gradient anew for every chunk of the loss. Here, with
    a parameter split over fsdp on two devices, one gather goes before the chunks and one sum after them:

        device 0    params[:half] -+                +-> f(params, rows 0) -> gradients -+                +-> [:half]
                                   +-- all_gather --+                                   +- psum_scatter -+
        device 1    params[half:] -+   in `dtype`   +-> f(params, rows 1) -> gradients -+   in `sums`    +-> [half:]

    Tensor parallelism inside `f` is left to the compiler.

    Args:
      f: (params, rows) -> (a tree of scalars to be summed, a list of gradients of the parameters, a tree of arrays by
        row); params a list of arrays, rows a tree of arrays [B, T, ...].
      params_axes: the logical axes of each parameter.
      dtype: of the parameters when they are gathered.
      sums: the dtype in which the gradients are summed over the devices.
      has_gradients: whether `f` returns gradients; otherwise its list is empty.

    Returns: what f returns, but the scalars and the gradients summed over the devices, and of each gradient (float32)
    the part that a device has of the parameter."""
    now = current()
    assert now is not None
    mesh, rules = now[0], now[1].rules
    taken = tuple(axis for axis in MESH_AXES if axis != "tensor") if mesh.shape["tensor"] > 1 else MESH_AXES
    by_row = tuple(axis for axis in taken if axis != "tensor" and mesh.shape[axis] > 1)

    def by_row_alone(partition: PartitionSpec) -> PartitionSpec:
        return PartitionSpec(*(tuple(n for n in mesh_axes_of(e) if n in by_row) or None for e in partition))

    def run(params: Sequence[jax.Array], rows: Any) -> Any:
        splits = [by_row_alone(fitting_spec(mesh, p.shape, a, rules)) for p, a in zip(params, params_axes, strict=True)]
        tokens = by_row_alone(spec(("batch", "seq"), rules))

        def on_device(params: Sequence[jax.Array], rows: Any) -> Any:
            gathered = [_gather_parameter(p, split, dtype) for p, split in zip(params, splits, strict=True)]
            with manual(taken):
                scalars, gradients, arrays = f(gathered, rows)
            pairs = zip(gradients, splits, strict=has_gradients)
            shards = [_scatter_gradient(g, split, by_row, sums) for g, split in pairs]
            return jax.lax.psum(scalars, by_row), shards, arrays

        return jax.shard_map(
            on_device,
            in_specs=(splits, tokens),
            out_specs=(PartitionSpec(), splits if has_gradients else [], tokens),
            axis_names=set(taken),
            check_vma=False,
        )(list(params), rows)

    return run


def _gather_parameter(x: jax.Array, split: PartitionSpec, dtype: Any) -> jax.Array:
    """A parameter, all-gathered in `dtype` where it is sharded."""
    for axis, names in enumerate(split):
        if names:
            x = jax.lax.all_gather(x.astype(dtype), names, axis=axis, tiled=True)
    return x


def _scatter_gradient(x: jax.Array, split: PartitionSpec, mesh_axes: tuple[str, ...], dtype: Any) -> jax.Array:
    """The sum of a parameter's gradients over `mesh_axes`, of which each device keeps its shard of the parameter."""
    for axis, names in enumerate(split):
        if names:
            x = jax.lax.psum_scatter(x.astype(dtype), names, scatter_dimension=axis, tiled=True)
    left = tuple(a for a in mesh_axes if a not in {n for names in split for n in mesh_axes_of(names)})
    return (jax.lax.psum(x, left) if left else x).astype(jnp.float32)
