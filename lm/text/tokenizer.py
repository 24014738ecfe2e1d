"""Tokenizers: text to ids and back.

A `TokenizerSpec` is the frozen value in an experiment; `make` trains the `Tokenizer` on text, and `Tokenizer.save`
writes a folder that `load_tokenizer` reads. `read` reads published tokenizers too, from any of their formats
(lm/text/files.py). decode(encode(x)) == x for every tokenizer trained here. The libraries that read and train them are
imported by what does so: an experiment only declares one.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lm.bounds import Count, Natural
from lm.text.characters import ByteTokenizer, CharacterTokenizer
from lm.text.protocol import TEMPLATE_FILE, Tokenizer

__all__ = ["ByteTokenizer", "CharacterTokenizer", "Tokenizer"]  # and what is below


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer of an experiment; each subclass is a way to make one."""

    def make(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer, trained on `texts` where it needs training, which are read only as far as needed. Raises
        ValueError where they are too little."""
        raise NotImplementedError


@dataclass(frozen=True)
class SentencePieceSpec(TokenizerSpec):
    """Lossless SentencePiece, trained on at most `train_bytes` of the text: identity normalisation, no whitespace added
    or collapsed, bytes for rare characters. Raises ValueError for sizes out of range."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"model_type": ("bpe", "unigram")}

    vocab_size: Count = 4096
    model_type: str = "bpe"
    byte_fallback: bool = True
    train_bytes: Count = 10_000_000
    indentations: Natural = 24  # pieces reserved for the most frequent "newline and indentation" of code

    def __post_init__(self) -> None:
        if self.model_type not in self.choices["model_type"]:
            raise ValueError(f"SentencePieceSpec model_type={self.model_type!r}: expected bpe or unigram")
        if self.vocab_size < 300 and self.byte_fallback:
            raise ValueError(
                f"vocab_size={self.vocab_size}: 256 bytes and 3 parse_special leave too few, take at least 300"
            )
        if self.train_bytes < 1 or self.indentations < 0:
            raise ValueError(
                f"train_bytes={self.train_bytes}, indentations={self.indentations}: expected 1 and 0 or more"
            )

    def make(self, texts: Iterable[str]) -> Tokenizer:
        from lm.text.sentence import SentencePiece
        from lm.text.train import train_sentencepiece

        return SentencePiece(
            train_sentencepiece(
                texts, self.vocab_size, self.model_type, self.byte_fallback, self.train_bytes, self.indentations
            )
        )


@dataclass(frozen=True)
class Characters(TokenizerSpec):
    """One id for every character that occurs in the training text, all of which is read."""

    def make(self, texts: Iterable[str]) -> Tokenizer:
        characters: set[str] = set().union(*(set(text) for text in texts))
        if not characters:
            raise ValueError("no text to take characters from: every training document is empty")
        return CharacterTokenizer(characters)


@dataclass(frozen=True)
class Bytes(TokenizerSpec):
    """One id per byte: `ByteTokenizer`."""

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return ByteTokenizer()


@dataclass(frozen=True)
class TokenizerFile(TokenizerSpec):
    """An existing tokenizer: any path that `read` reads."""

    path: str

    def make(self, texts: Iterable[str]) -> Tokenizer:
        return read(self.path)


def read(path: str | Path) -> Tokenizer:
    """The tokenizer in the file or folder `path`: tokenizer.json, SentencePiece's .model, tiktoken's ranks, GPT-2's
    vocab.json with merges.txt, BERT's vocab.txt, GGUF, a model directory in Hugging Face's layout, a folder of
    `Tokenizer.save`, or a run's. Raises ValueError where there is none."""
    from lm.text import files

    path = Path(path).expanduser()
    if path.is_dir():
        return load_tokenizer(path / "tokenizer" if (path / "experiment.json").is_file() else path)
    if not path.is_file():
        raise ValueError(f"no tokenizer at {path}: expected a folder with one, or its file ({files.FORMATS})")
    return files.from_file(path)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of `folder`: written by `Tokenizer.save`, or of a model directory. Raises ValueError where there is
    none."""
    tokenizer, template = _in_folder(Path(folder)), Path(folder) / TEMPLATE_FILE
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.give_template(template.read_text(encoding="utf-8"))
    return tokenizer


def _in_folder(folder: Path) -> Tokenizer:
    from lm.text import files
    from lm.text.sentence import SentencePiece

    readers: dict[str, Callable[[bytes], Tokenizer]] = {
        "sentencepiece.model": SentencePiece,
        "characters.json": _characters,
        "bytes.json": lambda data: ByteTokenizer(),
    }
    for name, reader in readers.items():
        if (file := folder / name).is_file():
            try:
                return reader(file.read_bytes())
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{file} is damaged: {str(error).splitlines()[-1]}") from None
    if (tokenizer := files.from_directory(folder)) is not None:
        return tokenizer
    raise ValueError(
        f"no tokenizer in {folder}: expected {', '.join(readers)}, or one of {', '.join(files.TOKENIZER_FILES)}"
    )


def _characters(data: bytes) -> CharacterTokenizer:
    """The tokenizer of a characters.json. Raises ValueError where it is something else."""
    characters = json.loads(data)
    if not isinstance(characters, str) or not characters:
        raise ValueError(f"it holds {str(characters)[:40]!r}, expected one text of all characters")
    return CharacterTokenizer(characters)
