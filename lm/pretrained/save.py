"""Writing a Hugging Face model directory: config.json, safetensors, generation_config.json, the tokenizer's files."""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from lm.model.config import ModelConfig
from lm.model.transformer import Params
from lm.pretrained import files
from lm.pretrained.architecture import Architecture
from lm.pretrained.rows import Tensor, flatten, tensors
from lm.pretrained.sentences import module_folders
from lm.text.files import TEMPLATE_FOLDER
from lm.text.published import QWEN2_PATTERN, QWEN3_5_PATTERN
from lm.text.tokenizer import Tokenizer

SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".bpe")  # of a model directory
# Types of models for which transformers 5 puts Qwen's normaliser, pattern and decoder in place of those of any
# tokenizer.json (findings/transformers-qwen2-own-tokenizer.sh), and that pattern.
QWEN = {"qwen2": QWEN2_PATTERN} | dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"), QWEN3_5_PATTERN)


def save(
    folder: Path,
    architecture: Architecture,
    cfg: ModelConfig,
    params: Params,
    tokenizer: Tokenizer | None,
    ids: Mapping[str, Any],
    shard_bytes: int = files.SHARD_BYTES,
    unused: Mapping[str, np.ndarray] = MappingProxyType({}),
    kept: Mapping[str, Path] = MappingProxyType({}),
    labels: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a model directory atomically. Warns where transformers' AutoTokenizer reads its tokenizer otherwise.

    Args:
      folder: the directory, which may hold an earlier model.
      architecture: of config.json and the tensors' names.
      cfg: the model's config, which `architecture` can express.
      params: its parameters, written in float32.
      tokenizer: whose files are written too; None: none.
      ids: "bos_token_id", "eos_token_id", .. -> id or ids.
      shard_bytes: the most of one safetensors file.
      unused: further tensors of the architecture, which the model does not use.
      kept: files that stand beside the tensors and are written as they are, by name; those of `tokenizer` go before.
      labels: further fields of config.json, what its scores mean.

    Raises:
      ValueError: where `folder` holds something other than a model, or the tokenizer cannot be exported.
    """
    folder = folder.expanduser().resolve()
    content = {name: file.read_bytes() for name, file in kept.items() if file.is_file()}
    content |= {} if tokenizer is None else {**tokenizer.hugging_face_files(), **tokenizer.given_template()}
    names = {"architectures": [architecture.name], "model_type": architecture.model_type}
    content["config.json"] = _json({**names, **architecture.write(cfg), **labels, **ids, "dtype": "float32"})
    content["generation_config.json"] = _json({"_from_model_config": True, **ids})
    _check_free(folder)
    if architecture.model_type in QWEN and "tokenizer.json" in content:
        _warn_of_qwen(architecture.model_type, json.loads(content["tokenizer.json"]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, data in content.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(data)
        others = [files.TensorToWrite(name, array.shape, partial(np.asarray, array)) for name, array in unused.items()]
        files.write(new, [*_tensors(architecture, cfg, params), *others], shard_bytes)
        new.chmod(0o777 & ~umask())
        replace_folder(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _warn_of_qwen(model_type: str, tokenizer: Mapping[str, Any]) -> None:
    """A warning where a tokenizer.json is not what transformers 5 makes of every one beside a model of this type."""
    steps = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers") or []
    split = [(step.get("type"), (step.get("pattern") or {}).get("Regex")) for step in steps]
    if tokenizer.get("normalizer") != {"type": "NFC"} or split != [("Split", QWEN[model_type]), ("ByteLevel", None)]:
        warnings.warn(
            f"transformers' AutoTokenizer reads the tokenizer of every {model_type} model as Qwen's, and gives other "
            "ids than this one: read it there with PreTrainedTokenizerFast.from_pretrained",
            stacklevel=2,
        )


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def umask() -> int:
    """The process's mask of file modes."""
    old = os.umask(0)
    os.umask(old)
    return old


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a new directory")
    present = sorted(folder.iterdir()) if folder.is_dir() else []
    known = [folder / TEMPLATE_FOLDER, *module_folders(folder)]
    inside = [p for top in present for p in (sorted(top.iterdir()) if top in known else [top])]
    others = [p.name for p in inside if not p.is_file() or p.suffix not in SUFFIXES]
    if others or present and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} exists and is no model directory ({(others or [present[0].name])[0]} is in it): choose a new one"
        )


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`, after renaming the old `folder` away."""
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    if folder.exists():
        folder.rename(old / "was")
    new.rename(folder)
    shutil.rmtree(old)


def _tensors(architecture: Architecture, cfg: ModelConfig, params: Params) -> list[files.TensorToWrite]:
    leaves = flatten(params)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    theirs = tensors(architecture.rows(cfg), shapes)
    return [files.TensorToWrite(t.name, t.shape, partial(read_theirs, t, leaves)) for t in theirs]


def read_theirs(tensor: Tensor, leaves: Mapping[str, jax.Array]) -> np.ndarray:
    """One tensor of theirs, of our `leaves` by path."""
    return tensor.conversion.theirs([_part(leaves[path], tensor.leaf_index) for path in tensor.paths])


def _part(leaf: jax.Array, index: tuple[int, ...]) -> np.ndarray:
    """leaf[index] on the host: of what one CPU holds a view, where JAX would compile a slice."""
    if isinstance(leaf, jax.Array) and [device.platform for device in leaf.devices()] != ["cpu"]:
        return np.asarray(leaf[index])
    return np.asarray(leaf)[index]
