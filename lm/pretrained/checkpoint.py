"""A published checkpoint, opened but not loaded: its config, and the tensor of each parameter."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.pretrained import gguf
from lm.pretrained.architecture import Architecture
from lm.pretrained.fields import Fields, read_json
from lm.pretrained.files import Safetensors, refuse_pickle
from lm.pretrained.fp8 import FP8, QUANTIZED, block_of, without_fp8
from lm.pretrained.known import architecture_of
from lm.pretrained.mxfp4 import unpacked
from lm.pretrained.rows import Row, Tensor, flatten, tensors, without_copies

ADAPTER = "adapter_config.json"
MOST_NAMES = 12  # of tensors in a warning


class TensorSource(Protocol):
    """The tensors of one or more files by name: `where` (file and name, for messages), `shape`, the `kind` of number
    they are stored as, `read`, or `read_into` an array, and `drop`, which gives the memory of the mapped file back."""

    path: Path

    def __iter__(self) -> Iterator[str]: ...
    def where(self, name: str) -> str: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def kind(self, name: str) -> str: ...
    def read(self, name: str) -> np.ndarray: ...
    def read_into(self, name: str, out: np.ndarray) -> None: ...
    def drop(self, name: str) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose tensors are known, but not read.

    Args:
      architecture: of the published model.
      cfg: its config in ours.
      shapes: our parameter tree, of ShapeDtypeStructs.
      source: the files' tensors.
      tensors: the architecture's tensors, with our paths.
      stored: the architecture's name of a tensor -> its name in `source`.
      metadata: config.json, or the metadata of the GGUF file.
    """

    architecture: Architecture
    cfg: ModelConfig
    shapes: Params
    source: TensorSource
    tensors: tuple[Tensor, ...]
    stored: Mapping[str, str]
    metadata: Mapping[str, Any]

    def summary(self) -> str:
        """What was read, in a line: the architecture, its parameters, how they were stored, what was left out."""
        read, kinds = {t.name for t in self.tensors}, Counter[str]()
        for name in read:
            kinds[self.source.kind(self.stored[name])] += math.prod(self.source.shape(self.stored[name]))
        stored = " and ".join(kind for kind, _ in kinds.most_common())
        left = Counter(self._left_out(name) for name in self.stored if name not in read)
        out = ", ".join(f"{count} {reason}" for reason, count in sorted(left.items()))
        parameters = sum(math.prod(leaf.shape) for leaf in flatten(self.shapes).values())
        text = f"{self.architecture.name}: {parameters:,} parameters, stored as {stored}"
        return text + (f"; tensors not read: {out}" if out else "")

    def _left_out(self, name: str) -> str:
        """Why the tensor `name` is not read."""
        if re.search(self.architecture.unused, name):
            return "that no result depends on (kept for export)"
        if re.search(self.architecture.other_heads, name):
            return "of another task"
        return "that the config or another tensor says"

    def unused(self) -> dict[str, np.ndarray]:
        """The architecture's tensors that are in the files and that the model does not use, in float32."""
        names = [name for name in self.stored if re.search(self.architecture.unused, name)]
        return {name: self.source.read(self.stored[name]).astype(np.float32) for name in names}


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a model directory or a GGUF file.

    Raises ValueError, naming file and tensor or field, for what is damaged, incomplete, unknown or not supported."""
    if path.is_file():
        return _open_gguf(path)
    if (path / ADAPTER).is_file():  # which transformers adds to the model
        raise ValueError(
            f"{path / ADAPTER} is of an adapter, which is not applied: merge it into the model "
            "(peft's merge_and_unload), or remove it to read the model without it"
        )
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    file = path / "config.json"
    values = read_json(file)
    architecture, block = architecture_of(values, file), block_of(values, file)
    said = {name: value for name, value in values.items() if block is None or name != QUANTIZED}
    cfg = _read(architecture, architecture.fields(said, file))
    source = FP8(Safetensors(path), block) if block else without_fp8(unpacked(path))
    return _match(architecture, cfg, architecture.source(source), values)


def _open_gguf(path: Path) -> Checkpoint:
    refuse_pickle(path)
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} is the weights alone: give the directory that also holds its config.json")
    source = gguf.GGUF(path)
    kind, fields = gguf.fields(source)
    cfg = _read(kind.architecture, fields)
    named = replace(
        kind.architecture,
        rows=lambda _: kind.rows,
        ignored=r"^rope_(freqs|factors_long|factors_short)\.weight$",
        unused="(?!)",
        prefix="",
        renamed=(),
    )
    return replace(_match(named, cfg, source, source.metadata), architecture=kind.architecture)


def _read(architecture: Architecture, fields: Fields) -> ModelConfig:
    """The config of `fields`. Every ValueError names the file."""
    try:
        return architecture.read(fields)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(fields.file)) else f"{fields.file}: {text}") from None


def _match(
    architecture: Architecture, cfg: ModelConfig, source: TensorSource, metadata: Mapping[str, Any]
) -> Checkpoint:
    stored = _canonical(architecture, source)
    cfg = _untied(cfg, architecture.rows(cfg), source, stored)
    cfg = _blind(cfg, architecture.rows(cfg), source, stored)
    cfg = _without_modules(cfg, architecture.rows(cfg), stored)
    rows = architecture.rows(cfg)
    shapes = Transformer(cfg, Compute().resolve("cpu")).shapes()
    known = tensors(rows, {path: leaf.shape for path, leaf in flatten(shapes).items()})
    expected = without_copies(known, stored)
    missing = [t for t in expected if t.name not in stored]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise ValueError(f"{source.path}: tensor {missing[0].name} is missing{more}: it is {missing[0].paths[0]}")
    names = {t.name for t in known}
    for name, where in stored.items():
        if name not in names and not architecture.ignores(name) and not _tied_copy(cfg, rows, name):
            raise ValueError(f"{source.where(where)} is unexpected: {architecture.name} with this config has none")
    others = [name for name in stored if name not in names and re.search(architecture.other_heads, name)]
    if others:
        some = ", ".join(others[:MOST_NAMES]) + (f" and {len(others) - MOST_NAMES} more" if others[MOST_NAMES:] else "")
        warnings.warn(f"{source.path}: not read, since {architecture.name} has none: {some}", stacklevel=2)
    for tensor in expected:
        if source.shape(stored[tensor.name]) != tensor.shape:
            raise ValueError(
                f"{source.where(stored[tensor.name])} has shape {list(source.shape(stored[tensor.name]))}: "
                f"the config has {list(tensor.shape)}"
            )
    return Checkpoint(architecture, cfg, shapes, source, tuple(expected), stored, metadata)


def _canonical(architecture: Architecture, source: TensorSource) -> dict[str, str]:
    """The architecture's name of each tensor -> its name in the files."""
    bare = architecture.prefix and not any(name.startswith(architecture.prefix) for name in source)
    stored = {}
    for name in source:
        full = architecture.prefix + name if bare else name
        for old, new in architecture.renamed:
            full = full.replace(old, new)
        stored[full] = name
    return stored


def _blind(cfg: ModelConfig, rows: Sequence[Row], source: TensorSource, stored: Mapping[str, str]) -> ModelConfig:
    """`cfg`, without a vision tower where the file has the text model's tensors alone. Warns of it."""
    theirs = [row.theirs.partition("{i}")[0] for row in rows if row.ours[0].startswith("vision/")]
    if cfg.vision is None or any(name.startswith(tuple(theirs)) for name in stored):
        return cfg
    warnings.warn(f"{source.path}: it has no tensors of the vision tower: the text model alone is read", stacklevel=2)
    return replace(cfg, vision=None)


def _without_modules(cfg: ModelConfig, rows: Sequence[Row], stored: Mapping[str, str]) -> ModelConfig:
    """`cfg`, without modules of multi-token prediction where the file has no tensor of their own: transformers writes
    the field and no tensors."""
    own = [row.theirs for row in rows if row.ours[0].startswith("multi_token/")]
    return cfg if any(name in stored for name in own) else replace(cfg, multi_token=None)


def _output_name(rows: Sequence[Row]) -> str:
    return next((row.theirs for row in rows if row.ours == ("head/kernel",)), "")


def _tied_copy(cfg: ModelConfig, rows: Sequence[Row], name: str) -> bool:
    return cfg.tied and name == _output_name(rows)


def _untied(cfg: ModelConfig, rows: Sequence[Row], source: TensorSource, stored: Mapping[str, str]) -> ModelConfig:
    """`cfg`, untied where the file has an output that differs from the embedding, as in transformers."""
    output, embedding = _output_name(rows), rows[0].theirs
    if not cfg.tied or output not in stored or embedding not in stored:
        return cfg
    same = np.array_equal(source.read(stored[output]), source.read(stored[embedding]))
    source.drop(stored[output])
    source.drop(stored[embedding])
    return cfg if same else replace(cfg, tied=False)
