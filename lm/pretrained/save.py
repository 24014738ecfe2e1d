"""Writing a model as other tools read it: config.json, safetensors, generation_config.json, the tokenizer's files."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.model.config import ModelConfig
from lm.model.transformer import Params
from lm.pretrained import files
from lm.pretrained.architecture import Architecture
from lm.pretrained.rows import Tensor, flatten, tensors
from lm.text.tokenizer import Tokenizer

WRITTEN = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".bpe")  # what a model directory holds


def save(
    folder: Path,
    architecture: Architecture,
    cfg: ModelConfig,
    params: Params,
    tokenizer: Tokenizer | None,
    ids: Mapping[str, Any],
    shard_bytes: int = files.SHARD_BYTES,
) -> None:
    """Write a model directory, whole or not at all; `ids` are those of bos, eos and so on.

    Raises ValueError where `folder` holds something else than a model."""
    folder = folder.expanduser().resolve()
    content = {} if tokenizer is None else tokenizer.hugging_face_files()
    said = {"architectures": [architecture.name], "model_type": architecture.model_type, **architecture.write(cfg)}
    content["config.json"] = _json({**said, **ids, "dtype": "float32"})
    content["generation_config.json"] = _json({"_from_model_config": True, **ids})
    _check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, data in content.items():
            (new / name).write_bytes(data)
        files.write(new, _written(architecture, cfg, params), shard_bytes)
        new.chmod(0o777 & ~_umask())
        _swap(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a new directory")
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    odd = [p.name for p in there if not p.is_file() or p.suffix not in WRITTEN]
    if odd or there and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} is there and no model directory ({(odd or [there[0].name])[0]} is in it): choose a new one"
        )


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`, which another name keeps until then."""
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    if folder.exists():
        folder.rename(old / "was")
    new.rename(folder)
    shutil.rmtree(old)


def _written(architecture: Architecture, cfg: ModelConfig, params: Params) -> list[files.Written]:
    leaves = flatten(params)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    found = tensors(architecture.rows(cfg), shapes)
    return [files.Written(t.name, t.shape, partial(_theirs, t, leaves)) for t in found]


def _theirs(tensor: Tensor, leaves: Mapping[str, jax.Array]) -> np.ndarray:
    return tensor.how.theirs([np.asarray(leaves[path][tensor.place]) for path in tensor.paths])
