"""Export of our tokenizers as tokenizer.json, which the `tokenizers` library, and so transformers, reads."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

SPACE = "▁"
NORMAL, USER_DEFINED = 1, 4  # SentencePiece's types of pieces
UNIGRAM = 1  # its model type
UNUSED = "<|unused_{}|>"  # the name of an id that nothing has


def add_controls(backend: Backend, controls: Mapping[int, str]) -> None:
    """Register control ids (id -> name) in `backend`. Those that its vocabulary lacks follow it, and ids between them
    are UNUSED ones: the library closes gaps."""
    new = {id: name for id, name in controls.items() if backend.token_to_id(name) is None}
    following = range(backend.get_vocab_size(), max(new, default=-1) + 1)
    names = [new.get(id, UNUSED.format(id)) for id in following] + [controls[id] for id in sorted({*controls} - {*new})]
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def set_prompt_template(
    backend: Backend, before: Sequence[tuple[str, int]], after: Sequence[tuple[str, int]], pairs: bool = False
) -> None:
    """Make `backend` put these (name, id) around a prompt; with `pairs` also around the first of two texts, and those
    of `after` behind the second, which is of type 1 (BERT)."""
    first, last = [name for name, _ in before], [name for name, _ in after]
    single = [*first, "$A", *last]
    pair = {"pair": [*single, "$B:1", *(f"{name}:1" for name in last)]} if pairs else {}
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[*before, *after], **pair)


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte (Radford et al. 2019): its own in Latin-1 where that is printable, else
    the next from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {b: chr(b) for b in own}
    others = (b for b in range(256) if b not in table)
    return table | {b: chr(0x100 + i) for i, b in enumerate(others)}


def from_bytes(controls: Mapping[int, str], bos: int) -> Backend:
    """One id per byte."""
    vocab = {character: byte for byte, character in byte_alphabet().items()}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    add_controls(backend, controls)
    set_prompt_template(backend, [(controls[bos], bos)], [])
    return backend


def from_characters(characters: str) -> Backend:
    """One id per character."""
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
    backend.decoder = decoders.Fuse()
    return backend


def regex(pattern: str) -> Regex:
    """Raises ValueError where `pattern` is none of Oniguruma's, which tokenizer.json has."""
    try:
        return Regex(pattern)
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(f"pattern {pattern!r} cannot stand in a tokenizer.json: {error}") from None


def from_ranks(
    ranks: Mapping[bytes, int], pattern: str, controls: Mapping[int, str], before: Sequence[tuple[str, int]]
) -> Backend:
    """Byte-level BPE by rank, as in tiktoken."""
    named = {rank: spell(raw) for raw, rank in ranks.items()} | dict(controls)
    unused = {id: UNUSED.format(id) for id in range(max(named)) if id not in named}
    vocab = {name: id for id, name in (named | unused).items()}
    pairs = [(spell(a), spell(b)) for a, b in merges(ranks)]
    backend = Backend(models.BPE(vocab=vocab, merges=pairs, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    add_controls(backend, unused | dict(controls))
    set_prompt_template(backend, before, [])
    return backend


@cache
def _alphabet() -> dict[int, str]:
    return byte_alphabet()


def spell(raw: bytes) -> str:
    """Bytes in GPT-2's alphabet."""
    return "".join(_alphabet()[b] for b in raw)


def merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The two pieces that each rank merges: its bytes, merged by all smaller ranks."""
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([b]) for b in piece]
        while len(parts) > 2:
            merged = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
            best = min(range(len(merged)), key=merged.__getitem__)
            if merged[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def from_sentencepiece(proto: Any, controls: Mapping[int, str], empty: Sequence[int]) -> Backend:
    """A SentencePiece model; `empty` are the ids of an empty prompt, the control ids around any. U+2581 in a text
    becomes a space there, from which the library cannot distinguish it."""
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    backend = (_unigram if trainer.model_type == UNIGRAM else _bpe)(proto, controls)
    backend.normalizer = _normalizer(spec)
    fallback = [decoders.ByteFallback()] if trainer.byte_fallback else []
    strip = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), *fallback, decoders.Fuse(), *strip])
    add_controls(backend, controls)
    marks = [(controls[id], id) for id in empty]
    eos = [mark for mark in marks if mark[1] == trainer.eos_id]
    set_prompt_template(backend, [mark for mark in marks if mark not in eos], eos)
    return backend


def _unigram(proto: Any, controls: Mapping[int, str]) -> Backend:
    """Its unigrams, control ids by their own names. A user-defined piece has no score in the file; SentencePiece gives
    it 0.1 per byte after the first. Pieces of other types never match a text: "<0x41>" is six characters."""
    never = -1e6
    scores = {NORMAL: lambda p: p.score, USER_DEFINED: lambda p: 0.1 * (len(p.piece.encode()) - 1)}
    scored = [
        (controls.get(id, p.piece), scores[p.type](p) if p.type in scores and id not in controls else never)
        for id, p in enumerate(proto.pieces)
    ]
    return Backend(models.Unigram(scored, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback))


def _bpe(proto: Any, controls: Mapping[int, str]) -> Backend:
    """Its BPE: pairs are merged in the order of the scores of the results, after user-defined pieces are split off.
    Control ids have their own names."""
    pieces = {id: p for id, p in enumerate(proto.pieces) if id not in controls}
    usable = {p.piece: (-p.score, id) for id, p in pieces.items() if p.type == NORMAL}
    merges = []
    for piece, order in usable.items():
        for a, b in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece))):
            if a in usable and b in usable:
                merges.append((order, usable[a][1], usable[b][1], a, b))
    own = {id: p.piece.replace(SPACE, " ") for id, p in pieces.items() if p.type == USER_DEFINED}
    names = {own.get(id) or controls.get(id, p.piece): id for id, p in enumerate(proto.pieces)}
    backend = Backend(
        models.BPE(
            vocab=names,
            merges=[(a, b) for *_, a, b in sorted(merges)],
            unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    backend.add_tokens([AddedToken(name, normalized=False) for name in own.values()])
    return backend


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
