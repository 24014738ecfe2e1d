"""Filling a tree of parameters from a checkpoint: each device's part of each leaf by itself, so that the host holds
about one tensor at a time, however large the model.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from lm.model.transformer import Params, Transformer
from lm.pretrained.checkpoint import Checkpoint
from lm.pretrained.rows import Shape, Tensor, flatten
from lm.sharding.shardings import shardings

PIECE_BYTES = 1 << 28  # that go to a device at a time
Bounds = tuple[tuple[int, int], ...]  # a part of a leaf: first and one past the last, on each axis
Read = Callable[[Bounds], np.ndarray]


def place(checkpoint: Checkpoint, model: Transformer, mesh: Mesh | None = None) -> Params:
    """The parameters of `checkpoint`, float32, on `mesh` as the rules of lm/sharding/rules.py say, or on one device."""
    tree = checkpoint.shapes
    if mesh is None:
        where: Any = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), tree)
    else:
        where = shardings(tree, model.axes(), mesh)
    shapes = {path: leaf.shape for path, leaf in flatten(tree).items()}
    homes: dict[str, list[tuple[Tensor, int]]] = {path: [] for path in shapes}
    for tensor in checkpoint.tensors:
        for number, path in enumerate(tensor.paths):
            homes[path].append((tensor, number))
    leaves = [
        _leaf(partial(_read, checkpoint, homes[path], shapes), shapes[path], sharding)
        for path, sharding in flatten(where).items()
    ]
    return cast(Params, jax.tree.unflatten(jax.tree.structure(tree), leaves))


def _leaf(read: Read, shape: Shape, sharding: Sharding) -> jax.Array:
    """One leaf: each device's part is read, sent there, and let go of."""
    parts: list[jax.Array] = []
    sent: dict[Bounds, jax.Array] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True))
        if bounds in sent:  # a copy: it need not be read again
            parts.append(jax.device_put(sent[bounds], device))
        else:
            parts.append(_part(read, bounds, device))
            sent[bounds] = parts[-1]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _part(read: Read, bounds: Bounds, device: jax.Device) -> jax.Array:
    """The part of a leaf within `bounds` on its device, where a large one goes in pieces."""
    first, *more = pieces(bounds, PIECE_BYTES // 4)
    if not more:
        return jax.device_put(read(first), device)
    whole = jnp.zeros([b - a for a, b in bounds], jnp.float32, device=device)
    for piece in (first, *more):
        corner = [a - start for (a, _), (start, _) in zip(piece, bounds, strict=True)]
        whole = _write(whole, jax.device_put(read(piece), device), corner)
    return whole


def pieces(bounds: Bounds, most: int) -> Iterator[Bounds]:
    """`bounds` cut along the first axes into pieces of at most `most` numbers."""
    (first, last), *others = bounds
    step = most // max(1, math.prod(b - a for a, b in others))
    if step or not others:
        step = max(1, step)
        yield from (((i, min(i + step, last)), *others) for i in range(first, last, step))
    else:
        yield from (((i, i + 1), *rest) for i in range(first, last) for rest in pieces(tuple(others), most))


@partial(jax.jit, donate_argnums=0)
def _write(whole: jax.Array, piece: jax.Array, corner: Sequence[int]) -> jax.Array:
    return jax.lax.dynamic_update_slice(whole, piece, corner)


def _read(
    checkpoint: Checkpoint, homes: Sequence[tuple[Tensor, int]], shapes: Mapping[str, Shape], bounds: Bounds
) -> np.ndarray:
    """The part of a leaf within `bounds`, float32, from the tensors that have a share in it: its `homes`."""
    out = np.empty([b - a for a, b in bounds], np.float32)
    for tensor, number in homes:
        depth = len(tensor.place)
        if not all(a <= p < b for p, (a, b) in zip(tensor.place, bounds, strict=False)):
            continue
        shares = [shapes[path][depth:] for path in tensor.paths]
        share = tensor.how.ours(checkpoint.source.read(checkpoint.stored[tensor.name]), shares)[number]
        spot = tuple(p - a for p, (a, _) in zip(tensor.place, bounds, strict=False))
        out[spot] = share[tuple(itertools.starmap(slice, bounds[depth:]))]
    return out
