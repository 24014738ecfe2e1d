"""Safetensors files: one, or shards with an index; read as views of the mapped file, written tensor by tensor.

The format is described in lm/text/headers.py. Nothing in it is executed; pickles (.bin, .pt) could execute anything and
are refused.
"""

import json
import math
import re
import struct
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.pretrained.mapped import MappedFile
from lm.text.headers import DTYPES, SafetensorsInfo, read_safetensors_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
SHARD_BYTES = 5_000_000_000  # of one file, as in published checkpoints


class Safetensors:
    """The tensors of a model directory: names to views.

    Raises ValueError for files that are missing, cut off or damaged."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors: dict[str, SafetensorsInfo] = {}
        self._maps: dict[Path, MappedFile] = {}
        files = _files(path)
        for file in files:
            self._add(read_safetensors_header(file))
        if files != [path / SINGLE]:
            self._check_index()

    @classmethod
    def of_file(cls, file: Path) -> "Safetensors":
        """The tensors of one file, whatever its name."""
        one = cls.__new__(cls)
        one.path, one.tensors, one._maps = file, {}, {}
        one._add(read_safetensors_header(file))
        return one

    def _add(self, tensors: dict[str, SafetensorsInfo]) -> None:
        for name, info in tensors.items():
            if name in self.tensors:
                raise ValueError(
                    f"tensor {name} is in {self.tensors[name].file} and in {info.file}: expected it in one of them; "
                    "remove the file that is out of date, or download all of them again"
                )
        self.tensors |= tensors

    def _check_index(self) -> None:
        for name, file in _weight_map(self.path / INDEX).items():
            if name not in self.tensors or self.tensors[name].file.name != file:
                raise ValueError(f"{self.path / file}: the index says that tensor {name} is in it, but it is not")

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def where(self, name: str) -> str:
        """File and tensor, for a message."""
        return f"{self.tensors[name].file}: tensor {name}"

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.tensors[name].shape

    def kind(self, name: str) -> str:
        """How the tensor is stored: a key of lm/text/headers.py's DTYPES."""
        return self.tensors[name].dtype

    def read(self, name: str) -> np.ndarray:
        """The tensor as it is stored: a view of the mapped file, of which only what is used is read."""
        file, dtype_name, shape, _ = self.tensors[name]
        if file not in self._maps:
            self._maps[file] = MappedFile(file)
        return self._maps[file].bytes[slice(*self._extent(name))].view(DTYPES[dtype_name]).reshape(shape)

    def read_into(self, name: str, out: np.ndarray) -> None:
        """Write the tensor into `out`, an array of its shape."""
        out[...] = self.read(name)

    def drop(self, name: str) -> None:
        """Give back the memory of what was read of a tensor."""
        self._maps[self.tensors[name].file].drop(*self._extent(name))

    def _extent(self, name: str) -> tuple[int, int]:
        """The first byte of a tensor, and the one behind it."""
        _, dtype, shape, start = self.tensors[name]
        return start, start + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize


def _files(path: Path) -> list[Path]:
    """The safetensors files of a directory: model.safetensors before an index, as in transformers. Warns of what is
    left out."""
    names = sorted(set(_weight_map(path / INDEX).values())) if (path / INDEX).is_file() else []
    if names and (SINGLE in names or not (path / SINGLE).is_file()):
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{path / INDEX}: shard {name!r} is not a safetensors file beside the index")
            if not (path / name).is_file():
                raise ValueError(f"{path / name} is missing: {INDEX} names it as one of {len(names)} shards")
        _tell_left_out(path, INDEX, {p.name for p in path.iterdir() if SHARD.fullmatch(p.name)} - set(names))
        return [path / name for name in names]
    if (path / SINGLE).is_file():
        _tell_left_out(path, SINGLE, {INDEX, *names} if names else set())
        return [path / SINGLE]
    refuse_pickle(*sorted(path.iterdir()))
    raise ValueError(f"no weights in {path}: expected {SINGLE}, or {INDEX} and its shards")


def _tell_left_out(path: Path, read: str, others: Collection[str]) -> None:
    """Warn that the files `others`, which may be another model, are not read beside `read`."""
    if others:
        warnings.warn(
            f"{path / read} is read, as transformers does, and not {', '.join(sorted(others))}: "
            "remove what is out of date",
            stacklevel=2,
        )


def refuse_pickle(*paths: Path) -> None:
    """Raises ValueError for the first of `paths` with the suffix of a pickle or another format that is not read."""
    for path in paths:
        if path.suffix in PICKLES:
            raise ValueError(
                f"{path} is not read, since a pickle can run any program: expected safetensors or GGUF; "
                "convert it where it is trusted"
            )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is damaged: expected JSON with a weight_map ({error})") from None


class TensorToWrite(NamedTuple):
    """A float32 tensor to write: its name and shape, and the function that reads it when it is written."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return 4 * math.prod(self.shape)


def write(folder: Path, tensors: Sequence[TensorToWrite], shard_bytes: int = SHARD_BYTES) -> None:
    """Write `tensors` into `folder` as safetensors: one file, or shards of at most `shard_bytes` with an index."""
    shards: list[list[TensorToWrite]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.bytes for t in shards[-1]) + tensor.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        return write_file(folder / SINGLE, shards[0])
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(names, shards, strict=True):
        write_file(folder / file, shard)
    index = {
        "metadata": {"total_size": sum(t.bytes for t in tensors)},
        "weight_map": {t.name: file for file, shard in zip(names, shards, strict=True) for t in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_file(file: Path, tensors: Sequence[TensorToWrite]) -> None:
    """Write `tensors` as one safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it
    start = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.bytes],
        }
        start += tensor.bytes
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(data)) + data)
        for tensor in tensors:
            array = np.ascontiguousarray(tensor.read(), "<f4")
            assert array.shape == tensor.shape, (tensor.name, array.shape, tensor.shape)
            opened.write(array.data)
