"""Filling the gaps of a text: the masks that an encoder reads, and the spans that sentinels stand for in a text for an
encoder-decoder (1910.10683, section 3.1.4).

    fill_masks(model, "The capital of France is [MASK].")
    fill_spans(model, "The <extra_id_0> walks in <extra_id_1> park", 20, Sampling(0))
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from lm.decode.sampling import Sampling
from lm.model.output import NoOutput
from lm.pretrained.model import Pretrained
from lm.text.tokenizer import Tokenizer

MASK = "[MASK]"  # where the tokenizer has no name for it
SENTINEL = re.compile(r"<extra_id_\d+>")


class FilledMasks(NamedTuple):
    """The `text` with the likeliest token in place of each mask, and for each the likeliest (text, probability)."""

    text: str
    candidates: list[list[tuple[str, float]]]


def fill_masks(model: Pretrained, text: str, n: int = 1) -> FilledMasks:
    """Fill the masks of `text`, each by itself, with `n` candidates each.

    Raises ValueError for a model that is no encoder of text with masks, and a text without any."""
    tokenizer, config = _tokenizer(model), model.config
    mask = model.markers.get(MASK) if tokenizer.mask is None else tokenizer.mask
    if config.causal or mask is None or isinstance(config.output, NoOutput):
        raise ValueError("this model fills no masks: expected an encoder that was trained on masks, with its output")
    ids = encode(model, text)
    places = [i for i, id in enumerate(ids) if id == mask]
    if not places:
        name = MASK if tokenizer.mask is None else tokenizer.name(mask)
        raise ValueError(f"the prompt has no {name}: an encoder fills masks, and continues no text")
    logits = model.logits([ids])[0, np.array(places), : tokenizer.vocab_size]
    probs = np.asarray(jax.nn.softmax(logits))
    best = np.argsort(-probs, axis=1, kind="stable")[:, :n]
    candidates = [
        [(tokenizer.decode([id]), float(p[id])) for id in row.tolist()] for p, row in zip(probs, best, strict=True)
    ]
    for place, row in zip(places, best, strict=True):
        ids[place] = int(row[0])
    return FilledMasks(tokenizer.decode(ids), candidates)


def has_sentinels(model: Pretrained, text: str) -> bool:
    """Whether `text` has gaps for an encoder-decoder to fill."""
    return model.config.has_encoder and any(name in _sentinels(model) for name in SENTINEL.findall(text))


def fill_spans(
    model: Pretrained, text: str, max_new_tokens: int, sampling: Sampling, seed: int = 0, n: int = 1
) -> list[str]:
    """`n` texts in which what the model wrote for each sentinel stands in its place; a sentinel for which it wrote
    nothing stays.

    Args:
      model: an encoder-decoder.
      text: with sentinels, <extra_id_0> first.
      max_new_tokens: the most tokens of all spans together.
      sampling: how to draw.
      seed: of the draws.
      n: how many texts.

    Raises:
      ValueError: for a text that does not fit the context."""
    tokenizer, sentinels = _tokenizer(model), _sentinels(model)
    limit = max(tokenizer.vocab_size, *(id + 1 for id in sentinels.values()))
    if model.config.vocab > limit:
        sampling = replace(sampling, vocab_size=limit)
    rows: list[list[int]] = [[] for _ in range(n)]
    for new in model.stream_ids([encode(model, text)] * n, max_new_tokens, sampling, seed):
        for row, ids in zip(rows, new, strict=True):
            row += ids
    names = {id: name for name, id in sentinels.items()}
    return [_filled(text, _spans(row, names), tokenizer) for row in rows]


def _spans(ids: Sequence[int], names: dict[int, str]) -> dict[str, list[int]]:
    """What follows each sentinel, by its name."""
    spans: dict[str, list[int]] = {}
    name = ""
    for id in ids:
        if id in names:
            name = names[id]
            spans.setdefault(name, [])
        elif name:
            spans[name].append(id)
    return spans


def _filled(text: str, spans: dict[str, list[int]], tokenizer: Tokenizer) -> str:
    return SENTINEL.sub(lambda found: tokenizer.decode(spans[found[0]]) if found[0] in spans else found[0], text)


def encode(model: Pretrained, text: str) -> list[int]:
    """The ids of `text` as the model reads them, in which the names of control ids, masks and sentinels are those ids;
    the encoder of a run of ours reads an eos at the end. A text that has its bos (a chat template's) gets no other."""
    ids, bos = _encoded(model, text), _tokenizer(model).bos
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def _encoded(model: Pretrained, text: str) -> list[int]:
    tokenizer = _tokenizer(model)
    if not model.markers:
        return tokenizer.encode_prompt(text, parse_special=True)
    by_length = sorted(model.markers, key=len, reverse=True)
    first, *rest = re.split(f"({'|'.join(map(re.escape, by_length))})", text)
    ids = tokenizer.encode_prompt(first, parse_special=True)
    for part in rest:
        ids += [model.markers[part]] if part in model.markers else tokenizer.encode(part, parse_special=True)
    return ids + [tokenizer.eos] if model.config.has_encoder and tokenizer.eos is not None else ids


def _sentinels(model: Pretrained) -> dict[str, int]:
    names = {name: id for id, name in _tokenizer(model).controls.items()} | dict(model.markers)
    return {name: id for name, id in names.items() if SENTINEL.fullmatch(name)}


def _tokenizer(model: Pretrained) -> Tokenizer:
    if model.tokenizer is None:
        raise ValueError("this model came without a tokenizer: take a directory that has one")
    return model.tokenizer
