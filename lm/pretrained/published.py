"""A published model before it is loaded: a Hugging Face directory or a GGUF file."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.pretrained import labels, sentences
from lm.pretrained.checkpoint import Checkpoint, open_checkpoint
from lm.pretrained.fields import Fields, read_json
from lm.pretrained.labels import Labels
from lm.pretrained.model import IDS, Pretrained
from lm.pretrained.placement import place_params
from lm.pretrained.save import SUFFIXES
from lm.sharding.rules import Layout
from lm.text.files import from_directory, tokenizer_files
from lm.text.gguf import NO_VOCABULARY, from_gguf
from lm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Published:
    """The model directory or GGUF file `path`, whose `checkpoint` is open."""

    path: Path
    checkpoint: Checkpoint

    @classmethod
    def open(cls, path: Path) -> "Published":
        """Raises ValueError as `open_checkpoint`."""
        return cls(path, open_checkpoint(path))

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.checkpoint.cfg

    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None where the directory has none. Raises ValueError where it is another model's."""
        return _tokenizer(self.path, self.checkpoint)

    def ids(self) -> dict[str, Any]:
        """The token ids of its config files."""
        return _ids(self.path, self.checkpoint)

    def labels(self) -> Labels:
        """What its scores mean; no labels where it has none."""
        if not self.config.output.scores:
            return Labels()
        return labels.read(Fields(self.checkpoint.metadata, self.path / "config.json"))

    def fingerprint(self) -> str:
        """16 hex digits of a hash of its files' names and content."""
        digest = hashlib.sha256()
        for file in self._files():
            digest.update(file.name.encode() if self.path.is_dir() else b"")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()[:16]

    def _files(self) -> Iterator[Path]:
        if self.path.is_file():
            yield self.path
        else:
            yield from (file for file in sorted(self.path.iterdir()) if file.is_file() and file.suffix in SUFFIXES)

    def params(self, mesh: Mesh | None = None, layout: Layout = Layout()) -> Params:
        """Its parameters, float32, sharded over `mesh` by the layout's rules, or on one device; a run's step may be
        given their memory."""
        return place_params(self.checkpoint, self._model("float32"), mesh, layout, donatable=True)

    def _model(self, dtype: str) -> Transformer:
        return Transformer(self.config, Compute(dtype=dtype, matmul=dtype, unroll=1).resolve())

    def load(self, mesh: Mesh | None = None, dtype: str = "float32") -> Pretrained:
        """The model; arguments as in lm.pretrained.load."""
        checkpoint = self.checkpoint
        tokenizer, ids = self.tokenizer(), self.ids()
        params = place_params(checkpoint, self._model("float32"), mesh)
        known = checkpoint.architecture, ids
        unused, kept = checkpoint.unused(), _beside(self.path)
        about: dict[str, Any] = dict(unused=unused, kept=kept, labels=self.labels())
        about["prefix"] = self.config.vision is not None and self.config.vision.prefix
        about["vectors"] = sentences.read(self.path, self.config.width)
        about["summary"] = f"{checkpoint.summary()}; computed in {dtype}"
        return Pretrained(self.config, params, tokenizer, self._model(dtype), 0, *known, **about)


def _tokenizer(path: Path, checkpoint: Checkpoint) -> Tokenizer | None:
    if path.is_dir():
        tokenizer = from_directory(path)
    else:
        named = checkpoint.metadata.get("tokenizer.ggml.model") not in (None, *NO_VOCABULARY)
        tokenizer = from_gguf(checkpoint.metadata) if named else None
    if tokenizer is None:
        return None
    vocab, embedding = checkpoint.cfg.vocab, checkpoint.tensors[0].name
    # control ids beyond the embedding are never generated: Gemma 3's text models have one for images
    if any(id not in tokenizer.controls for id in range(vocab, tokenizer.vocab_size)):
        raise ValueError(
            f"{path}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but tensor {embedding} has {vocab} rows: "
            "one of the two belongs to another model"
        )
    return tokenizer


def _beside(folder: Path) -> dict[str, Path]:
    """The files of a model directory that are written back as they are, by their names there: its tokenizer's, those of
    the processors of images, and the modules of sentence-transformers."""
    processors = {file.name: file for file in sorted(folder.glob("*processor_config.json"))}
    return tokenizer_files(folder) | processors | sentences.module_files(folder)


def _ids(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """The token ids of generation_config.json, or else of config.json and of a text_config in it. Raises ValueError for
    what is neither an id nor a list of ids."""
    if path.is_file():  # a GGUF's are its tokenizer's
        return {}
    more = path / "generation_config.json"
    text = checkpoint.metadata.get("text_config") or {}
    fields = {**text, **checkpoint.metadata, **(read_json(more) if more.is_file() else {})}
    declared = {name: fields[name] for name in IDS if fields.get(name) is not None}
    for name, ids in declared.items():
        if not all(isinstance(id, int) for id in (ids if isinstance(ids, list) else [ids])):
            raise ValueError(f"{path}: {name}={ids!r} in config.json or generation_config.json: expected token ids")
    return declared
