"""The interface of tokenizers: a table from id to bytes, an `encode`, and control ids, which have no text.

Decoding follows from the table and from how the pieces are joined (`IncrementalDecoder`, one id at a time). Tokenizers
trained here are lossless; published ones give the ids and texts of their own library.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lm.text.vocabulary import Vocabulary

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # of control ids, by Hugging Face's names
TEMPLATE_FILE = "chat_template.jinja"
CONTEXT = 64  # tokens on which the text of the next may depend
Offsets = list[tuple[int, int, int]]  # (id, start, end) of each token, in characters of the text


def utf8_bytes(text: str) -> bytes:
    """`text` in UTF-8. Raises ValueError for a lone surrogate, which has no UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has no UTF-8 form: lone surrogate {text[error.start]!r} at position {error.start}"
        ) from None


EMPTY: Mapping[Any, Any] = MappingProxyType({})


class LazyTable(Sequence[bytes]):
    """The bytes of `size` ids, computed by `bytes_of` on access: a large vocabulary is mostly unused."""

    def __init__(self, size: int, bytes_of: Callable[[int], bytes]):
        self.size, self.bytes_of = size, bytes_of

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, id: Any) -> Any:
        return self.bytes_of(range(self.size)[id])


class Tokenizer:
    """Text to ids and back.

    Args:
      table: the bytes of every id.
      controls: the ids without text (bos, eos, turn markers) -> their names ("</s>").
      roles: role -> id; `bos` .. `mask` are the ids of ROLES, None where there is none.

    `stop_ids` are the ids that end a generated text. Raises ValueError for a role outside the vocabulary."""

    chat_template: str | Mapping[str, str] | None = None  # jinja2, see lm/text/chat.py
    _given_template: str | None = None

    def __init__(self, table: Sequence[bytes], controls: Mapping[int, str] = EMPTY, roles: Mapping[str, int] = EMPTY):
        self.table, self.controls = table, dict(controls)
        self.vocab_size = len(table)
        self.roles = {role: roles[role] for role in ROLES if role in roles}
        self.bos, self.eos, self.unk = roles.get("bos"), roles.get("eos"), roles.get("unk")
        self.sep, self.pad = roles.get("sep"), roles.get("pad")
        self.cls, self.mask = roles.get("cls"), roles.get("mask")
        self.stop_ids: tuple[int, ...] = () if self.eos is None else (self.eos,)
        for role, id in self.roles.items():
            if not 0 <= id < len(table):
                raise ValueError(f"the {role} id {id} is outside the vocabulary: expected 0 to {len(table) - 1}")

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """The ids of `text`, with nothing added. Names of control ids ("</s>") are plain text, or with `parse_special`
        those ids. Raises ValueError for a lone surrogate."""
        return [id for id, _, _ in self.encode_with_offsets(text)] if parse_special else self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel where the library can."""
        raise NotImplementedError

    def encode_prompt(self, text: str, parse_special: bool = False) -> list[int]:
        """The ids of `text` with the control ids that the model expects around a prompt: bos, [CLS] .. [SEP], T5's
        eos."""
        return ([] if self.bos is None else [self.bos]) + self.encode(text, parse_special)

    def encode_after(self, text: str, parse_special: bool = False) -> list[int]:
        """`encode` of a `text` that others come before: no space is added that begins a text."""
        utf8_bytes(text)
        parts = [part for part, _ in self._split(text)] if parse_special else [text]
        ids: list[int] = []
        for part in filter(None, parts):
            known = self._id_of.get(part) if parse_special else None
            ids += [known] if known is not None else [id for id, _, _ in self._plain_with_offsets(part, first=False)]
        return ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """The ids of two texts as an encoder reads them together, names of control ids parsed, and the token type of
        each. Raises ValueError for a tokenizer that says nothing of pairs."""
        raise ValueError("this tokenizer does not say how two texts are read together: give one text")

    def encode_with_offsets(self, text: str) -> Offsets:
        """`encode` with parse_special, and the characters of `text` that each token covers."""
        utf8_bytes(text)
        tokens: Offsets = []
        for part, start in self._split(text):
            if part in self._id_of:
                tokens.append((self._id_of[part], start, start + len(part)))
            elif part:
                tokens += [(id, start + a, start + b) for id, a, b in self._plain_with_offsets(part, first=start == 0)]
        return tokens

    def _plain_with_offsets(self, text: str, first: bool) -> Offsets:
        """`encode_with_offsets` of a text without control ids, which is the `first` of its prompt or not."""
        ids = self.encode_batch([text])[0]
        return offsets_of_bytes(text, [(id, self.bytes_of(id)) for id in ids])

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {name: id for id, name in self.controls.items()}

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._id_of, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _split(self, text: str) -> Iterable[tuple[str, int]]:
        """`text` split at the names of control ids, which are parts too: (part, start)."""
        at = 0
        for match in self._control_pattern.finditer(text):
            yield text[at : match.start()], at
            yield match.group(), match.start()
            at = match.end()
        yield text[at:], at

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control ids are skipped, and invalid UTF-8 becomes U+FFFD.

        Raises ValueError for an id outside the vocabulary."""
        decoder = self.incremental_decoder()
        return "".join([decoder.push(id) for id in ids]) + decoder.close()

    def incremental_decoder(self) -> "IncrementalDecoder":
        """A decoder of one text, id by id."""
        return IncrementalDecoder(self)

    def decoder_after(self, ids: Sequence[int]) -> "IncrementalDecoder":
        """A decoder of a text that continues that of `ids`: some decoders leave out the space that begins a text, and a
        character may begin in one token and end in another."""
        decoder = self.incremental_decoder()
        for id in ids[-CONTEXT:]:
            decoder.push(id)
        return decoder

    def checked(self, id: int) -> int:
        """`id`. Raises ValueError where it is outside the vocabulary."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary: expected 0 to {self.vocab_size - 1}")
        return id

    def bytes_of(self, id: int) -> bytes:
        """The UTF-8 bytes of one id, possibly part of a character; none for a control id. Raises ValueError for an id
        outside the vocabulary."""
        return self.table[self.checked(id)]

    def piece(self, id: int) -> str:
        """One id for display: its text, <0x..> for part of a character, the name of a control id."""
        raw = self.bytes_of(id)
        if id in self.controls:
            return self.controls[id]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{b:02X}>" for b in raw)

    def special_tokens(self) -> dict[str, str]:
        """{"bos_token": "<s>", ..}: the names of the control ids with a role, as chat templates read them."""
        return {f"{role}_token": self.name(id) for role, id in self.roles.items()}

    def name(self, id: int) -> str:
        """The entry of an id in the vocabulary."""
        return self.controls.get(id) or self.piece(id)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer into `folder` (made if missing) for `load_tokenizer`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in {**self.files(), **self.given_template()}.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)

    def give_template(self, template: str) -> None:
        """Let `template` be the chat template, in place of its own, wherever it is saved."""
        self.chat_template = self._given_template = template

    def given_template(self) -> dict[str, bytes]:
        """The file of a template that it was given."""
        return {} if self._given_template is None else {TEMPLATE_FILE: self._given_template.encode()}

    def files(self) -> dict[str, bytes]:
        """The files that `save` writes: name, also within one folder, -> content."""
        raise NotImplementedError

    def hugging_face_files(self) -> dict[str, bytes]:
        """The files of a model directory from which transformers' PreTrainedTokenizerFast gives the same ids, and its
        AutoTokenizer beside most models (lm/pretrained/save.py). Raises ValueError where there are none."""
        raise ValueError(f"{type(self).__name__} has no form that transformers reads")

    def vocabulary(self) -> Vocabulary:
        """What llama.cpp is told of the tokenizer. Raises ValueError where it has no type that gives the same ids."""
        raise ValueError(f"llama.cpp has no type of vocabulary for {type(self).__name__}")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that two tokenizers share exactly when they save the same files."""
        return hashlib.sha256(repr(sorted(self.files().items())).encode()).hexdigest()[:16]


class IncrementalDecoder:
    """Decodes a text id by id: `push` returns the text that is complete so far, `close` the rest; joined they are
    `decode` of all ids (U+FFFD for invalid UTF-8, placed as Python and Rust do)."""

    def __init__(self, tokenizer: Tokenizer, errors: str = "replace"):
        self.tokenizer = tokenizer
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, id: int) -> str:
        """The characters that `id` completes. Raises ValueError for an id outside the vocabulary."""
        return self.utf8.decode(self.tokenizer.bytes_of(id))

    def close(self) -> str:
        """The incomplete rest."""
        return self.utf8.decode(b"", final=True)


def offsets_of_bytes(text: str, pieces: Sequence[tuple[int, bytes]]) -> Offsets:
    """The offsets of `pieces`, whose bytes joined are `text` in UTF-8; a byte counts as its whole character."""
    owner = [at for at, character in enumerate(text) for _ in character.encode()] + [len(text)]
    offsets, done = [], 0
    for id, raw in pieces:
        last = owner[done + len(raw) - 1] + 1 if raw else owner[done]
        offsets.append((id, owner[done], last))
        done += len(raw)
    return offsets


def first_token_bytes(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> int:
    """The UTF-8 bytes of `text` that the first of its `ids` covers: those that nothing predicts, without a token before
    it."""
    if not ids:
        return 0
    raw, data = tokenizer.bytes_of(ids[0]), text.encode()
    for own in (raw, raw.removeprefix(b" ")):  # some put a space before a text
        if raw and data.startswith(own):
            return len(own)
    tokens = tokenizer.encode_with_offsets(text)  # of a tokenizer that changes the text, its case for instance
    return len(text[: tokens[0][2]].encode()) if tokens else 0


def config_file(tokenizer: Tokenizer, original: bytes = b"{}") -> bytes:
    """A tokenizer_config.json for a tokenizer.json of transformers' generic class: the control ids with a role, the
    chat template, and the other fields of the `original` one."""
    template = {} if tokenizer.chat_template is None else {"chat_template": _templates(tokenizer.chat_template)}
    ours = {**tokenizer.special_tokens(), **template, "tokenizer_class": "PreTrainedTokenizerFast"}
    config = {"clean_up_tokenization_spaces": False, **json.loads(original), **ours}
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _templates(template: str | Mapping[str, str]) -> object:
    return template if isinstance(template, str) else [{"name": k, "template": v} for k, v in template.items()]
