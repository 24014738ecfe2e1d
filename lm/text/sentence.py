"""SentencePiece models (Kudo and Richardson 2018, arXiv:1808.06226): trained here, published, or rebuilt from pieces.

A published model may add a dummy prefix ("a" becomes "▁a"), normalise its text, and have ids beyond its pieces in
other files (T5's sentinels): `SentencePieceOptions` holds what those files specify.
"""

import codecs
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from lm.text import export
from lm.text.protocol import IncrementalDecoder, LazyTable, Offsets, Tokenizer, config_file, utf8_bytes
from lm.text.train import SPACE
from lm.text.vocabulary import BYTE, CONTROL, NORMAL, UNK, UNUSED, USER_DEFINED, Vocabulary

__all__ = ["BYTE", "CONTROL", "NORMAL", "UNK", "UNUSED", "USER_DEFINED"]  # and what is below

UNKNOWN = " \u2047 "  # SentencePiece's text of an unknown piece
UNIGRAM, BPE = 1, 2  # its model types


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for every byte of invalid UTF-8, as in SentencePiece (Python: one for an incomplete character)."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


codecs.register_error("lm.each_byte", _each_byte)


@dataclass(frozen=True)
class SentencePieceOptions:
    """What tokenizer_config.json specifies beside a model.

    Args:
      added: control ids beyond the model's -> names.
      roles: role -> id.
      add_bos, add_eos: whether a prompt has them; None: bos where there is one, else eos.
      legacy: whether text after a control id gets a dummy prefix too, as in the code of Llama and Mistral.
    """

    added: Mapping[int, str] = field(default_factory=dict)
    roles: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    legacy: bool = True


class SentencePiece(Tokenizer):
    """A SentencePiece model, of which `model` is the file's content; `files` are all files it was read from."""

    def __init__(
        self,
        model: bytes,
        options: SentencePieceOptions = SentencePieceOptions(),
        files: Mapping[str, bytes] | None = None,
    ):
        if not model:
            raise ValueError("the SentencePiece model is empty")
        self._model, self._files, self.options = model, files, options
        self._processor = p = sentencepiece.SentencePieceProcessor(model_proto=model)
        own = {"bos": p.bos_id(), "eos": p.eos_id(), "unk": p.unk_id(), "pad": p.pad_id()}
        controls = {i: p.id_to_piece(i) for i in range(p.vocab_size()) if p.is_control(i)} | dict(options.added)
        size = max([p.vocab_size(), *(id + 1 for id in controls)])
        table = LazyTable(size, self._bytes_of)
        super().__init__(table, controls, {role: id for role, id in own.items() if id >= 0} | dict(options.roles))
        self.dummy_prefix = p.encode("a", out_type=str)[0].startswith(SPACE)
        self._space_symbol = [p.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        self._bytes = all(p.is_byte(i) for i in self._space_symbol)

    def _bytes_of(self, id: int) -> bytes:
        p = self._processor
        if id in self.controls or id >= p.vocab_size():
            return b""
        if p.is_byte(id):
            return bytes([int(p.id_to_piece(id)[3:5], 16)])
        return UNKNOWN.encode() if p.is_unknown(id) else p.id_to_piece(id).replace(SPACE, " ").encode()

    def is_byte(self, id: int) -> bool:
        """Whether an id is one byte of a character that has no piece."""
        return id < self._processor.vocab_size() and self._processor.is_byte(id)

    def id_of(self, piece: str) -> int | None:
        """The id of a piece of the model, None where there is none."""
        id = self._processor.piece_to_id(piece)
        return id if self._processor.id_to_piece(id) == piece else None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            utf8_bytes(text)
        if self.dummy_prefix or not self._bytes or not any(SPACE in text for text in texts):
            return self._processor.encode(list(texts), num_threads=-1)
        # U+2581 itself would be decoded as a space: encode it as bytes, like a character outside the vocabulary
        return [self._encode_around_space_symbol(text) for text in texts]

    def _encode_around_space_symbol(self, text: str) -> list[int]:
        first, *others = self._processor.encode(text.split(SPACE), num_threads=-1)
        return first + [i for part in others for i in (*self._space_symbol, *part)]

    def _plain_with_offsets(self, text: str, first: bool) -> Offsets:
        if not self.dummy_prefix and self._bytes:
            return super()._plain_with_offsets(text, first)
        processor = self._processor if first or self.options.legacy else self._without_prefix
        encoding = processor.encode(text, out_type="offset_mapping")
        return [(id, a, b) for id, (a, b) in zip(encoding["ids"], encoding["offsets"], strict=True)]

    @cached_property
    def _without_prefix(self) -> sentencepiece.SentencePieceProcessor:
        proto = self.proto()
        proto.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def proto(self) -> sentencepiece_model_pb2.ModelProto:
        """The model's protocol buffer: pieces, trainer_spec, normalizer_spec."""
        return sentencepiece_model_pb2.ModelProto.FromString(self._model)

    def encode_prompt(self, text: str, parse_special: bool = False) -> list[int]:
        add_bos = self.options.add_bos is not False and self.bos is not None
        # T5 has no bos, and eos after a prompt
        add_eos = (self.bos is None if self.options.add_eos is None else self.options.add_eos) and self.eos is not None
        before, after = [self.bos] if add_bos else [], [self.eos] if add_eos else []
        return [i for i in (*before, *self.encode(text, parse_special), *after) if i is not None]

    def incremental_decoder(self) -> IncrementalDecoder:
        return SentencePieceDecoder(self)

    @cached_property
    def stripped_spaces(self) -> str:
        """The leading spaces that decoding removes: "none", "one" or "all"."""
        spec = self.proto().normalizer_spec
        return "all" if spec.remove_extra_whitespaces else "one" if spec.add_dummy_prefix else "none"

    def piece(self, id: int) -> str:
        if id in (self.bos, self.eos):
            return "<bos>" if id == self.bos else "<eos>"
        return super().piece(id)

    def name(self, id: int) -> str:
        return self.controls.get(id) or self._processor.id_to_piece(self.checked(id))

    def files(self) -> dict[str, bytes]:
        return {"sentencepiece.model": self._model} if self._files is None else dict(self._files)

    def hugging_face_files(self) -> dict[str, bytes]:
        try:
            backend = export.from_sentencepiece(self.proto(), self.controls, self.encode_prompt(""))
        except Exception as error:  # the library raises nothing more particular
            reason = " ".join(str(error).split())
            raise ValueError(f"this SentencePiece model has no form that transformers reads: {reason}") from None
        original = self.files().get("tokenizer_config.json", b"{}")
        return {
            **(self._files or {"tokenizer.model": self._model}),
            "tokenizer.json": backend.to_str().encode(),
            "tokenizer_config.json": config_file(self, original),
        }

    def vocabulary(self) -> Vocabulary:
        """SentencePiece's BPE with bytes for other characters ("llama"), or its unigrams without ("t5")."""
        proto = self.proto()
        spec, trainer = proto.normalizer_spec, proto.trainer_spec
        kind = {BPE: "llama", UNIGRAM: "t5"}.get(trainer.model_type)
        if kind is None or trainer.byte_fallback != (kind == "llama") or trainer.treat_whitespace_as_suffix:
            raise ValueError(
                "llama.cpp has SentencePiece's BPE with bytes for characters outside the vocabulary and its unigrams "
                "without: train with SentencePieceSpec(model_type='bpe', byte_fallback=True)"
            )
        if kind == "llama" and (spec.precompiled_charsmap or spec.remove_extra_whitespaces):
            raise ValueError("llama.cpp's SentencePiece BPE does not normalise a text, as this tokenizer does")
        if self.dummy_prefix and not self.options.legacy:
            warnings.warn("llama.cpp puts a space before a text after a control id too (legacy=true)", stacklevel=2)
        types = {id: piece.type for id, piece in enumerate(proto.pieces)} | dict.fromkeys(self.controls, CONTROL)
        return Vocabulary(
            kind,
            [self._entry(proto, id) for id in range(self.vocab_size)],
            [types.get(id, UNUSED) for id in range(self.vocab_size)],
            scores=[p.score for p in proto.pieces] + [0.0] * (self.vocab_size - len(proto.pieces)),
            add_space_prefix=spec.add_dummy_prefix,
            remove_extra_whitespaces=spec.remove_extra_whitespaces,
            charsmap=spec.precompiled_charsmap,
        )

    def _entry(self, proto: sentencepiece_model_pb2.ModelProto, id: int) -> str:
        """The token of an id in a Vocabulary; a user-defined one as it stands in a text."""
        if id in self.controls or id >= len(proto.pieces):
            return self.controls.get(id, "")
        piece = proto.pieces[id]
        return piece.piece.replace(SPACE, " ") if piece.type == USER_DEFINED else piece.piece


class SentencePieceDecoder(IncrementalDecoder):
    """SentencePiece's decoding, made incremental: a run of byte pieces is decoded by itself, and `stripped_spaces` are
    removed."""

    def __init__(self, tokenizer: SentencePiece):
        super().__init__(tokenizer, "lm.each_byte")
        self.sentence, self.strips, self.started = tokenizer, tokenizer.stripped_spaces, False

    def push(self, id: int) -> str:
        raw = self.tokenizer.bytes_of(id)
        if self.sentence.is_byte(id):
            self.started = True
            return self.utf8.decode(raw)
        before = self.utf8.decode(b"", final=True)
        if not self.started and self.strips != "none" and raw.startswith(b" ") and id != self.tokenizer.unk:
            raw, self.started = raw[1:], self.strips == "one"
        self.started = self.started or bool(raw)
        return before + raw.decode()


def build_model(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    model_type: int = BPE,
    dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
    charsmap: bytes = b"",
    ids: Mapping[str, int] | None = None,
) -> bytes:
    """The content of a model file.

    Args:
      tokens, scores, types: of the pieces.
      model_type: UNIGRAM or BPE.
      dummy_prefix: whether encoding puts a space before a text.
      remove_extra_whitespaces: whether encoding strips and collapses spaces.
      charsmap: the compiled normalisation rules; empty: identity.
      ids: of unk, bos, eos and pad; -1: none.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = model_type, len(tokens)
    trainer.byte_fallback = BYTE in types
    id_of = {"unk": 0, "bos": -1, "eos": -1, "pad": -1} | dict(ids or {})
    trainer.unk_id, trainer.bos_id = id_of["unk"], id_of["bos"]
    trainer.eos_id, trainer.pad_id = id_of["eos"], id_of["pad"]
    for role in ("unk", "bos", "eos", "pad"):  # SentencePiece looks these up by name
        if 0 <= id_of[role] < len(tokens):
            setattr(trainer, f"{role}_piece", tokens[id_of[role]])
    normalizer.name = "nmt_nfkc" if charsmap else "identity"
    normalizer.precompiled_charsmap = charsmap
    normalizer.add_dummy_prefix = dummy_prefix
    normalizer.remove_extra_whitespaces = remove_extra_whitespaces
    return proto.SerializeToString()
