"""The mapping between the tensors of a published checkpoint and the leaves of our parameter tree, in both directions.

An architecture has a table of rows: our paths, their name, and a conversion. `*` in a path is a slot of the repeating
pattern, whose leaves have a leading axis of layers; `{i}` in a name is the layer and `{e}` the expert. Rows whose
leaves a model does not have (a bias, an untied output) are skipped. Conversions are chains of views, so that reading a
part of a leaf reads only that part of the file.
"""

import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Identity:
    """One leaf, the same in both. The base class of all conversions: shapes are those of one layer, and of one
    expert."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of their tensor for our leaves of `shapes`."""
        return shapes[0]

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Their tensor as our leaves of `shapes`."""
        return [tensor.reshape(shapes[0])]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Our leaves as their tensor."""
        return leaves[0].reshape(self.theirs_shape([leaf.shape for leaf in leaves]))

    @property
    def reshapes(self) -> bool:
        """Whether their numbers are ours, in the same order."""
        return type(self).ours is Identity.ours


@dataclass(frozen=True)
class Flattened(Identity):
    """One leaf with its axes merged into one (a bias [N, H])."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (math.prod(shapes[0]),)


@dataclass(frozen=True)
class Kernel(Identity):
    """A matrix [inputs, outputs] of which our first `inputs` axes are the inputs (GPT-2's Conv1D)."""

    inputs: int = 1

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return math.prod(shapes[0][: self.inputs]), math.prod(shapes[0][self.inputs :])


@dataclass(frozen=True)
class Linear(Kernel):
    """A matrix [outputs, inputs], as in torch.nn.Linear."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return super().theirs_shape(shapes)[::-1]

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor.T.reshape(shapes[0])]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return leaves[0].reshape(super().theirs_shape([leaves[0].shape])).T


@dataclass(frozen=True)
class StackedLinear(Identity):
    """Matrices [outputs, inputs] of several experts in one tensor, [experts, outputs, inputs], turned from what `each`
    converts to (GGUF; a gate and an up one after the other, Gemma 4)."""

    each: Identity = Identity()

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        *experts, inputs, outputs = self.each.theirs_shape(shapes)
        return *experts, outputs, inputs

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return self.each.ours(tensor.swapaxes(-1, -2), shapes)

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return self.each.theirs(leaves).swapaxes(-1, -2)


@dataclass(frozen=True)
class Convolution(Identity):
    """The kernel [height, width, inputs, outputs] of a convolution, [outputs, inputs, height, width] in PyTorch."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        H, W, inputs, outputs = shapes[0]
        return outputs, inputs, H, W

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor.transpose(2, 3, 1, 0)]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return leaves[0].transpose(3, 2, 0, 1)


@dataclass(frozen=True)
class RotaryInterleaved(Linear):
    """A Linear whose rows within a head are in the order 0, H/2, 1, H/2 + 1, ...: the two of a rotary pair are
    adjacent, as llama.cpp permutes them."""

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        D, N, H = shapes[0]
        return [tensor.reshape(N, H // 2, 2, D).transpose(3, 0, 2, 1).reshape(D, N, H)]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        D, N, H = leaves[0].shape
        return leaves[0].reshape(D, N, 2, H // 2).transpose(1, 3, 2, 0).reshape(N * H, D)


@dataclass(frozen=True)
class RotaryInterleavedBias(Flattened):
    """The bias [N, H] of a RotaryInterleaved."""

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        N, H = shapes[0]
        return [tensor.reshape(N, H // 2, 2).swapaxes(1, 2).reshape(N, H)]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        N, H = leaves[0].shape
        return leaves[0].reshape(N, 2, H // 2).swapaxes(1, 2).reshape(N * H)


@dataclass(frozen=True)
class PlusOne(Identity):
    """A scale stored with 1 added (Gemma's norms in GGUF)."""

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor - np.float32(1)]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return leaves[0] + np.float32(1)


@dataclass(frozen=True)
class Concatenated(Identity):
    """Several leaves concatenated on the last axis, each converted by `each` (GPT-2's fused query, key and value)."""

    each: Identity = Identity()

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        parts = [self.each.theirs_shape([shape]) for shape in shapes]
        return *parts[0][:-1], sum(part[-1] for part in parts)

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        ends = np.cumsum([self.each.theirs_shape([shape])[-1] for shape in shapes])[:-1]
        parts = np.split(tensor, ends, axis=-1)
        return [self.each.ours(part, [shape])[0] for part, shape in zip(parts, shapes, strict=True)]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([self.each.theirs([leaf]) for leaf in leaves], axis=-1)


@dataclass(frozen=True)
class Transposed(Identity):
    """The transpose of what `each` converts to (GPT-2's fused matrix in GGUF)."""

    each: Identity = Identity()

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return self.each.theirs_shape(shapes)[::-1]

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return self.each.ours(tensor.T, shapes)

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return self.each.theirs(leaves).T


@dataclass(frozen=True)
class Interleaved(Identity):
    """Several leaves interleaved on the last axis (gpt-oss's gate and up)."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return *shapes[0][:-1], sum(shape[-1] for shape in shapes)

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor[..., start :: len(shapes)] for start in range(len(shapes))]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(leaves, axis=-1).reshape(self.theirs_shape([leaf.shape for leaf in leaves]))


@dataclass(frozen=True)
class ConcatenatedHeads(Identity):
    """Several leaves [inputs, heads, size], or [inputs, size], concatenated within each head of a Linear; with
    `rotary_last` the two of a rotary pair are adjacent in the last, as in RotaryInterleaved (DeepSeek)."""

    rotary_last: bool = False

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        inputs, *heads, _ = shapes[0]
        return math.prod(heads) * sum(shape[-1] for shape in shapes), inputs

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        inputs, *heads, _ = shapes[0]
        ends = np.cumsum([shape[-1] for shape in shapes])[:-1]
        *parts, last = np.split(tensor.T.reshape(inputs, *heads, -1), ends, axis=-1)
        return [*parts, np.concatenate([last[..., ::2], last[..., 1::2]], axis=-1) if self.rotary_last else last]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        *parts, last = leaves
        if self.rotary_last:
            last = np.stack(np.split(last, 2, axis=-1), axis=-1).reshape(last.shape)
        wide = np.concatenate([*parts, last], axis=-1)
        return wide.reshape(len(wide), -1).T


@dataclass(frozen=True)
class Grouped(Identity):
    """Several leaves [inputs, ...] of one Linear, of whose other numbers each of `groups` has its share of every leaf
    together (Qwen3-Next: what belongs to a key head)."""

    groups: int = 1

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return sum(math.prod(shape[1:]) for shape in shapes), shapes[0][0]

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        ends = np.cumsum([math.prod(shape[1:]) // self.groups for shape in shapes])[:-1]
        parts = np.split(tensor.T.reshape(len(tensor.T), self.groups, -1), ends, axis=-1)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        wide = np.concatenate([leaf.reshape(len(leaf), self.groups, -1) for leaf in leaves], axis=-1)
        return wide.reshape(len(wide), -1).T


@dataclass(frozen=True)
class Depthwise(Identity):
    """The kernel [W, ...] of a convolution of each number by itself, [W, 1, numbers]; PyTorch has its transpose."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0][0], 1, math.prod(shapes[0][1:])


class Row(NamedTuple):
    """Our paths, their name, and the conversion between them. A `copy` of another row is written beside it, and read
    only where that one's tensor is missing. `slots` are those of whose layers it is (None: of all that have the
    paths), and `first` the number that they count from."""

    ours: tuple[str, ...]
    theirs: str
    conversion: Identity = Identity()
    copy: bool = False
    slots: frozenset[str] | None = None
    first: int = 0


class Tensor(NamedTuple):
    """One tensor of theirs: its name and shape, the paths of our leaves in it, and its index on their axes of layers
    and experts; whether it is a `copy` of another."""

    name: str
    shape: Shape
    paths: tuple[str, ...]
    leaf_index: tuple[int, ...]
    conversion: Identity
    copy: bool = False


def row(ours: str, theirs: str, conversion: Identity = Identity(), copy: bool = False) -> Row:
    """A Row; `ours` are one or more paths separated by spaces."""
    return Row(tuple(ours.split()), theirs, conversion, copy)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a tree of dicts by path: "layers/0/query"."""
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def tensors(rows: Sequence[Row], shapes: Mapping[str, Shape]) -> list[Tensor]:
    """The tensors of a checkpoint whose leaves have `shapes`, in the order of the rows, layer by layer.

    Raises ValueError for a leaf that is in no row."""
    result = [
        tensor
        for row in rows
        for paths, layers in _slots(row, shapes)
        for tensor in _of_slot(row, paths, layers, shapes)
    ]
    missing = sorted(set(shapes) - {path for tensor in result for path in tensor.paths})
    if missing:
        raise ValueError(f"the architecture has no tensor for {', '.join(missing)}")
    return result


def _slots(row: Row, shapes: Mapping[str, Shape]) -> Iterator[tuple[tuple[str, ...], range]]:
    """The row's paths in each slot that has them, with the layers of the slot."""
    folder, star, _ = row.ours[0].partition("*")
    names = {path[len(folder) :].split("/")[0] for path in shapes if path.startswith(folder)} if star else {"0"}
    for name, layers in _layers(names).items():
        paths = tuple(path.replace("*", name) for path in row.ours)
        if (row.slots is None or name in row.slots) and all(path in shapes for path in paths):
            yield paths, layers


def _layers(names: Collection[str]) -> dict[str, range]:
    """The layers of each slot of ModelConfig.slots: "first0", ... are one layer each, "0", ... repeat after them."""
    pattern = sorted((name for name in names if name.isdecimal()), key=int)
    first = len(names) - len(pattern)
    return {f"first{i}": range(i, i + 1) for i in range(first)} | {
        name: range(first + i, sys.maxsize, len(pattern)) for i, name in enumerate(pattern)
    }


def _of_slot(row: Row, paths: tuple[str, ...], layers: range, shapes: Mapping[str, Shape]) -> Iterator[Tensor]:
    axes = [axis for axis in ("{i}", "{e}") if axis in row.theirs]
    inner = [shapes[path][len(axes) :] for path in paths]
    for index in np.ndindex(shapes[paths[0]][: len(axes)]):
        along = dict(zip(axes, index, strict=True))
        name = row.theirs.replace("{i}", str(row.first + layers[along.get("{i}", 0)]))
        name = name.replace("{e}", str(along.get("{e}", 0)))
        yield Tensor(name, row.conversion.theirs_shape(inner), paths, index, row.conversion, row.copy)


def without_copies(tensors: Sequence[Tensor], stored: Collection[str]) -> list[Tensor]:
    """One tensor for each part of each leaf, of which the names in `stored` can be read: a copy only in place of one
    that is missing."""
    copies = {(t.paths, t.leaf_index): t for t in tensors if t.copy and t.name in stored}
    own = [t for t in tensors if not t.copy]
    return [t if t.name in stored else copies.get((t.paths, t.leaf_index), t) for t in own]
