"""Loading parameters from a checkpoint: each device's part of each leaf by itself, so that the host holds about one
tensor at a time, however large the model. A CPU's parameters are written where they stay.
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
HOSTS = ("cpu",)  # devices whose memory is the host's, to which nothing is sent
ROWS = 64  # of a tensor that are copied at a time
ALIGNED = 64  # bytes, of arrays that JAX takes as they are
Bounds = tuple[tuple[int, int], ...]  # a part of a leaf: (start, stop) on each axis
Read = Callable[[Bounds], np.ndarray]


def place_params(
    checkpoint: Checkpoint,
    model: Transformer,
    mesh: Mesh | None = None,
    layout: Layout = Layout(),
    donatable: bool = False,
) -> Params:
    """The parameters of `checkpoint`, in float32.

    Args:
      checkpoint: open.
      model: whose parameters they are.
      mesh: over which they are sharded; None: on one device.
      layout: by whose rules (lm/sharding/rules.py).
      donatable: whether a program that they are donated to may write its results in their place: a CPU's are then
        copied, a leaf at a time, to memory that JAX allocated.

    Raises:
      ValueError: for a damaged tensor.
    """
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
        _leaf(partial(_read, checkpoint, parts[path], shapes), shapes[path], sharding, donatable)
        for path, sharding in flatten(by_leaf).items()
    ]
    return cast(Params, jax.tree.unflatten(jax.tree.structure(tree), leaves))


def _leaf(read: Read, shape: Shape, sharding: Sharding, donatable: bool) -> jax.Array:
    """One leaf: each device's shard is read, sent there, and freed."""
    shards: list[jax.Array] = []
    sent: dict[Bounds, jax.Array] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True))
        if bounds in sent:  # a replica: it need not be read again
            shards.append(jax.device_put(sent[bounds], device))
        else:
            shards.append(_shard(read, bounds, device, donatable))
            sent[bounds] = shards[-1]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _shard(read: Read, bounds: Bounds, device: jax.Device, donatable: bool) -> jax.Array:
    """The part of a leaf within `bounds`, on its device; a large one is sent in chunks."""
    if device.platform in HOSTS:
        placed = jax.device_put(read(bounds), device)
        return jnp.copy(placed) if donatable else placed
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
    out, source = _empty([b - a for a, b in bounds]), checkpoint.source
    for tensor, position in parts:
        depth, name = len(tensor.leaf_index), checkpoint.stored[tensor.name]
        if not all(a <= i < b for i, (a, b) in zip(tensor.leaf_index, bounds, strict=False)):
            continue
        inner = [shapes[path][depth:] for path in tensor.paths]
        at: tuple[Any, ...] = tuple(i - a for i, (a, _) in zip(tensor.leaf_index, bounds, strict=False))
        part = out[(*at, ...)]  # a view, of a number too
        if tensor.conversion.reshapes and part.shape == inner[0]:
            source.read_into(name, part.reshape(tensor.shape))
        else:
            leaf = tensor.conversion.ours(source.read(name), inner)[position]
            copy_by_rows(leaf[tuple(itertools.starmap(slice, bounds[depth:]))], part)
        source.drop(name)
    return out


def copy_by_rows(source: np.ndarray, out: np.ndarray) -> None:
    """Copy a view of another order, a few of the rows at a time that lie behind one another in memory, so that what is
    read of each fits the processor's cache: a transposed matrix takes a fifth of the time."""
    outer, inner = int(np.argmax(source.strides)), int(np.argmin(source.strides))
    count = source.shape[outer]
    rows = source.size // max(1, count * source.shape[inner])  # for each index of the outer axis
    step = max(1, ROWS // max(1, rows))
    for start in range(0, count, step):
        at = (slice(None),) * outer + (slice(start, start + step),)
        out[at] = source[at]


def _empty(shape: Sequence[int]) -> np.ndarray:
    """A float32 array whose memory JAX takes as it is on a CPU."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + ALIGNED, np.uint8)
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + size].view(np.float32).reshape(shape)
