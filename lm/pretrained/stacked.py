"""Experts that a file has stacked, as a file with a tensor for each: of `X.experts.gate_up_proj` [E, 2F, D] and
`X.experts.down_proj` [E, D, F], `X.experts.{e}.gate_proj.weight` [F, D] and its like (Qwen 3.5)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lm.pretrained.files import Safetensors
from lm.pretrained.mxfp4 import MXFP4

FUSED, DOWN = ".experts.gate_up_proj", ".experts.down_proj"


class _Part(NamedTuple):
    """A stacked tensor of the file, and where in it one expert's matrix is."""

    stored: str
    expert: int
    rows: slice


class Apart:
    """The tensors of `source`, each expert's by itself. Raises ValueError for a stack that is none."""

    def __init__(self, source: Safetensors | MXFP4):
        self.source, self.path = source, source.path
        self.parts: dict[str, _Part] = {}
        self.stacks = [name for name in source if name.endswith((FUSED, DOWN))]
        for name in self.stacks:
            shape = source.shape(name)
            if len(shape) != 3 or name.endswith(FUSED) and shape[1] % 2:
                raise ValueError(f"{source.where(name)} has shape {list(shape)}: expected matrices of several experts")
            half = shape[1] // 2
            halves = {"gate_proj": slice(0, half), "up_proj": slice(half, None)}
            for e in range(shape[0]):
                for part, rows in (halves if name.endswith(FUSED) else {"down_proj": slice(None)}).items():
                    own = f"{name.rpartition('.')[0]}.{e}.{part}.weight"
                    self.parts[own] = _Part(name, e, rows)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self.source if name not in self.stacks)
        yield from self.parts

    def _stored(self, name: str) -> str:
        return self.parts[name].stored if name in self.parts else name

    def where(self, name: str) -> str:
        """File and tensor, for a message."""
        return self.source.where(self._stored(name))

    def kind(self, name: str) -> str:
        """How the tensor is stored."""
        return self.source.kind(self._stored(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        if name not in self.parts:
            return self.source.shape(name)
        _, rows, columns = self.source.shape(self.parts[name].stored)
        return len(range(rows)[self.parts[name].rows]), columns

    def read(self, name: str) -> np.ndarray:
        """The tensor as it is stored; of an expert a view."""
        part = self.parts.get(name)
        return self.source.read(name) if part is None else self.source.read(part.stored)[part.expert, part.rows]

    def read_into(self, name: str, out: np.ndarray) -> None:
        """Write the tensor into `out`, an array of its shape."""
        if name in self.parts:
            out[...] = self.read(name)
        else:
            self.source.read_into(name, out)

    def drop(self, name: str) -> None:
        """Give back the memory of a tensor; a stack's stays, of which other experts are still to be read."""
        if name not in self.parts:
            self.source.drop(name)


def apart(source: Any) -> Any:
    """`source`, its stacked experts by themselves where it has some."""
    return Apart(source) if any(name.endswith(FUSED) for name in source) else source
