"""What every tokenizer is: a table from id to bytes, an `encode`, and the ids that stand for no text.

Decoding, also one id at a time (`Stream`), follows from the table and from how a tokenizer joins its pieces (`Joiner`).
Tokenizers trained here give back every text exactly; published ones give what their own library gives.
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

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # of control ids, as Hugging Face names them
Spans = list[tuple[int, int, int]]  # (id, first character, one past the last) of each token of a text


def no_surrogates(text: str) -> bytes:
    """The UTF-8 of `text`. Raises ValueError for text that has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text has no UTF-8 form: lone surrogate {text[error.start]!r} at position {error.start}"
        ) from None


NONE: Mapping[Any, Any] = MappingProxyType({})


class Table(Sequence[bytes]):
    """The bytes of `size` ids, made by `bytes_of` when they are asked for: few of a large vocabulary ever are."""

    def __init__(self, size: int, bytes_of: Callable[[int], bytes]):
        self.size, self.bytes_of = size, bytes_of

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, id: Any) -> Any:
        return self.bytes_of(range(self.size)[id])


class Tokenizer:
    """Text to ids and back. `table` has the bytes of every id; `controls` are the ids that stand for no text (bos, eos,
    turn marks), with how they are written; `bos` .. `mask` those with a known role, or None; `stops` all that end a
    text."""

    chat_template: str | Mapping[str, str] | None = None  # jinja2, see lm/text/chat.py

    def __init__(self, table: Sequence[bytes], controls: Mapping[int, str] = NONE, roles: Mapping[str, int] = NONE):
        self.table, self.controls = table, dict(controls)
        self.vocab_size = len(table)
        self.roles = {role: roles[role] for role in ROLES if role in roles}
        self.bos, self.eos, self.unk = roles.get("bos"), roles.get("eos"), roles.get("unk")
        self.sep, self.pad = roles.get("sep"), roles.get("pad")
        self.cls, self.mask = roles.get("cls"), roles.get("mask")
        self.stops: tuple[int, ...] = () if self.eos is None else (self.eos,)
        for role, id in self.roles.items():
            if not 0 <= id < len(table):
                raise ValueError(f"the {role} id {id} is outside the vocabulary: expected 0 to {len(table) - 1}")

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """The ids of `text`, nothing added. The names of control ids ("</s>") are plain text unless `specials` asks
        for the ids. Raises ValueError for text that has no UTF-8 form (a lone surrogate)."""
        return [id for id, _, _ in self.spans(text)] if specials else self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel where that helps."""
        raise NotImplementedError

    def prompt(self, text: str, specials: bool = False) -> list[int]:
        """The ids of `text` with what its model expects around it: bos, [CLS] .. [SEP], or T5's eos."""
        return ([] if self.bos is None else [self.bos]) + self.encode(text, specials)

    def spans(self, text: str) -> Spans:
        """`encode` with specials, and which characters of `text` each token stands for."""
        no_surrogates(text)
        found: Spans = []
        for part, start in self._split(text):
            if part in self._named:
                found.append((self._named[part], start, start + len(part)))
            elif part:
                found += [(id, start + a, start + b) for id, a, b in self.spans_plain(part, first=start == 0)]
        return found

    def spans_plain(self, text: str, first: bool) -> Spans:
        """`spans` of a text without control ids, `first` where none comes before it."""
        ids = self.encode_batch([text])[0]
        return spans_of_bytes(text, [(id, self.bytes_of(id)) for id in ids])

    @cached_property
    def _named(self) -> dict[str, int]:
        return {name: id for id, name in self.controls.items()}

    @cached_property
    def _names(self) -> re.Pattern[str]:
        longest_first = sorted(self._named, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _split(self, text: str) -> Iterable[tuple[str, int]]:
        """The names of controls in `text` and what is between them, each with its first position."""
        at = 0
        for match in self._names.finditer(text):
            yield text[at : match.start()], at
            yield match.group(), match.start()
            at = match.end()
        yield text[at:], at

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control ids are skipped, what is no UTF-8 becomes U+FFFD.

        Raises ValueError for an id outside the vocabulary."""
        joiner = self.joiner()
        return "".join([joiner.push(self.checked(id)) for id in ids]) + joiner.close()

    def joiner(self) -> "Joiner":
        """How pieces become text, from its first id on."""
        return Joiner(self)

    def checked(self, id: int) -> int:
        """`id`. Raises ValueError where it is outside the vocabulary."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"token id {id} is outside the vocabulary: expected 0 to {self.vocab_size - 1}")
        return id

    def bytes_of(self, id: int) -> bytes:
        """The UTF-8 bytes of one id, possibly a part of a character; none for a control."""
        return self.table[self.checked(id)]

    def piece(self, id: int) -> str:
        """How one id reads to a person: its text, <0x..> for a byte of a longer character, the name of a control."""
        raw = self.bytes_of(id)
        if id in self.controls:
            return self.controls[id]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{b:02X}>" for b in raw)

    def special_tokens(self) -> dict[str, str]:
        """{"bos_token": "<s>", ..}: how the controls with a role are written, as chat templates ask for them."""
        return {f"{role}_token": self.name(id) for role, id in self.roles.items()}

    def name(self, id: int) -> str:
        """How an id is written in its vocabulary."""
        return self.controls.get(id) or self.piece(id)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer into `folder` (made if missing) for `load_tokenizer`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files().items():
            (folder / name).write_bytes(data)

    def files(self) -> dict[str, bytes]:
        """What `save` writes: file name to content."""
        raise NotImplementedError

    def hugging_face_files(self) -> dict[str, bytes]:
        """The files of a model directory from which transformers' AutoTokenizer gives the same ids."""
        raise ValueError(f"{type(self).__name__} has no form that transformers reads")

    @property
    def fingerprint(self) -> str:
        """16 hex digits of its content: the same for two tokenizers exactly when they save the same files."""
        return hashlib.sha256(repr(sorted(self.files().items())).encode()).hexdigest()[:16]


class Joiner:
    """Bytes of pieces to text, whole characters as soon as they are complete (U+FFFD as Python and Rust place it)."""

    def __init__(self, tokenizer: Tokenizer, errors: str = "replace"):
        self.tokenizer = tokenizer
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors)

    def push(self, id: int) -> str:
        """The text that `id` completes."""
        return self.utf8.decode(self.tokenizer.bytes_of(id))

    def close(self) -> str:
        """What was held back."""
        return self.utf8.decode(b"", final=True)


class Stream:
    """Decodes ids as they arrive: `push` returns the text that is complete so far, `close` the rest. Joined they are
    `decode` of all the ids."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._joiner = tokenizer.joiner()

    def push(self, id: int) -> str:
        return self._joiner.push(self._tokenizer.checked(id))

    def close(self) -> str:
        return self._joiner.close()


def spans_of_bytes(text: str, pieces: Sequence[tuple[int, bytes]]) -> Spans:
    """Where the bytes of `pieces` lie in `text`, whose UTF-8 they are: a byte belongs to its whole character."""
    owner = [at for at, character in enumerate(text) for _ in character.encode()] + [len(text)]
    found, done = [], 0
    for id, raw in pieces:
        last = owner[done + len(raw) - 1] + 1 if raw else owner[done]
        found.append((id, owner[done], last))
        done += len(raw)
    return found


def config_file(tokenizer: Tokenizer, original: bytes = b"{}") -> bytes:
    """A tokenizer_config.json for a tokenizer.json that needs no class of its own: the controls with a role, the chat
    template, and what the `original` one says beside."""
    template = {} if tokenizer.chat_template is None else {"chat_template": _templates(tokenizer.chat_template)}
    ours = {**tokenizer.special_tokens(), **template, "tokenizer_class": "PreTrainedTokenizerFast"}
    config = {"clean_up_tokenization_spaces": False, **json.loads(original), **ours}
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _templates(template: str | Mapping[str, str]) -> object:
    return template if isinstance(template, str) else [{"name": k, "template": v} for k, v in template.items()]
