"""SentencePiece models (Kudo and Richardson 2018, arXiv:1808.06226): trained here, published, or rebuilt from pieces.

A published model may write "a" as "▁a" (a dummy prefix), normalise its text, and leave ids beyond its pieces to the
files around it (T5's sentinels): `Frame` says what those files add.
"""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from lm.text import export
from lm.text.protocol import Joiner, Spans, Table, Tokenizer, config_file, no_surrogates
from lm.text.train import SPACE

UNKNOWN = " \u2047 "  # how SentencePiece writes an unknown piece
NORMAL, UNK, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of pieces
UNIGRAM, BPE = 1, 2  # types of models


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD for every byte that is no UTF-8, as SentencePiece writes it (Python: one for a cut character)."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


codecs.register_error("lm.each_byte", _each_byte)


@dataclass(frozen=True)
class Frame:
    """What the files around a model add: `added` names of control ids, `roles` of ids, bos and eos around a prompt
    (None: bos where there is one, else eos), and whether the text after a control gets a dummy prefix too (`legacy`, as
    Llama's and Mistral's own code has it)."""

    added: Mapping[int, str] = field(default_factory=dict)
    roles: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    legacy: bool = True


class SentencePiece(Tokenizer):
    """A SentencePiece model, `model` the content of its file. `files` are those it was read from."""

    def __init__(self, model: bytes, frame: Frame = Frame(), files: Mapping[str, bytes] | None = None):
        self._model, self._files, self.frame = model, files, frame
        self._processor = p = sentencepiece.SentencePieceProcessor(model_proto=model)
        own = {"bos": p.bos_id(), "eos": p.eos_id(), "unk": p.unk_id(), "pad": p.pad_id()}
        controls = {i: p.id_to_piece(i) for i in range(p.vocab_size()) if p.is_control(i)} | dict(frame.added)
        size = max(p.vocab_size(), *(id + 1 for id in controls))
        table = Table(size, self._bytes_of)
        super().__init__(table, controls, {role: id for role, id in own.items() if id >= 0} | dict(frame.roles))
        # models of other people may write "a" as "▁a": that space is not the text's
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
        """Whether an id is one byte of a character without a piece of its own."""
        return id < self._processor.vocab_size() and self._processor.is_byte(id)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            no_surrogates(text)
        if self.dummy_prefix or not self._bytes or not any(SPACE in text for text in texts):
            return self._processor.encode(list(texts), num_threads=-1)
        # a real U+2581 would come back as a space: spell it in bytes, as any character outside the vocabulary
        return [self._encode_around_space_symbol(text) for text in texts]

    def _encode_around_space_symbol(self, text: str) -> list[int]:
        first, *others = self._processor.encode(text.split(SPACE), num_threads=-1)
        return first + [i for part in others for i in (*self._space_symbol, *part)]

    def spans_plain(self, text: str, first: bool) -> Spans:
        if not self.dummy_prefix:
            return super().spans_plain(text, first)
        processor = self._processor if first or self.frame.legacy else self._without_prefix
        found = processor.encode(text, out_type="offset_mapping")
        return [(id, a, b) for id, (a, b) in zip(found["ids"], found["offsets"], strict=True)]

    @cached_property
    def _without_prefix(self) -> sentencepiece.SentencePieceProcessor:
        proto = self.proto()
        proto.normalizer_spec.add_dummy_prefix = False
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    def proto(self) -> sentencepiece_model_pb2.ModelProto:
        """The model as a protocol buffer: pieces, trainer_spec, normalizer_spec."""
        return sentencepiece_model_pb2.ModelProto.FromString(self._model)

    def prompt(self, text: str, specials: bool = False) -> list[int]:
        add_bos = self.frame.add_bos is not False and self.bos is not None
        # T5 knows no bos, and ends its texts
        add_eos = (self.bos is None if self.frame.add_eos is None else self.frame.add_eos) and self.eos is not None
        before, after = [self.bos] if add_bos else [], [self.eos] if add_eos else []
        return [i for i in (*before, *self.encode(text, specials), *after) if i is not None]

    def joiner(self) -> Joiner:
        return SentenceJoiner(self)

    @cached_property
    def strips(self) -> str:
        """Which spaces before a text are not the text's: none, one, or all."""
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
        backend = export.from_sentencepiece(self.proto(), self.controls, self.prompt(""))
        original = self.files().get("tokenizer_config.json", b"{}")
        return {
            **(self._files or {"tokenizer.model": self._model}),
            "tokenizer.json": backend.to_str().encode(),
            "tokenizer_config.json": config_file(self, original),
        }


class SentenceJoiner(Joiner):
    """As SentencePiece decodes: a run of byte pieces is UTF-8 for itself, and the spaces that `strips` names go."""

    def __init__(self, tokenizer: SentencePiece):
        super().__init__(tokenizer, "lm.each_byte")
        self.sentence, self.strips, self.begun = tokenizer, tokenizer.strips, False

    def push(self, id: int) -> str:
        raw = self.tokenizer.bytes_of(id)
        if self.sentence.is_byte(id):
            self.begun = True
            return self.utf8.decode(raw)
        before = self.utf8.decode(b"", final=True)
        if not self.begun and self.strips != "none" and raw.startswith(b" ") and id != self.tokenizer.unk:
            raw, self.begun = raw[1:], self.strips == "one"
        self.begun = self.begun or bool(raw)
        return before + raw.decode()


def model_of(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    model_type: int = BPE,
    dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
    charsmap: bytes = b"",
    ids: Mapping[str, int] | None = None,
) -> bytes:
    """The content of the model file with these pieces; `ids` of unk, bos, eos and pad, -1 for none."""
    proto = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = model_type, len(tokens)
    trainer.byte_fallback = BYTE in types
    found = {"unk": 0, "bos": -1, "eos": -1, "pad": -1} | dict(ids or {})
    trainer.unk_id, trainer.bos_id = found["unk"], found["bos"]
    trainer.eos_id, trainer.pad_id = found["eos"], found["pad"]
    for role in ("unk", "bos", "eos", "pad"):  # SentencePiece looks these up by name
        if 0 <= found[role] < len(tokens):
            setattr(trainer, f"{role}_piece", tokens[found[role]])
    normalizer.name = "nmt_nfkc" if charsmap else "identity"
    normalizer.precompiled_charsmap = charsmap
    normalizer.add_dummy_prefix = dummy_prefix
    normalizer.remove_extra_whitespaces = remove_extra_whitespaces
    return proto.SerializeToString()
