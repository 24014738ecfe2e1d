"""tiktoken's rank files: one line a piece, its bytes in base64 and its rank, which is also its id.

The file has neither the pattern that cuts a text nor the control ids. Known vocabularies are told by their size.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tiktoken

from lm.text import export
from lm.text.protocol import Tokenizer, config_file, no_surrogates
from lm.text.published import GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN

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
class Known:
    """What a vocabulary's authors publish beside its ranks. `add_bos`: whether a prompt begins with bos."""

    pattern: str
    controls: Mapping[int, str]
    roles: Mapping[str, int]
    add_bos: bool = False


def _llama3() -> Known:
    first = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    first += ["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"]
    first += ["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    names = first + [f"<|reserved_special_token_{i + 3}|>" for i in range(256 - len(first))]
    return Known(LLAMA3_PATTERN, dict(enumerate(names, 128000)), {"bos": 128000, "eos": 128001}, add_bos=True)


def _ends(pattern: str, end: int, controls: Mapping[int, str] | None = None) -> Known:
    """One end of text, which is bos too."""
    return Known(pattern, {end: "<|endoftext|>"} | dict(controls or {}), {"bos": end, "eos": end})


# number of ranks -> what belongs to them
KNOWN = {
    50256: _ends(GPT2_PATTERN, 50256),  # GPT-2, r50k_base
    50280: _ends(GPT2_PATTERN, 50256),  # p50k_base
    100256: _ends(  # cl100k_base
        CL100K_PATTERN,
        100257,
        {100258: "<|fim_prefix|>", 100259: "<|fim_middle|>", 100260: "<|fim_suffix|>", 100276: "<|endofprompt|>"},
    ),
    128000: _llama3(),
    151643: Known(  # Qwen
        QWEN2_PATTERN,
        {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"},
        {"eos": 151643, "pad": 151643},
    ),
    199998: _ends(O200K_PATTERN, 199999, {200018: "<|endofprompt|>"}),  # o200k_base
}


def parse(data: bytes) -> dict[bytes, int]:
    """The ranks of a file. Raises ValueError where a line is none, or a single byte has no rank."""
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


class Ranks(Tokenizer):
    """Byte pairs by rank, through `tiktoken`. `known` is what the file does not say; None: told by its size.

    Raises ValueError for ranks that are damaged, or of unknown size."""

    def __init__(self, data: bytes, known: Known | None = None):
        ranks = parse(data)
        if known is None and len(ranks) not in KNOWN:
            raise ValueError(f"{len(ranks)} ranks are none of {', '.join(map(str, KNOWN))}: give the pattern too")
        self._data, self._ranks, self.known = data, ranks, known or KNOWN[len(ranks)]
        raw = {rank: piece for piece, rank in ranks.items()}
        top = max([*raw, *self.known.controls])
        super().__init__([raw.get(id, b"") for id in range(top + 1)], self.known.controls, self.known.roles)
        names = {name: id for id, name in self.known.controls.items()}
        self._encoding = tiktoken.Encoding(
            "ranks", pat_str=self.known.pattern, mergeable_ranks=ranks, special_tokens=names
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            no_surrogates(text)
        if len(texts) == 1:
            return [self._encoding.encode_ordinary(texts[0])]
        return self._encoding.encode_ordinary_batch(list(texts))

    def prompt(self, text: str, specials: bool = False) -> list[int]:
        return ([self.bos] if self.known.add_bos and self.bos is not None else []) + self.encode(text, specials)

    def files(self) -> dict[str, bytes]:
        about = {"pattern": self.known.pattern, "add_bos": self.known.add_bos, "roles": dict(self.known.roles)}
        text = json.dumps({**about, "controls": dict(self.known.controls)}, indent=1)
        return {"ranks.tiktoken": self._data, "ranks.json": text.encode()}

    def hugging_face_files(self) -> dict[str, bytes]:
        before = [(self.controls[id], id) for id in self.prompt("")]
        backend = export.from_ranks(self._ranks, self.known.pattern, self.controls, before)
        config = config_file(self)
        return {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": config}


def saved(ranks: bytes, about: bytes) -> Ranks:
    """What `Ranks.files` wrote."""
    found = json.loads(about)
    controls = {int(id): name for id, name in found["controls"].items()}
    return Ranks(ranks, Known(found["pattern"], controls, found["roles"], found["add_bos"]))
