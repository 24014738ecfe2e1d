"""Loading parameters from a checkpoint: each device's part of each leaf by itself, so that the host holds about one
tensor at a time, however large the model.
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
from lm.sharding.rules import Layout
from lm.sharding.shardings import shardings

CHUNK_BYTES = 1 << 28  # sent to a device at a time
Bounds = tuple[tuple[int, int], ...]  # a part of a leaf: (start, stop) on each axis
Read = Callable[[Bounds], np.ndarray]


def place_params(
    checkpoint: Checkpoint, model: Transformer, mesh: Mesh | None = None, layout: Layout = Layout()
) -> Params:
    """The parameters of `checkpoint`, in float32, sharded over `mesh` by the layout's rules (lm/sharding/rules.py), or
    on one device. Raises ValueError for a damaged tensor."""
    tree = checkpoint.shapes
    if mesh is None:
        by_leaf: Any = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), tree)
    else:
        by_leaf = shardings(tree, model.axes(), mesh, layout.rules)
    shapes = {path: leaf.shape for path, leaf in flatten(tree).items()}
    parts: dict[str, list[tuple[Tensor, int]]] = {path: [] for path in shapes}
    for tensor in checkpoint.tensors:
        for position, path in enumerate(tensor.paths):
            parts[path].append((tensor, position))
    leaves = [
        _leaf(partial(_read, checkpoint, parts[path], shapes), shapes[path], sharding)
        for path, sharding in flatten(by_leaf).items()
    ]
    return cast(Params, jax.tree.unflatten(jax.tree.structure(tree), leaves))


def _leaf(read: Read, shape: Shape, sharding: Sharding) -> jax.Array:
    """One leaf: each device's shard is read, sent there, and freed."""
    shards: list[jax.Array] = []
    sent: dict[Bounds, jax.Array] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True))
        if bounds in sent:  # a replica: it need not be read again
            shards.append(jax.device_put(sent[bounds], device))
        else:
            shards.append(_shard(read, bounds, device))
            sent[bounds] = shards[-1]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _shard(read: Read, bounds: Bounds, device: jax.Device) -> jax.Array:
    """The part of a leaf within `bounds`, on its device; a large one is sent in chunks."""
    first, *more = chunks(bounds, CHUNK_BYTES // 4)
    if not more:
        return jax.device_put(read(first), device)
    shard = jnp.zeros([b - a for a, b in bounds], jnp.float32, device=device)
    for chunk in (first, *more):
        corner = [a - start for (a, _), (start, _) in zip(chunk, bounds, strict=True)]
        shard = _update(shard, jax.device_put(read(chunk), device), corner)
    return shard


def chunks(bounds: Bounds, most: int) -> Iterator[Bounds]:
    """`bounds` split along the first axes into chunks of at most `most` elements."""
    (first, last), *others = bounds
    step = most // max(1, math.prod(b - a for a, b in others))
    if step or not others:
        step = max(1, step)
        yield from (((i, min(i + step, last)), *others) for i in range(first, last, step))
    else:
        yield from (((i, i + 1), *rest) for i in range(first, last) for rest in chunks(tuple(others), most))


@partial(jax.jit, donate_argnums=0)
def _update(shard: jax.Array, chunk: jax.Array, corner: Sequence[int]) -> jax.Array:
    return jax.lax.dynamic_update_slice(shard, chunk, corner)


def _read(
    checkpoint: Checkpoint, parts: Sequence[tuple[Tensor, int]], shapes: Mapping[str, Shape], bounds: Bounds
) -> np.ndarray:
    """The part of a leaf within `bounds`, float32, from the tensors that it consists of, each with its position among
    the leaves of that tensor."""
    out = np.empty([b - a for a, b in bounds], np.float32)
    for tensor, position in parts:
        depth = len(tensor.leaf_index)
        if not all(a <= i < b for i, (a, b) in zip(tensor.leaf_index, bounds, strict=False)):
            continue
        inner = [shapes[path][depth:] for path in tensor.paths]
        leaf = tensor.conversion.ours(checkpoint.source.read(checkpoint.stored[tensor.name]), inner)[position]
        at = tuple(i - a for i, (a, _) in zip(tensor.leaf_index, bounds, strict=False))
        out[at] = leaf[tuple(itertools.starmap(slice, bounds[depth:]))]
    return out
