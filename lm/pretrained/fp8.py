"""FP8 in safetensors, as DeepSeek-V3 is published: numbers of 8 bits (e4m3) in blocks with a scale (2412.19437, section
3.3.2).

A tensor `X` [rows, columns] of F8_E4M3 has beside it `X_scale_inv`, F32 [rows / 128, columns / 128], both rounded up:
blocks are cut from the first row and column on, and those at the end are what is left. A number stands for itself times
the scale of its block. Read so, a model is that of its numbers in float32; the published one rounds activations too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.pretrained.files import Safetensors
from lm.pretrained.mxfp4 import MXFP4

SCALE = "_scale_inv"
KIND = "F8_E4M3"
METHOD = "fp8"
QUANTIZED = "quantization_config"  # of a config.json


def unscale(numbers: np.ndarray, scales: np.ndarray, block: tuple[int, int], out: np.ndarray) -> None:
    """Write `numbers` [rows, columns] times the `scales` of their blocks into `out`, float32 of their shape."""
    rows, columns = block
    for i, row in enumerate(scales):
        part = slice(i * rows, (i + 1) * rows)
        np.multiply(numbers[part], np.repeat(row, columns)[: numbers.shape[1]], out=out[part], dtype=np.float32)


class FP8:
    """The tensors of `source`, of which those in FP8 are float32 when they are read, in blocks of `block` rows and
    columns.

    Raises ValueError for numbers without scales, and for those that do not belong together."""

    def __init__(self, source: Safetensors, block: tuple[int, int]):
        self.source, self.path, self.block = source, source.path, block
        self.packed = {name for name in source if source.kind(name) == KIND}
        self._last: tuple[str, np.ndarray] | None = None
        for name in sorted(self.packed):
            self._check(name)

    def _check(self, name: str) -> None:
        scales = name + SCALE
        if scales not in self.source.tensors:
            raise ValueError(f"{self.where(name)} is {KIND} and has no scales: expected a tensor {scales}")
        shape, found, kind = self.source.shape(name), self.source.shape(scales), self.source.kind(scales)
        wanted = tuple(-(-size // n) for size, n in zip(shape, self.block, strict=False))
        if len(shape) != 2 or found != wanted or kind != "F32":
            raise ValueError(
                f"{self.where(name)} has shape {list(shape)} with scales {list(found)} of {kind}: expected a matrix, "
                f"and a scale of F32 for each block of {self.block[0]} rows and {self.block[1]} columns"
            )

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self.source if name.removesuffix(SCALE) not in self.packed or name in self.packed)

    def where(self, name: str) -> str:
        """File and tensor, for a message."""
        return self.source.where(name)

    def kind(self, name: str) -> str:
        """How the tensor is stored."""
        return "FP8" if name in self.packed else self.source.kind(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.source.shape(name)

    def read(self, name: str) -> np.ndarray:
        """The tensor as it is stored, or float32. The last one of those is kept: it may be read again, in parts.

        Raises ValueError where a scale is no number."""
        if name not in self.packed:
            return self.source.read(name)
        if self._last is None or self._last[0] != name:
            self._last = None  # before there are two
            out = np.empty(self.shape(name), np.float32)
            self.read_into(name, out)
            self._last = name, out
        return self._last[1]

    def read_into(self, name: str, out: np.ndarray) -> None:
        """Write the tensor into `out`, an array of its shape."""
        if name not in self.packed:
            return self.source.read_into(name, out)
        scales = self.source.read(name + SCALE)
        if not np.isfinite(scales).all():
            raise ValueError(f"{self.where(name + SCALE)} has a scale that is not finite")
        unscale(self.source.read(name), scales, self.block, out)

    def drop(self, name: str) -> None:
        """Give back the memory of what was read of a tensor, but for the last one that is float32."""
        for stored in (name, name + SCALE) if name in self.packed else (name,):
            self.source.drop(stored)


def without_fp8(source: Safetensors | MXFP4) -> Safetensors | MXFP4:
    """`source`, of which nothing is in FP8. Raises ValueError where something is."""
    for name in source:
        if source.kind(name) == KIND:
            raise ValueError(
                f"{source.where(name)} is {KIND}, and its config.json does not say in which blocks it is scaled: "
                f"expected {QUANTIZED} with quant_method {METHOD} and weight_block_size"
            )
    return source


def block_of(config: Mapping[str, Any], file: Path) -> tuple[int, int] | None:
    """The rows and columns of a block, as the quantization_config of a config.json says; None where it says nothing of
    FP8. Raises ValueError for a form of it that is not read."""
    said = config.get(QUANTIZED)
    if not isinstance(said, Mapping) or said.get("quant_method") != METHOD:
        return None
    block: Any = said.get("weight_block_size")
    good = isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    if not good or said.get("fmt", "e4m3") != "e4m3" or said.get("scale_fmt", "float") != "float":
        raise ValueError(
            f"{file}: {QUANTIZED}={dict(said)!r} is not supported: expected quant_method {METHOD} with fmt e4m3, "
            "weight_block_size [rows, columns] and scales in float32"
        )
    return block[0], block[1]
