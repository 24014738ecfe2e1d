"""Tokenizers without merges: one id per character, or per byte."""

import json
from collections.abc import Iterable, Sequence

import numpy as np

from lm.text import export
from lm.text.protocol import Tokenizer, config_file, utf8_bytes
from lm.text.published import GPT2_PATTERN
from lm.text.vocabulary import CONTROL, NORMAL, Vocabulary, escape


class CharacterTokenizer(Tokenizer):
    """One id per character, in the order of code points; no bos or eos (nanoGPT's shakespeare_char)."""

    def __init__(self, characters: Iterable[str]):
        self.characters = "".join(sorted(set(characters)))
        super().__init__([c.encode() for c in self.characters])
        self._codes = _code_points(self.characters)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text).tolist() for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        utf8_bytes(text)
        codes = _code_points(text)
        ids = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        unknown = np.flatnonzero(self._codes[ids] != codes)
        if unknown.size:
            raise ValueError(
                f"character {text[unknown[0]]!r} at position {unknown[0]} is not one of the {self.vocab_size} "
                "characters of the training text: remove it, or use Bytes() or SentencePieceSpec(), "
                "which encode any text"
            )
        return ids

    def files(self) -> dict[str, bytes]:
        return {"characters.json": json.dumps(self.characters).encode()}

    def hugging_face_files(self) -> dict[str, bytes]:
        return _exported(self, export.from_characters(self.characters))

    def vocabulary(self) -> Vocabulary:
        """RWKV's, whose tokens are the longest that match."""
        if wide := [c for c in self.characters if not c.isascii()]:
            raise ValueError(
                f"llama.cpp has no vocabulary of single characters with any beyond ASCII, as {wide[0]!r}: "
                "train with Bytes() or SentencePieceSpec()"
            )
        tokens = [escape(c) for c in self.characters]
        return Vocabulary("rwkv", tokens, [NORMAL] * len(tokens))


class ByteTokenizer(Tokenizer):
    """The 256 bytes, then bos 256 and eos 257 (as ByT5, Xue et al. 2021, arXiv:2105.13626, but for the order)."""

    def __init__(self) -> None:
        table = [*(bytes([b]) for b in range(256)), b"", b""]
        super().__init__(table, {256: "<bos>", 257: "<eos>"}, {"bos": 256, "eos": 257})

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(utf8_bytes(text)) for text in texts]

    def files(self) -> dict[str, bytes]:
        return {"bytes.json": b"{}"}

    def hugging_face_files(self) -> dict[str, bytes]:
        return _exported(self, export.from_bytes(self.controls, bos=256))

    def vocabulary(self) -> Vocabulary:
        """GPT-2's without merges."""
        tokens = [export.byte_alphabet()[b] for b in range(256)] + list(self.controls.values())
        types = [NORMAL] * 256 + [CONTROL] * len(self.controls)
        return Vocabulary("gpt2", tokens, types, merges=[], patterns=(GPT2_PATTERN,))


def _exported(tokenizer: Tokenizer, backend: export.Backend) -> dict[str, bytes]:
    config = config_file(tokenizer)
    return {"tokenizer.json": backend.to_str(pretty=True).encode(), "tokenizer_config.json": config}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
