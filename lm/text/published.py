"""Tokenizers of the `tokenizers` library: tokenizer.json, and GPT-2's and BERT's files converted to it.

`Published` wraps one, with the library's ids. `TokenizerConfig` holds what the other files of a model directory specify
about control ids, interpreted as transformers does.
"""

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from lm.text.export import byte_alphabet, set_prompt_template
from lm.text.protocol import ROLES, IncrementalDecoder, LazyTable, Offsets, Tokenizer, config_file, utf8_bytes
from lm.text.vocabulary import GPT2_PATTERN, Vocabulary, byte_level, sentencepiece_bpe

# The usual names of a role, for files without a tokenizer_config.json.
DEFAULT_NAMES = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "pad": ("<pad>", "[PAD]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
}
ANCHOR = "a"  # decoded before a token, to find the text that the token adds


class Published(Tokenizer):
    """A tokenizer of the `tokenizers` library; `files` are those it was read from, if any."""

    def __init__(self, backend: Backend, roles: Mapping[str, int], files: Mapping[str, bytes] | None = None):
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._files = backend, files
        added = backend.get_added_tokens_decoder()
        size = max([backend.get_vocab_size(with_added_tokens=False), *(id + 1 for id in added)])
        table = LazyTable(size, self._bytes_of)
        super().__init__(table, {id: token.content for id, token in added.items() if token.special}, roles)
        self.added = {id: token.content for id, token in added.items()}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            utf8_bytes(text)
        encode = self._backend.encode_batch_fast
        encodings = self._call(False, lambda: encode(list(texts), add_special_tokens=False))
        return [encoding.ids for encoding in encodings]

    def encode_prompt(self, text: str, parse_special: bool = False) -> list[int]:
        utf8_bytes(text)
        return self._call(parse_special, lambda: self._backend.encode(text)).ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        for text in (first, second):
            utf8_bytes(text)
        encoding = self._call(True, lambda: self._backend.encode(first, second))
        return encoding.ids, encoding.type_ids

    def encode_with_offsets(self, text: str) -> Offsets:
        utf8_bytes(text)
        encoding = self._call(True, lambda: self._backend.encode(text, add_special_tokens=False))
        return [(id, a, b) for id, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)]

    def _call(self, parse_special: bool, f: Callable[[], Any]) -> Any:
        """`f()` with the names of control ids read as ids or as text, which is mutable state of the library."""
        with _LOCK:
            self._backend.encode_special_tokens = not parse_special
            return f()

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode([self.checked(id) for id in ids], skip_special_tokens=True)

    def incremental_decoder(self) -> IncrementalDecoder:
        return IncrementalDecoder(self) if self.byte_level else PieceDecoder(self)

    @cached_property
    def byte_level(self) -> bool:
        """Whether pieces are spelled in GPT-2's byte alphabet."""
        return isinstance(self._backend.decoder, decoders.ByteLevel)

    @cached_property
    def byte_fallback(self) -> bool:
        """Whether pieces <0x..> are bytes."""
        return b'"ByteFallback"' in self._backend.decoder.__getstate__() if self._backend.decoder else False

    def token(self, id: int) -> str:
        """The entry of an id in the vocabulary; "" for an unused id."""
        return self._backend.id_to_token(self.checked(id)) or ""

    def _bytes_of(self, id: int) -> bytes:
        token = self.token(id)
        if id in self.controls or not token:
            return b""
        if self.byte_level:
            raw = [_BYTES.get(c, -1) for c in token]
            return token.encode() if -1 in raw else bytes(raw)
        return (
            bytes([int(token[3:5], 16)]) if self.is_byte(token) else self.decode_tokens([token], first=False).encode()
        )

    def is_byte(self, token: str) -> bool:
        """Whether a token is one byte, <0x..>."""
        return self.byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">")

    def decode_tokens(self, tokens: list[str], first: bool) -> str:
        """The text of tokens, which are the `first` of a text or not."""
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
        content = self._call(True, lambda: self._backend.to_str(pretty=True)).encode()
        config = config_file(self, files.get("tokenizer_config.json", b"{}"))
        return {"tokenizer.json": content, **files, "tokenizer_config.json": config}

    def vocabulary(self) -> Vocabulary:
        """GPT-2's byte-level BPE, or SentencePiece's with the scores that its merges imply."""
        data = self._call(True, lambda: json.loads(self._backend.to_str()))
        return (byte_level if self.byte_level else sentencepiece_bpe)(data, self.vocab_size)


_LOCK = threading.Lock()
_BYTES = {character: byte for byte, character in byte_alphabet().items()}


class PieceDecoder(IncrementalDecoder):
    """The library's decoders of text pieces, made incremental: the first piece of a text differs, and a run of <0x..>
    is decoded at its end."""

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
        return self.published.decode_tokens(tokens, first)


@dataclass(frozen=True)
class TokenizerConfig:
    """The content of tokenizer_config.json, special_tokens_map.json and the like.

    Args:
      fields: tokenizer_config.json over special_tokens_map.json.
      added_ids: added_tokens.json, token -> id.
      ids: role -> id in config.json and generation_config.json, for files that name no control ids.
      stop_ids: the eos ids of generation_config.json.
      chat_template: jinja2, or name -> jinja2.
    """

    fields: Mapping[str, Any]
    ids: Mapping[str, int]
    stop_ids: tuple[int, ...] = ()
    chat_template: str | Mapping[str, str] | None = None
    added_ids: Mapping[str, int] = field(default_factory=dict)

    def token_name(self, role: str) -> str | None:
        """The name of the control id of a role."""
        token = self.fields.get(f"{role}_token")
        return token["content"] if isinstance(token, dict) else token

    def added(self) -> dict[int, AddedToken]:
        """id -> a token beside the vocabulary: of `added_tokens_decoder`, else of added_tokens.json, in which those are
        special that have a role or are listed among `additional`."""
        if table := self.fields.get("added_tokens_decoder"):
            return {int(id): _added(token, bool(token.get("special"))) for id, token in table.items()}
        special = {token.content: token for token in self.special()}
        return {id: special.get(name) or AddedToken(name) for name, id in self.added_ids.items()}

    def special(self) -> list[AddedToken]:
        """The tokens with a role, then the `additional` ones: the order in which those without an id are given one."""
        with_role = [_added(self.fields[f"{role}_token"], True) for role in ROLES if self.token_name(role)]
        return with_role + self.additional()

    def additional(self) -> list[AddedToken]:
        """Control ids without a role."""
        lists = [self.fields.get(name) or [] for name in ("additional_special_tokens", "extra_special_tokens")]
        flat = [t for tokens in lists for t in (tokens.values() if isinstance(tokens, dict) else tokens)]
        return [_added(token, True) for token in flat]


def _added(token: str | Mapping[str, Any], special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special, normalized=False)
    flags = {name: bool(token.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(token["content"], special=special, **flags)


def build(backend: Backend, config: TokenizerConfig, files: Mapping[str, bytes] | None) -> Published:
    """The tokenizer of `backend` with the control ids of `config`. Raises ValueError where they contradict each
    other."""
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    for id, token in sorted(config.added().items()):
        if backend.token_to_id(token.content) is None:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != id:
            at = backend.token_to_id(token.content)
            file = "tokenizer_config.json" if config.fields.get("added_tokens_decoder") else "added_tokens.json"
            raise ValueError(f"{file} gives {token.content!r} the id {id}, the vocabulary {at}")
    backend.add_special_tokens([token for token in config.special() if token.content not in special])
    ids = {role: backend.token_to_id(config.token_name(role) or "") for role in ROLES}
    roles = {role: id for role, id in ids.items() if id is not None} or dict(config.ids) or _default_roles(backend)
    _add_bos_eos(backend, config, roles)
    tokenizer = Published(backend, roles, files)
    tokenizer.chat_template = config.chat_template
    tokenizer.stop_ids = tuple(dict.fromkeys((*tokenizer.stop_ids, *config.stop_ids)))
    return tokenizer


def _default_roles(backend: Backend) -> dict[str, int]:
    special = {t.content: id for id, t in backend.get_added_tokens_decoder().items() if t.special}
    ids = {role: next((special[n] for n in names if n in special), None) for role, names in DEFAULT_NAMES.items()}
    return {role: id for role, id in ids.items() if id is not None}


def _add_bos_eos(backend: Backend, config: TokenizerConfig, roles: Mapping[str, int]) -> None:
    """Apply add_bos_token and add_eos_token, which override the backend where they are given."""
    if "add_bos_token" not in config.fields and "add_eos_token" not in config.fields:
        return
    marks = {role: [(backend.id_to_token(roles[role]) or "", roles[role])] for role in ("bos", "eos") if role in roles}
    before = marks.get("bos", []) if config.fields.get("add_bos_token") else []
    set_prompt_template(backend, before, marks.get("eos", []) if config.fields.get("add_eos_token") else [])


# ---------------------------------------------------------------- other formats, converted

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN3_5_PATTERN = QWEN2_PATTERN.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}")


def byte_level_bpe(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], patterns: Sequence[str] = (GPT2_PATTERN,), **more: Any
) -> Backend:
    """GPT-2's byte-level BPE: text is split by each of `patterns` in turn, then merged. `more` are arguments of
    models.BPE."""
    backend = Backend(models.BPE(vocab=dict(vocab), merges=list(merges), **more))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    backend.decoder = decoders.ByteLevel()
    return backend


def wordpiece(vocab: Mapping[str, int], fields: Mapping[str, Any] | None = None) -> Backend:
    """BERT's WordPiece (Devlin et al. 2018, arXiv:1810.04805): words, lower-cased and without accents unless
    do_lower_case is false, then the longest piece first. Raises ValueError where [UNK] is missing."""
    fields = fields or {}
    unk = TokenizerConfig(fields, {}).token_name("unk") or "[UNK]"
    if unk not in vocab:
        raise ValueError(f"{unk} is not in the vocabulary: expected BERT's vocab.txt, one piece per line")
    backend = Backend(models.WordPiece(dict(vocab), unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=fields.get("tokenize_chinese_chars", True),
        strip_accents=fields.get("strip_accents"),
        lowercase=fields.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    names = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocab]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    cls, sep = (TokenizerConfig(fields, {}).token_name(role) or f"[{role.upper()}]" for role in ("cls", "sep"))
    if cls in vocab and sep in vocab:
        set_prompt_template(backend, [(cls, vocab[cls])], [(sep, vocab[sep])], pairs=True)
    return backend


def read_json(name: str, data: bytes) -> Any:
    """The content of the JSON file `name`. Raises ValueError where it is damaged."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged: {error}") from None
