"""Texts under a model of scores: their scores and labels, and the labels of their tokens.

scores, labels = classify(model, [{"text": "A fine film."}, {"text": "It rains.", "text_pair": "It is wet."}])
tokens = classify_tokens(model, [{"text": "Angela Merkel was in Paris."}])
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.pretrained.labels import Found
from lm.pretrained.model import Pretrained

PAIR = "text_pair"  # of a record: what is read after its text


class TokenLabel(NamedTuple):
    """The label of one token: its text, the characters of the whole that it covers, and the label's probability."""

    text: str
    start: int
    stop: int
    label: str
    probability: float


def classify(model: Pretrained, records: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, list[list[Found] | None]]:
    """The scores of records as `Pretrained.score` has them, and the labels of each, None where scores are numbers of
    their own. An encoder reads a text, and a text_pair after it where there is one.

    Raises ValueError as `Pretrained.score`, and for a record that is no text."""
    if model.config.causal:
        scores = model.score(list(records))
    else:
        rows, types = zip(*(_read(model, i, record) for i, record in enumerate(records)), strict=True)
        scores = model.score_ids(rows, types if model.config.token_types else None)
    if not model.labels.chosen:
        return scores, [None] * len(records)
    return scores, [model.labels.of(np.atleast_1d(row)) for row in scores]


def _read(model: Pretrained, i: int, record: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """The ids that an encoder reads of record `i`, and their types."""
    text, tokenizer = _text(i, record), model.checked_tokenizer()
    if PAIR not in record:
        ids = tokenizer.encode_prompt(text, parse_special=True)
        return ids, [0] * len(ids)
    if not isinstance(record[PAIR], str):
        raise ValueError(f"text {i}: {PAIR} is {str(record[PAIR])[:60]!r}: expected a text")
    return tokenizer.encode_pair(text, record[PAIR])


def _text(i: int, record: Mapping[str, Any]) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise ValueError(f"text {i}: an encoder reads a text, {str(dict(record))[:60]} has none: name it text")
    return text


def classify_tokens(model: Pretrained, records: Sequence[Mapping[str, Any]]) -> list[list[TokenLabel]]:
    """The labels of the tokens of texts, without those that the tokenizer puts around them.

    Raises ValueError as `classify`, and for a model whose scores are of texts."""
    if not model.config.output.of_tokens:
        raise ValueError("this model has no scores of tokens: expected a .. ForTokenClassification")
    texts = [_text(i, record) for i, record in enumerate(records)]
    tokenizer = model.checked_tokenizer()
    rows = [tokenizer.encode_prompt(text, parse_special=True) for text in texts]
    found = model.scores_of_ids(rows)
    labels = []
    for text, row, scores in zip(texts, rows, found, strict=True):
        tokens = tokenizer.encode_with_offsets(text)
        first = _place([id for id, _, _ in tokens], row)
        probs = model.labels.probabilities(scores[first : first + len(tokens)])
        best = [(model.labels.names[int(p.argmax())], float(p.max())) for p in probs]
        labels.append([TokenLabel(text[a:b], a, b, *one) for (_, a, b), one in zip(tokens, best, strict=True)])
    return labels


def _place(inner: Sequence[int], row: Sequence[int]) -> int:
    """Where a text's own ids begin among those that are read."""
    return next(i for i in range(len(row) + 1) if list(row[i : i + len(inner)]) == list(inner))
