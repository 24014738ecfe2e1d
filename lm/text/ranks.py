"""tiktoken's rank files: a line for each piece, its bytes in base64 and its rank, which is also its id.

The file has neither the pattern that splits a text nor the control ids: published encodings are recognised by their
size, and those that share a file by its name or the model beside it.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tiktoken

from lm.text import export
from lm.text.protocol import Tokenizer, config_file, utf8_bytes
from lm.text.published import GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN
from lm.text.vocabulary import CONTROL, NORMAL, UNUSED, Vocabulary

CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?![\s\S])|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


@dataclass(frozen=True)
class EncodingSpec:
    """What belongs to an encoding besides its ranks. `add_bos`: whether a prompt begins with bos."""

    pattern: str
    controls: Mapping[int, str]
    roles: Mapping[str, int]
    add_bos: bool = False


def _llama3() -> EncodingSpec:
    first = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    first += ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"]
    first += ["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    names = first + [f"<|reserved_special_token_{i + 3}|>" for i in range(256 - len(first))]
    return EncodingSpec(LLAMA3_PATTERN, dict(enumerate(names, 128000)), {"bos": 128000, "eos": 128001}, add_bos=True)


def _single_end(pattern: str, end: int, controls: Mapping[int, str] | None = None) -> EncodingSpec:
    """An encoding with one end of text, which is bos too."""
    return EncodingSpec(pattern, {end: "<|endoftext|>"} | dict(controls or {}), {"bos": end, "eos": end})


def _reserved(name: str, first: int, count: int) -> list[str]:
    return [f"<|{name}reserved_special_token_{i}|>" for i in range(first, first + count)]


def _llama4() -> EncodingSpec:
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    names += [
        "<|header_start|>",
        "<|header_end|>",
        "<|eom|>",
        "<|eot|>",
        "<|step|>",
        *_reserved("text_post_train_", 0, 6),
    ]
    names += ["<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>", *_reserved("text_post_train_", 8, 61)]
    names += ["<|image_start|>", "<|image_end|>", *_reserved("vision_", 0, 2), "<|tile_x_separator|>"]
    names += [
        "<|tile_y_separator|>",
        *_reserved("vision_", 2, 4),
        "<|image|>",
        *_reserved("vision_", 6, 1),
        "<|patch|>",
    ]
    names += [*_reserved("vision_", 7, 1041), *_reserved("reasoning_", 0, 8)]
    names += ["<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"]
    names += _reserved("", 0, 2048 - len(names))
    roles = {"bos": 200000, "eos": 200001, "pad": 200018}
    return EncodingSpec(O200K_PATTERN, dict(enumerate(names, 200000)), roles, add_bos=True)


def _harmony() -> EncodingSpec:
    """gpt-oss's (2508.10925): o200k_base's ranks with the control ids of the harmony format."""
    names = {199998: "startoftext", 199999: "endoftext", 200002: "return", 200003: "constrain", 200005: "channel"}
    names |= {200006: "start", 200007: "end", 200008: "message", 200012: "call", 200018: "endofprompt"}
    controls = {id: f"<|{names.get(id, f'reserved_{id}')}|>" for id in range(199998, 201088)}
    return EncodingSpec(O200K_PATTERN, controls, {"bos": 199998, "eos": 200002, "pad": 199999})


# number of ranks -> the published encoding
ENCODINGS = {
    50256: _single_end(GPT2_PATTERN, 50256),  # GPT-2, r50k_base
    50280: _single_end(GPT2_PATTERN, 50256),  # p50k_base
    100256: _single_end(  # cl100k_base
        CL100K_PATTERN,
        100257,
        {100258: "<|fim_prefix|>", 100259: "<|fim_middle|>", 100260: "<|fim_suffix|>", 100276: "<|endofprompt|>"},
    ),
    128000: _llama3(),
    151643: EncodingSpec(  # Qwen
        QWEN2_PATTERN,
        {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"},
        {"eos": 151643, "pad": 151643},
    ),
    199998: _single_end(O200K_PATTERN, 199999, {200018: "<|endofprompt|>"}),  # o200k_base
    200000: _llama4(),
}
HARMONY = "o200k_harmony"
NAMED = {HARMONY: _harmony()}  # encodings with the ranks of another, by the name of their file
OF_MODELS = {"gpt_oss": HARMONY}  # or by the model_type of the model beside it


def parse_ranks(data: bytes) -> dict[bytes, int]:
    """The ranks of a file. Raises ValueError for a malformed line, a byte without a rank, or a rank used twice."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ValueError(f"line {number} is {line[:40]!r}: expected a piece in base64 and its rank") from None
    missing = [b for b in range(256) if bytes([b]) not in ranks]
    if missing:
        raise ValueError(f"no rank for the byte 0x{missing[0]:02X}: every single byte needs one")
    if len(set(ranks.values())) != len(ranks):
        raise ValueError("two pieces have the same rank")
    return ranks


class TiktokenTokenizer(Tokenizer):
    """Byte-level BPE by rank, through `tiktoken`. `spec` None: that of a published encoding, recognised by its size.

    Raises ValueError for damaged ranks, or an unknown number of them."""

    def __init__(self, data: bytes, spec: EncodingSpec | None = None):
        ranks = parse_ranks(data)
        if spec is None and len(ranks) not in ENCODINGS:
            raise ValueError(f"{len(ranks)} ranks are none of {', '.join(map(str, ENCODINGS))}: give the pattern too")
        self._data, self._ranks, self.spec = data, ranks, spec or ENCODINGS[len(ranks)]
        raw = {rank: piece for piece, rank in ranks.items()}
        top = max([*raw, *self.spec.controls])
        super().__init__([raw.get(id, b"") for id in range(top + 1)], self.spec.controls, self.spec.roles)
        names = {name: id for id, name in self.spec.controls.items()}
        try:
            self._encoding = tiktoken.Encoding(
                "ranks", pat_str=self.spec.pattern, mergeable_ranks=ranks, special_tokens=names
            )
        except ValueError as error:
            raise ValueError(f"pattern {self.spec.pattern!r} is no regular expression: {error}") from None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            utf8_bytes(text)
        if len(texts) == 1:
            return [self._encoding.encode_ordinary(texts[0])]
        return self._encoding.encode_ordinary_batch(list(texts))

    def encode_prompt(self, text: str, parse_special: bool = False) -> list[int]:
        return ([self.bos] if self.spec.add_bos and self.bos is not None else []) + self.encode(text, parse_special)

    def files(self) -> dict[str, bytes]:
        about = {"pattern": self.spec.pattern, "add_bos": self.spec.add_bos, "roles": dict(self.spec.roles)}
        text = json.dumps({**about, "controls": dict(self.spec.controls)}, indent=1)
        return {"ranks.tiktoken": self._data, "ranks.json": text.encode()}

    def hugging_face_files(self) -> dict[str, bytes]:
        before = [(self.controls[id], id) for id in self.encode_prompt("")]
        backend = export.from_ranks(self._ranks, self.spec.pattern, self.controls, before)
        config = config_file(self)
        return {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": config}

    def vocabulary(self) -> Vocabulary:
        """GPT-2's with the merges that the ranks imply."""
        merges = list(export.merges(self._ranks))
        names = {rank: export.spell(raw) for raw, rank in self._ranks.items()} | self.controls
        types = [CONTROL if id in self.controls else NORMAL if id in names else UNUSED for id in range(self.vocab_size)]
        whole = len(merges) < sum(len(raw) > 1 for raw in self._ranks)  # some are found as whole words alone
        return Vocabulary(
            "gpt2",
            [names.get(id, "") for id in range(self.vocab_size)],
            types,
            merges=[f"{export.spell(a)} {export.spell(b)}" for a, b in merges],
            patterns=(self.spec.pattern,),
            ignore_merges=True if whole else None,
        )


def load_saved(ranks: bytes, about: bytes) -> TiktokenTokenizer:
    """The tokenizer of the two files of `TiktokenTokenizer.files`. Raises ValueError where they are damaged."""
    try:
        spec = json.loads(about)
        controls = {int(id): str(name) for id, name in spec["controls"].items()}
        roles = {str(role): int(id) for role, id in spec["roles"].items()}
        encoding = EncodingSpec(str(spec["pattern"]), controls, roles, bool(spec["add_bos"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"ranks.json is damaged: {error}") from None
    return TiktokenTokenizer(ranks, encoding)
