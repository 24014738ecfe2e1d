"""MXFP4 in safetensors, as gpt-oss is published: blocks of 32 numbers of 4 bits with a scale (OCP Microscaling 1.0).

A tensor `X` is two: `X_blocks`, bytes [..., outputs, inputs / 32, 16] of two numbers each, the lower half first, and
`X_scales`, bytes [..., outputs, inputs / 32], powers of two. What it stands for is [..., inputs, outputs]. (A GGUF file
has the lower halves of a block's 16 bytes before the upper ones: the `gguf` package unpacks those.)
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lm.pretrained.files import Safetensors

BLOCKS, SCALES = "_blocks", "_scales"
NUMBERS = 32  # of a block
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # e2m1, by three bits; the fourth is the sign
VALUES = np.array([*MAGNITUDES, *(-m for m in MAGNITUDES)], np.float32)
BIAS, NAN = 127, 255  # of scales, e8m0
ROWS = 1 << 16  # blocks that are unpacked at a time


def unpack(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """Write the numbers of `blocks` [..., 16] with `scales` [...] into `out` float32 [..., 32], contiguous."""
    packed, exponents, flat = blocks.reshape(-1, NUMBERS // 2), scales.reshape(-1, 1), out.reshape(-1, NUMBERS)
    for start in range(0, len(packed), ROWS):
        part = slice(start, start + ROWS)
        halves = np.stack([packed[part] & 15, packed[part] >> 4], axis=-1).reshape(-1, NUMBERS)
        flat[part] = np.ldexp(VALUES[halves], exponents[part].astype(np.int32) - BIAS)


class MXFP4:
    """The tensors of `source`, of which those in MXFP4 are float32 under their own names when they are read.

    Raises ValueError for blocks without scales, and for those that do not belong together."""

    def __init__(self, source: Safetensors):
        self.source, self.path = source, source.path
        self.packed = [name.removesuffix(BLOCKS) for name in source if name.endswith(BLOCKS)]
        self._last: tuple[str, np.ndarray] | None = None
        for name in self.packed:
            self._check(name)

    def _check(self, name: str) -> None:
        blocks, scales = name + BLOCKS, name + SCALES
        if scales not in list(self.source):
            raise ValueError(f"{self.where(name)} has no scales: expected a tensor {scales}")
        shapes, kinds = (
            [self.source.shape(n) for n in (blocks, scales)],
            [self.source.kind(n) for n in (blocks, scales)],
        )
        if shapes[0] != (*shapes[1], NUMBERS // 2) or len(shapes[1]) < 2 or kinds != ["U8", "U8"]:
            raise ValueError(
                f"{self.where(name)} has shape {list(shapes[0])} of {kinds[0]} with scales {list(shapes[1])} of "
                f"{kinds[1]}: expected bytes, {NUMBERS // 2} for each"
            )

    def __iter__(self) -> Iterator[str]:
        parts = {name + end for name in self.packed for end in (BLOCKS, SCALES)}
        yield from (name for name in self.source if name not in parts)
        yield from self.packed

    def where(self, name: str) -> str:
        """File and tensor, for a message."""
        return self.source.where(name + BLOCKS if name in self.packed else name)

    def kind(self, name: str) -> str:
        """How the tensor is stored."""
        return "MXFP4" if name in self.packed else self.source.kind(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        if name not in self.packed:
            return self.source.shape(name)
        *others, outputs, blocks = self.source.shape(name + SCALES)
        return (*others, blocks * NUMBERS, outputs)

    def read(self, name: str) -> np.ndarray:
        """The tensor as it is stored, or float32. The last one unpacked is kept: it may be read again, in parts.

        Raises ValueError where a scale is no number."""
        if name not in self.packed:
            return self.source.read(name)
        if self._last is None or self._last[0] != name:
            self._last = None  # before there are two
            blocks, scales = (self.source.read(name + end) for end in (BLOCKS, SCALES))
            if (scales == NAN).any():
                raise ValueError(f"{self.source.where(name + SCALES)} has the scale {NAN}, which is no number")
            *others, inputs, outputs = self.shape(name)
            out = np.empty((*others, outputs, inputs), np.float32)
            unpack(blocks, scales, out)
            self._last = name, out.swapaxes(-1, -2)
        return self._last[1]

    def read_into(self, name: str, out: np.ndarray) -> None:
        """Write the tensor into `out`, an array of its shape."""
        out[...] = self.read(name)

    def drop(self, name: str) -> None:
        """Give back the memory of what was read of a tensor, but for the last one unpacked."""
        for stored in (name + BLOCKS, name + SCALES) if name in self.packed else (name,):
            self.source.drop(stored)


def unpacked(path: Path) -> Safetensors | MXFP4:
    """The tensors of a model directory, those in MXFP4 in float32."""
    source = Safetensors(path)
    return MXFP4(source) if any(name.endswith(BLOCKS) for name in source) else source
