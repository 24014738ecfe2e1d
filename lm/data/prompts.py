"""Prompts to be continued by the model itself: records for methods that learn from a model's own completions.

A record has a `prompt`, a text or a list of messages, and whatever else its reward functions read (`answer`, ...).
Messages go through the tokenizer's chat template, with the header of the assistant's next message.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from lm.bounds import Count
from lm.data.conversations import SHOWN, checked_messages, json_object, json_of
from lm.data.encoded import BadDocument, Encoded, checked
from lm.data.objective import (
    NO_CONTEXT,
    Batch,
    ModelTraits,
    Objective,
    ObjectiveContext,
    RowRng,
    Rows,
    check_decoder,
    default_row_rng,
    positions,
)
from lm.data.records import WholeRecords
from lm.text.chat import apply_chat_template, encode_chat_prompt
from lm.text.tokenizer import Tokenizer

VERSION = "prompts 1"  # raise it when the same records give other tokens


@dataclass(frozen=True)
class Prompts(WholeRecords):
    """The records of a Jsonl, Parquet or Tfds as prompts; `tools` and `chat_template_kwargs` go to the template."""

    kind: ClassVar[str] = "prompts"
    document_name: ClassVar[str] = "prompt"

    def encoding(self, tokenizer: Tokenizer) -> list[str]:
        return [VERSION, json.dumps(tokenizer.chat_template)]

    def plain_text(self, document: str) -> str:
        return prompt_text(parse(document)["prompt"])

    def encode(self, texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
        for text in texts:
            try:
                record = parse(text)
                ids = checked(prompt_ids(record, tokenizer), tokenizer)
            except ValueError as error:
                raise BadDocument(str(error)) from None
            yield Encoded(ids, None, len(prompt_text(record["prompt"]).encode()), 0)


def parse(document: str) -> dict[str, Any]:
    """The record in `document`. Raises ValueError where it has no prompt."""
    record = json_object(document, "a prompt")
    if record.get("prompt") is None:
        raise ValueError(f"{document[:SHOWN]!r}: expected an object with a prompt")
    return record


def prompt_ids(record: Mapping[str, Any], tokenizer: Tokenizer) -> list[int]:
    """The ids after which a completion of the record's prompt begins. Raises ValueError where there are none."""
    prompt = record["prompt"]
    if isinstance(prompt, str):
        ids = tokenizer.encode_prompt(prompt)
    else:
        messages, tools, variables = _chat(record)
        ids = encode_chat_prompt(tokenizer, messages, tools, **variables)
    if not ids:
        raise ValueError("the prompt has no tokens: give at least one character")
    return ids


def prompt_as_read(record: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    """The text that `prompt_ids` encodes."""
    if isinstance(record["prompt"], str):
        return record["prompt"]
    messages, tools, variables = _chat(record)
    return apply_chat_template(tokenizer, messages, True, tools, **variables)


def _chat(record: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Any] | None, dict[str, Any]]:
    """The messages of a record's prompt, and the tools and variables that its template is given."""
    variables = json_of("chat_template_kwargs", record, dict) or {}
    return checked_messages("prompt", record["prompt"], ()), json_of("tools", record, list), variables


def prompt_text(prompt: Any) -> str:
    """What a prompt says, a paragraph a message."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(str(message.get("content") or "") for message in checked_messages("prompt", prompt, ()))


@dataclass(frozen=True)
class Rollouts(Objective):
    """Prompts to be continued by up to `new_tokens` of the model's own, each in `copies` rows side by side.

    A batch has the arrays that a rollout fills in: those of a row of prompt and completion, in which `weights` mark
    the completion's tokens and `row_weights` [R] the rows, those named `per_token` [R, T], and those named `per_row`
    [R]. `record` [R] is the number of the prompt's record (Batches.records). Two are equal that ask for completions as
    long, whatever is made of them to learn from."""

    copies: Count = field(default=1, compare=False)
    new_tokens: Count = 1
    per_token: tuple[str, ...] = field(default=(), compare=False)
    per_row: tuple[str, ...] = field(default=(), compare=False)

    target_name: ClassVar[str] = "completion token"
    reads: ClassVar[str] = Prompts.kind

    @property
    def row_copies(self) -> int:
        return self.copies

    def row_tokens(self, context: ObjectiveContext) -> int:
        if (room := context.seq_len - self.new_tokens) < 1:
            raise ValueError(
                f"rows of {context.seq_len} tokens leave no room for prompts beside max_new_tokens={self.new_tokens}: "
                "raise seq_len or lower max_new_tokens"
            )
        return room

    def batch(self, rows: Rows, context: ObjectiveContext = NO_CONTEXT, row_rng: RowRng = default_row_rng) -> Batch:
        R, T = len(rows.tokens), context.seq_len
        wide = ((0, 0), (0, T - self.row_tokens(context)))
        tokens, there = (np.pad(a[:, :-1], wide).astype(np.int32) for a in (rows.tokens, rows.documents))
        segments = (there > 0).astype(np.int32)
        return {
            "tokens": tokens,
            "targets": np.zeros((R, T), np.int32),
            "weights": np.zeros((R, T), np.float32),
            "segment_ids": segments,
            "positions": positions(segments),
            "record": np.maximum(there[:, 0] - 1, 0),
            "row_weights": segments[:, 0].astype(np.float32),
            **{name: np.zeros((R, T), np.float32) for name in self.per_token},
            **{name: np.zeros(R, np.float32) for name in self.per_row},
        }

    def check(self, model: ModelTraits) -> None:
        check_decoder(self, model)
