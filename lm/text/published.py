"""Tokenizers of the `tokenizers` library: tokenizer.json, and what GPT-2's and BERT's files say in its terms.

`Published` wraps one. Its ids are the library's; `Settings` are what the files of a model directory say about control
ids, read as transformers reads them.
"""

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lm.text.export import byte_alphabet, surround
from lm.text.protocol import ROLES, Joiner, Spans, Table, Tokenizer, config_file, no_surrogates

# How a role is usually written, for files that come without a tokenizer_config.json.
USUAL = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "pad": ("<pad>", "[PAD]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]",),
}
ANCHOR = "a"  # a token before another, to see what that one adds


class Published(Tokenizer):
    """A tokenizer of the `tokenizers` library. `files` are those it was read from, where there are any."""

    def __init__(self, backend: Backend, roles: Mapping[str, int], files: Mapping[str, bytes] | None = None):
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._files = backend, files
        added = backend.get_added_tokens_decoder()
        size = max([backend.get_vocab_size(with_added_tokens=False), *(id + 1 for id in added)])
        table = Table(size, self._bytes_of)
        super().__init__(table, {id: token.content for id, token in added.items() if token.special}, roles)
        self.added = {id: token.content for id, token in added.items()}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            no_surrogates(text)
        coded = self._as(False, lambda: self._backend.encode_batch_fast(list(texts), add_special_tokens=False))
        return [one.ids for one in coded]

    def prompt(self, text: str, specials: bool = False) -> list[int]:
        no_surrogates(text)
        return self._as(specials, lambda: self._backend.encode(text)).ids

    def spans(self, text: str) -> Spans:
        no_surrogates(text)
        coded = self._as(True, lambda: self._backend.encode(text, add_special_tokens=False))
        return [(id, a, b) for id, (a, b) in zip(coded.ids, coded.offsets, strict=True)]

    def _as(self, specials: bool, do: Callable[[], Any]) -> Any:
        """`do()` with the names of controls as ids or as text, which the library keeps as a state of its own."""
        with _LOCK:
            self._backend.encode_special_tokens = not specials
            return do()

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode([self.checked(id) for id in ids], skip_special_tokens=True)

    def joiner(self) -> Joiner:
        return Joiner(self) if self.byte_level else PieceJoiner(self)

    @cached_property
    def byte_level(self) -> bool:
        """Whether pieces are bytes in GPT-2's alphabet."""
        return isinstance(self._backend.decoder, decoders.ByteLevel)

    @cached_property
    def byte_fallback(self) -> bool:
        """Whether <0x..> are bytes."""
        return b'"ByteFallback"' in self._backend.decoder.__getstate__() if self._backend.decoder else False

    def token(self, id: int) -> str:
        """An id as the vocabulary has it; nothing for a hole."""
        return self._backend.id_to_token(self.checked(id)) or ""

    def _bytes_of(self, id: int) -> bytes:
        token = self.token(id)
        if id in self.controls or not token:
            return b""
        if self.byte_level:
            raw = [_BYTES.get(c, -1) for c in token]
            return token.encode() if -1 in raw else bytes(raw)
        return bytes([int(token[3:5], 16)]) if self.is_byte(token) else self.joined([token], first=False).encode()

    def is_byte(self, token: str) -> bool:
        """Whether a token is <0x..>, one byte."""
        return self.byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    def joined(self, tokens: list[str], first: bool) -> str:
        """The text of tokens, `first` where nothing comes before them."""
        decoder = self._backend.decoder
        if decoder is None:
            return " ".join(tokens) if first else "".join(" " + token for token in tokens)
        return decoder.decode(tokens) if first else decoder.decode([ANCHOR, *tokens])[len(decoder.decode([ANCHOR])) :]

    def files(self) -> dict[str, bytes]:
        return self.hugging_face_files() if self._files is None else dict(self._files)

    def hugging_face_files(self) -> dict[str, bytes]:
        files = dict(self._files or {})
        if "tokenizer.json" in files and "tokenizer_config.json" in files:
            return files
        whole = self._as(True, lambda: self._backend.to_str(pretty=True)).encode()
        config = config_file(self, files.get("tokenizer_config.json", b"{}"))
        return {"tokenizer.json": whole, **files, "tokenizer_config.json": config}


_LOCK = threading.Lock()
_BYTES = {character: byte for byte, character in byte_alphabet().items()}


class PieceJoiner(Joiner):
    """As the library's decoders join pieces that are text: the first piece differs, and a run of <0x..> is text only
    as a whole."""

    def __init__(self, tokenizer: Published):
        super().__init__(tokenizer)
        self.published, self.run, self.first = tokenizer, list[str](), True

    def push(self, id: int) -> str:
        token = self.published.token(id)
        if id in self.published.controls or not token:
            return ""
        if self.published.is_byte(token):
            self.run.append(token)
            return ""
        return self.close() + self._joined([token])

    def close(self) -> str:
        run, self.run = self.run, []
        return self._joined(run) if run else ""

    def _joined(self, tokens: list[str]) -> str:
        first, self.first = self.first, False
        return self.published.joined(tokens, first)


@dataclass(frozen=True)
class Settings:
    """What tokenizer_config.json, special_tokens_map.json and the like say. `ids`: the roles' ids in config.json and
    generation_config.json, for files that name no control; `stops`: generation_config.json's."""

    config: Mapping[str, Any]
    ids: Mapping[str, int]
    stops: tuple[int, ...] = ()
    chat_template: str | Mapping[str, str] | None = None

    def named(self, role: str) -> str | None:
        """How the control of a role is written."""
        found = self.config.get(f"{role}_token")
        return found["content"] if isinstance(found, dict) else found

    def added(self) -> dict[int, AddedToken]:
        """`added_tokens_decoder`: tokens beside the vocabulary."""
        table = self.config.get("added_tokens_decoder") or {}
        return {int(id): _added(token, bool(token.get("special"))) for id, token in table.items()}

    def more(self) -> list[AddedToken]:
        """Control ids without a role."""
        lists = [self.config.get(name) or [] for name in ("additional_special_tokens", "extra_special_tokens")]
        flat = [t for tokens in lists for t in (tokens.values() if isinstance(tokens, dict) else tokens)]
        return [_added(token, True) for token in flat]


def _added(token: str | Mapping[str, Any], special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special, normalized=False)
    flags = {name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(token["content"], special=special, **flags)


def build(backend: Backend, settings: Settings, files: Mapping[str, bytes] | None) -> Published:
    """`backend` with what `settings` add to it."""
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    for id, token in sorted(settings.added().items()):
        if backend.token_to_id(token.content) is None:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != id:
            at = backend.token_to_id(token.content)
            raise ValueError(f"tokenizer_config.json gives {token.content!r} the id {id}, the vocabulary {at}")
    wanted = [_added(settings.config[f"{r}_token"], True) for r in ROLES if settings.named(r)] + settings.more()
    backend.add_special_tokens([token for token in wanted if token.content not in special])
    found = {role: backend.token_to_id(settings.named(role) or "") for role in ROLES}
    roles = {role: id for role, id in found.items() if id is not None} or dict(settings.ids) or _usual(backend)
    _around(backend, settings, roles)
    tokenizer = Published(backend, roles, files)
    tokenizer.chat_template = settings.chat_template
    tokenizer.stops = tuple(dict.fromkeys((*tokenizer.stops, *settings.stops)))
    return tokenizer


def _usual(backend: Backend) -> dict[str, int]:
    special = {t.content: id for id, t in backend.get_added_tokens_decoder().items() if t.special}
    found = {role: next((special[n] for n in names if n in special), None) for role, names in USUAL.items()}
    return {role: id for role, id in found.items() if id is not None}


def _around(backend: Backend, settings: Settings, roles: Mapping[str, int]) -> None:
    """add_bos_token and add_eos_token, which overrule the file where they are given."""
    if "add_bos_token" not in settings.config and "add_eos_token" not in settings.config:
        return
    marks = {role: [(backend.id_to_token(roles[role]) or "", roles[role])] for role in ("bos", "eos") if role in roles}
    before = marks.get("bos", []) if settings.config.get("add_bos_token") else []
    surround(backend, before, marks.get("eos", []) if settings.config.get("add_eos_token") else [])


# ---------------------------------------------------------------- what other files say, in the library's terms

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_pairs(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], patterns: Sequence[str] = (GPT2_PATTERN,), **more: Any
) -> Backend:
    """GPT-2's byte pairs: text is cut by each of `patterns` in turn, then merged. `more` goes to the model."""
    backend = Backend(models.BPE(vocab=dict(vocab), merges=list(merges), **more))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last])
    backend.decoder = decoders.ByteLevel()
    return backend


def word_pieces(vocab: Mapping[str, int], config: Mapping[str, Any] | None = None) -> Backend:
    """BERT's pieces (Devlin et al. 2018, arXiv:1810.04805): words, lower case and without accents unless do_lower_case
    says otherwise, then the longest piece first."""
    config = config or {}
    unk = Settings(config, {}).named("unk") or "[UNK]"
    if unk not in vocab:
        raise ValueError(f"{unk} is not in the vocabulary: expected BERT's vocab.txt, one piece a line")
    backend = Backend(models.WordPiece(dict(vocab), unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    names = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocab]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    cls, sep = (Settings(config, {}).named(role) or f"[{role.upper()}]" for role in ("cls", "sep"))
    if cls in vocab and sep in vocab:
        surround(backend, [(cls, vocab[cls])], [(sep, vocab[sep])])
    return backend


def read_json(name: str, data: bytes) -> Any:
    """The content of a JSON file. Raises ValueError with its name."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}") from None
