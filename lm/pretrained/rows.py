"""How the tensors of a published checkpoint correspond to the leaves of our tree of parameters, both ways.

A table of rows says it once for an architecture: our paths, their name, and a correspondence. `*` in a path is a slot
of the repeating pattern, whose leaves have an axis of layers in front; `{i}` in a name is the layer and `{e}` the
expert. Rows of leaves that a model does not have (a bias, an output of its own) are passed over. Correspondences are
chains of views, so that reading a part of a leaf touches that part of the file alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Same:
    """One leaf, the same in both; the contract of all: shapes are those of a layer's, and of an expert's, share."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of their tensor for our leaves of `shapes`."""
        return shapes[0]

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Their tensor as our leaves of `shapes`."""
        return [tensor.reshape(shapes[0])]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Our leaves as their tensor."""
        return leaves[0].reshape(self.theirs_shape([leaf.shape for leaf in leaves]))


@dataclass(frozen=True)
class Flat(Same):
    """One leaf whose axes they have as one (a bias [N, H])."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (math.prod(shapes[0]),)


@dataclass(frozen=True)
class Kernel(Same):
    """A matrix [inputs, outputs] of which our first `inputs` axes are the inputs (GPT-2's Conv1D)."""

    inputs: int = 1

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return math.prod(shapes[0][: self.inputs]), math.prod(shapes[0][self.inputs :])


@dataclass(frozen=True)
class Linear(Kernel):
    """A matrix [outputs, inputs], as torch keeps it."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return super().theirs_shape(shapes)[::-1]

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor.T.reshape(shapes[0])]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return leaves[0].reshape(super().theirs_shape([leaves[0].shape])).T


@dataclass(frozen=True)
class Turned(Linear):
    """A Linear whose heads' rows are ordered by pair, (0, H/2), (1, H/2 + 1), ...: rotary pairs side by side (GGUF)."""

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        D, N, H = shapes[0]
        return [tensor.reshape(N, H // 2, 2, D).transpose(3, 0, 2, 1).reshape(D, N, H)]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        D, N, H = leaves[0].shape
        return leaves[0].reshape(D, N, 2, H // 2).transpose(1, 3, 2, 0).reshape(N * H, D)


@dataclass(frozen=True)
class LessOne(Same):
    """A scale that they have with 1 added (Gemma's norms in GGUF)."""

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor - np.float32(1)]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return leaves[0] + np.float32(1)


@dataclass(frozen=True)
class Fused(Same):
    """Several leaves side by side on the last axis of theirs, each of them as `each` says (GPT-2's query, key and
    value)."""

    each: Same = Same()

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
class Interleaved(Same):
    """Several leaves whose entries take turns on the last axis of theirs (gpt-oss's gate and up)."""

    def theirs_shape(self, shapes: Sequence[Shape]) -> Shape:
        return *shapes[0][:-1], sum(shape[-1] for shape in shapes)

    def ours(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor[..., start :: len(shapes)] for start in range(len(shapes))]

    def theirs(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(leaves, axis=-1).reshape(self.theirs_shape([leaf.shape for leaf in leaves]))


class Row(NamedTuple):
    """Our paths, their name, how the two correspond."""

    ours: tuple[str, ...]
    theirs: str
    how: Same = Same()


class Tensor(NamedTuple):
    """One tensor of theirs: its name and shape, our leaves in it, and the place of its share of them on their axes of
    layers and experts."""

    name: str
    shape: Shape
    paths: tuple[str, ...]
    place: tuple[int, ...]
    how: Same


def row(ours: str, theirs: str, how: Same = Same()) -> Row:
    """A Row from one or more paths in one text, with spaces between."""
    return Row(tuple(ours.split()), theirs, how)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a tree of dicts by path: "layers/0/query"."""
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def tensors(rows: Sequence[Row], shapes: Mapping[str, Shape]) -> list[Tensor]:
    """The tensors of a checkpoint whose leaves have `shapes`, in the order of the rows, layer by layer.

    Raises ValueError for a leaf that no row has: the table does not say such a model."""
    found = [
        tensor for row in rows for paths, slot in _instances(row, shapes) for tensor in _of(row, paths, slot, shapes)
    ]
    lost = sorted(set(shapes) - {path for tensor in found for path in tensor.paths})
    if lost:
        raise ValueError(f"the architecture has no tensor for {', '.join(lost)}")
    return found


def _instances(row: Row, shapes: Mapping[str, Shape]) -> Iterator[tuple[tuple[str, ...], tuple[int, int]]]:
    """The row's paths in each slot that has them, with the slot and how many there are."""
    folder, star, _ = row.ours[0].partition("*")
    slots = sorted({int(p[len(folder) :].split("/")[0]) for p in shapes if p.startswith(folder)}) if star else [0]
    for slot in slots:
        paths = tuple(path.replace("*", str(slot)) for path in row.ours)
        if all(path in shapes for path in paths):
            yield paths, (slot, len(slots))


def _of(row: Row, paths: tuple[str, ...], slot: tuple[int, int], shapes: Mapping[str, Shape]) -> Iterator[Tensor]:
    axes = [axis for axis in ("{i}", "{e}") if axis in row.theirs]
    inner = [shapes[path][len(axes) :] for path in paths]
    for place in np.ndindex(shapes[paths[0]][: len(axes)]):
        number = dict(zip(axes, place, strict=True))
        name = row.theirs.replace("{i}", str(slot[0] + slot[1] * number.get("{i}", 0)))
        yield Tensor(name.replace("{e}", str(number.get("{e}", 0))), row.how.theirs_shape(inner), paths, place, row.how)
