"""Preferences: of two answers to a prompt the better one, or of one answer whether it is good; and rows of them.

A pair is a document of two sequences, the prompt with the chosen answer and the prompt with the rejected one. It is
packed as one piece, so that both sides are in one row, each a segment of its own: one forward pass of packed rows gives
the log-probabilities of all. A labelled completion is such a document too: its second sequence is the prompt with the
completion of another record, from which KTO estimates how far the policy is from the reference.
"""

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lm.data.conversations import (
    BESIDES,
    SHOWN,
    Conversations,
    check_known,
    checked_messages,
    encode_record,
    read_object,
    said,
)
from lm.data.encoded import BadDocument, Encoded
from lm.data.objective import (
    NO_CONTEXT,
    Batch,
    ObjectiveContext,
    Replies,
    RowRng,
    Rows,
    default_row_rng,
    positions,
)
from lm.data.source import Documents, not_empty
from lm.text.tokenizer import Tokenizer

VERSION = "preferences 1"  # raise it when the same records give other tokens
SIDES = ("chosen", "rejected")
LABELLED = ("prompt", "completion", "label")


class Answered(NamedTuple):
    """A `prompt` with an answer to it: both texts, or both lists of messages; `besides` are the fields that both
    sides share."""

    prompt: Any
    answer: Any
    besides: dict[str, Any]

    def encode(self, tokenizer: Tokenizer, other_fields: Sequence[str]) -> Encoded:
        """Its tokens, of which the answer's carry loss. Raises ValueError where it is no conversation."""
        if self.prompt == []:
            return encode_record({**self.besides, "messages": self.answer}, tokenizer, other_fields)
        record = {**self.besides, "prompt": self.prompt, "completion": self.answer}
        return encode_record(record, tokenizer, other_fields)


@dataclass(frozen=True)
class Preferences(Conversations):
    """The records of a Jsonl, Parquet or Tfds as preference pairs.

    A record has `chosen` and `rejected`, each a text or a list of messages, and may have a `prompt` that comes before
    both; without it, what both begin with is the prompt: whole messages, or the text up to the word in which they
    differ. `margin` is by how much the chosen one is better, 0 where there is none. Pairs whose sides are equal are
    left out, and counted."""

    kind: ClassVar[str] = "preference pairs"

    def encoding(self, tokenizer: Tokenizer) -> list[str]:
        return [VERSION, *super().encoding(tokenizer)[1:]]

    def plain_text(self, document: str) -> str:
        chosen, rejected, _ = parse_pair(document, self.other_fields)
        return "\n\n".join(filter(None, map(_words, (chosen.prompt, chosen.answer, rejected.answer))))

    def encode(self, texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
        for text in texts:
            try:
                chosen, rejected, margin = parse_pair(text, self.other_fields)
                first, second = (side.encode(tokenizer, self.other_fields) for side in (chosen, rejected))
            except ValueError as error:
                raise BadDocument(str(error)) from None
            equal = np.array_equal(first.ids, second.ids)
            yield joined(first, second, margin, "have a chosen side that equals the rejected one" if equal else "")


@dataclass(frozen=True)
class UnpairedPreferences(Conversations):
    """The records of a Jsonl, Parquet or Tfds as completions that are good or not.

    A record has a `prompt`, its `completion`, both texts or both lists of messages, and a `label`, true or false; or it
    is a pair as in `Preferences`, of which the chosen side is good and the rejected one is not. The completion that is
    paired with the prompt of another is that of the record before it."""

    kind: ClassVar[str] = "labelled completions"

    def documents(self, split: str) -> Documents:
        whole = self._whole.documents(split)
        if SIDES[0] not in _fields(whole[0]):
            return whole
        count = len(whole)  # first all chosen sides, then all rejected: neighbours have other prompts

        def side(i: int) -> str:
            return json.dumps({"side": i // count, "of": whole[i % count]}, ensure_ascii=False)

        return not_empty(Documents(2 * count, side, lambda i: whole.where(i % count)), self, split)

    def encoding(self, tokenizer: Tokenizer) -> list[str]:
        return [f"unpaired {VERSION}", *super().encoding(tokenizer)[1:]]

    def plain_text(self, document: str) -> str:
        one, _ = parse_labelled(document, self.other_fields)
        return "\n\n".join(filter(None, map(_words, (one.prompt, one.answer))))

    def encode(self, texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
        before: Answered | None = None
        with contextlib.suppress(ValueError):  # one that is bad is refused in its own place
            before = parse_labelled(texts[-1], self.other_fields)[0]
        for text in texts:
            try:
                one, label = parse_labelled(text, self.other_fields)
                fits = before is not None and isinstance(before.prompt, str) == isinstance(one.prompt, str)
                other = one._replace(answer=before.answer) if before and fits else one
                first, second = (side.encode(tokenizer, self.other_fields) for side in (one, other))
            except ValueError as error:
                raise BadDocument(str(error)) from None
            yield joined(first, second, float(label), "")
            before = one


def joined(first: Encoded, second: Encoded, value: float, dropped: str) -> Encoded:
    """A document of two sequences; dropped, for want of another reason, where one of them has nothing to learn."""
    losses = [np.ones(len(side.ids), bool) if side.loss is None else side.loss for side in (first, second)]
    if not all(loss[1:].any() for loss in losses):
        dropped = dropped or "have a side without a token that carries loss"
    ids, sizes = np.concatenate([first.ids, second.ids]), first.bytes + second.bytes
    begun = first.first_bytes + second.first_bytes
    return Encoded(ids, np.concatenate(losses), sizes, begun, len(first.ids), value, dropped)


def parse_pair(document: str, other_fields: Sequence[str] = ()) -> tuple[Answered, Answered, float]:
    """Both sides and the margin of the record in `document`. Raises ValueError where it is no pair."""
    record = read_object(document, "chosen and rejected", other_fields)
    if missing := [name for name in SIDES if name not in record]:
        raise ValueError(f"no {missing[0]}: expected chosen and rejected (its fields: {', '.join(record) or 'none'})")
    check_known(record, SIDES, ("prompt", "margin", *BESIDES), "Preferences")
    margin = record.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise ValueError(f"margin is {str(margin)[:SHOWN]!r}: expected a number")
    prompt, *answers = _of_one_kind(record, ("prompt", *SIDES), other_fields)
    if prompt is None:
        prompt, *answers = split_prompt(*answers)
    for name, answer in zip(SIDES, answers, strict=True):
        if not isinstance(answer, str) and all(message["role"] != "assistant" for message in answer):
            raise ValueError(f"{name} has no message of the assistant after the prompt: remove the record")
    besides = {name: record[name] for name in BESIDES if name in record}
    chosen, rejected = (Answered(prompt, answer, besides) for answer in answers)
    return chosen, rejected, float(margin)


def parse_labelled(document: str, other_fields: Sequence[str] = ()) -> tuple[Answered, bool]:
    """The completion in `document`, and whether it is good. Raises ValueError where it is none."""
    record = read_object(document, "prompt, completion and label", other_fields)
    if set(record) == {"side", "of"}:
        pair = parse_pair(record["of"], other_fields)
        return pair[record["side"]], record["side"] == 0  # type: ignore[return-value]
    if missing := [name for name in LABELLED if name not in record]:
        there = ", ".join(record) or "none"
        raise ValueError(f"no {missing[0]}: expected prompt, completion and label, or a pair (its fields: {there})")
    check_known(record, LABELLED, BESIDES, "UnpairedPreferences")
    if record["label"] not in (True, False):  # 1 and 0 too
        raise ValueError(f"label is {str(record['label'])[:SHOWN]!r}: expected true or false")
    prompt, answer = _of_one_kind(record, LABELLED[:2], other_fields)
    besides = {name: record[name] for name in BESIDES if name in record}
    return Answered(prompt, answer, besides), bool(record["label"])


def _of_one_kind(record: Mapping[str, Any], names: Sequence[str], other_fields: Sequence[str]) -> list[Any]:
    """The fields `names` of a record, all texts or all checked messages; None for one that it has not."""
    there = [name for name in names if name in record]
    if all(isinstance(record[name], str) for name in there):
        return [record.get(name) for name in names]
    if any(isinstance(record[name], str) for name in there):
        cure = "; where the others begin with the prompt, name prompt in other_fields" if "prompt" in there else ""
        raise ValueError(f"{', '.join(there)}: expected texts alone, or lists of messages alone{cure}")
    return [checked_messages(name, record[name], other_fields) if name in record else None for name in names]


def split_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected): what both begin with, and what is left of each. A text is divided before the word in
    which they differ."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str):
        while at and not chosen[at - 1].isspace():
            at -= 1
        at = len(chosen[:at].rstrip())
    elif chosen == rejected:
        at -= 1  # such a pair is left out, for its tokens
    return chosen[:at], chosen[at:], rejected[at:]


def _fields(document: str) -> list[str]:
    """The fields of a record; none where it is no object."""
    with contextlib.suppress(ValueError):
        record = json.loads(document)
        return list(record) if isinstance(record, dict) else []
    return []


def _words(part: Any) -> str:
    """A text, or what is said in messages."""
    return part if isinstance(part, str) else "\n\n".join(map(said, part))


# ---------------------------------------------------------------- rows to batches


@dataclass(frozen=True)
class PreferencePairs(Replies):
    """The pairs of a row: of each side the tokens that carry loss, given those before them."""

    target_name: ClassVar[str] = "pair"
    reads: ClassVar[str] = Preferences.kind
    sides: ClassVar[tuple[str, ...]] = SIDES

    def batch(self, rows: Rows, context: ObjectiveContext = NO_CONTEXT, row_rng: RowRng = default_row_rng) -> Batch:
        """The batch of `rows`, of which each has up to P pairs.

        Returns:
          tokens, targets, segment_ids (2 k - 1 the first and 2 k the second side of pair k, 0 padding), positions (from
          0 in each segment), int32 [R, T];
          loss_mask: 1 where the target carries loss, float32 [R, T]; first_weights: the same of first sides alone;
          weights: 1 for a pair, float32 [R, P];
          values: of each pair, a margin or a label, float32 [R, P];
          pair_ids: a hash of its tokens and their mask, int32 [R, P, 2]."""
        batch = super().batch(rows, context, row_rng)
        mask = batch.pop("weights")
        count = max(context.pairs, int(rows.documents.max(initial=0) + 1) // 2, 1)
        weights, values = (np.zeros((len(mask), count), np.float32) for _ in range(2))
        ids = np.zeros((len(mask), count, 2), np.int32)
        numbers = np.broadcast_to(rows.values, rows.tokens.shape)
        for i, documents in enumerate(rows.documents):
            starts = np.searchsorted(np.where(documents > 0, documents, 2 * count + 1), np.arange(1, 2 * count + 2, 2))
            for k, (start, stop) in enumerate(itertools.pairwise(starts.tolist())):
                if start < stop:
                    own = np.s_[i, start:stop]
                    weights[i, k], values[i, k] = 1, numbers[i, start]
                    ids[i, k] = _hash(rows.tokens[own], rows.documents[own] - 2 * k, rows.loss[own])
        first = mask * (batch["segment_ids"] % 2)
        own_arrays = {"weights": weights, "values": values, "pair_ids": ids}
        return {**batch, "loss_mask": mask, "first_weights": first.astype(np.float32), **own_arrays}


@dataclass(frozen=True)
class WholePairs(PreferencePairs):
    """The pairs of a row, of which each side is read to its last token, its eos for instance: there it has its
    reward."""

    def row_tokens(self, context: ObjectiveContext) -> int:
        return context.seq_len - 1  # no token is a target alone: a row of T + 1 would have one that is not read

    def batch(self, rows: Rows, context: ObjectiveContext = NO_CONTEXT, row_rng: RowRng = default_row_rng) -> Batch:
        """The batch of `rows`, of T tokens.

        Returns:
          tokens, segment_ids, positions, weights and values as PreferencePairs;
          ends: 1 for the last token of each side, float32 [R, T]."""
        segments = rows.segments.astype(np.int32)
        following = np.pad(segments[:, 1:], ((0, 0), (0, 1)))
        pairs = super().batch(rows, context, row_rng)
        return {
            "tokens": rows.tokens.astype(np.int32),
            "segment_ids": segments,
            "positions": positions(segments),
            "ends": ((segments > 0) & (segments != following)).astype(np.float32),
            **{name: pairs[name] for name in ("weights", "values")},
        }


@dataclass(frozen=True)
class LabelledCompletions(PreferencePairs):
    """The labelled completions of a row: first sides; second ones are the completion of another record."""

    target_name: ClassVar[str] = "completion"
    reads: ClassVar[str] = UnpairedPreferences.kind
    sides: ClassVar[tuple[str, ...]] = ("completion", "that of another record")


def _hash(*arrays: np.ndarray) -> np.ndarray:
    """64 bits of whole numbers, as two int32."""
    digest = hashlib.blake2b(np.stack(arrays).astype("<i4").tobytes(), digest_size=8).digest()
    return np.frombuffer(digest, "<i4")
