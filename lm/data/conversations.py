"""Conversations: records of messages become tokens, of which the assistant's carry loss.

A record has `messages`, or a `prompt` and its `completion`, or `text`. Messages go through the tokenizer's chat
template (lm/text/chat.py): the assistant's tokens are what it has in {% generation %}, or else what a message of the
assistant adds to the rendered conversation before it, its end of turn included. A token that straddles the border
carries loss. Of a prompt and a completion that are texts, the completion and the eos carry loss; of a text, all does.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lm.data.encoded import BadDocument, Encoded, checked, encode_texts
from lm.data.records import WholeRecords
from lm.text.chat import REASONING, encode_chat, missing_bos
from lm.text.tokenizer import Tokenizer

VERSION = "conversations 1"  # raise it when the same records give other tokens
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", *REASONING)
KINDS = (("messages",), ("prompt", "completion"), ("text",))
BESIDES = ("tools", "chat_template_kwargs")  # of messages
SHOWN = 60  # characters of what is no message, in an error


@dataclass(frozen=True)
class Conversations(WholeRecords):
    """The records of a Jsonl, Parquet or Tfds as conversations.

    `tools` of a record are JSON schemas, `chat_template_kwargs` variables of the template. `other_fields` are those
    that records and messages may have besides: in a record they are not read, in a message the template reads them.
    Under objectives other than Replies every token carries loss."""

    other_fields: tuple[str, ...] = ()

    document_name: ClassVar[str] = "conversation"

    def encoding(self, tokenizer: Tokenizer) -> list[str]:
        return [VERSION, json.dumps([tokenizer.chat_template, self.other_fields])]

    def plain_text(self, document: str) -> str:
        """What is said in a record, a paragraph a message."""
        record = parse(document, self.other_fields)
        parts = [part for kind in KINDS for part in (record.get(name) for name in kind) if part]
        messages = [message for part in parts if not isinstance(part, str) for message in part]
        return "\n\n".join([part for part in parts if isinstance(part, str)] + [*map(said, messages)])

    def encode(self, texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
        for text in texts:
            try:
                yield encode_record(parse(text, self.other_fields), tokenizer, self.other_fields)
            except ValueError as error:
                raise BadDocument(str(error)) from None


def parse(document: str, other_fields: Sequence[str] = ()) -> dict[str, Any]:
    """The record in `document`, with one of KINDS and what belongs to it. Raises ValueError for another one."""
    record = read_object(document, "messages, prompt and completion, or text", other_fields)
    kinds = [kind for kind in KINDS if set(kind) <= set(record)]
    if len(kinds) != 1:
        what = " and ".join("/".join(kind) for kind in kinds) or "neither of the three"
        there = ", ".join(record) or "none"
        raise ValueError(f"expected messages, or prompt and completion, or text: it has {what} (its fields: {there})")
    check_known(record, kinds[0], BESIDES if kinds[0] != ("text",) else (), "Conversations")
    return record


def read_object(document: str, expected: str, other_fields: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object in `document`, one with `expected`, without nulls and `other_fields`. Raises ValueError where it
    is none."""
    record = json_object(document, expected)
    return {name: value for name, value in record.items() if value is not None and name not in other_fields}


def json_object(document: str, expected: str) -> dict[str, Any]:
    """The JSON object in `document`, one with `expected`. Raises ValueError where it is none."""
    try:
        record = json.loads(document)
    except ValueError as error:
        raise ValueError(f"{document[:SHOWN]!r} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{document[:SHOWN]!r}: expected an object with {expected}")
    return record


def check_known(record: Mapping[str, Any], kind: Sequence[str], besides: Sequence[str], source: str) -> None:
    """Raises ValueError where a record of `source` has fields other than those of its `kind` and `besides`."""
    if unknown := [name for name in record if name not in (*kind, *besides)]:
        raise ValueError(
            f"unknown field {unknown[0]!r} beside {'/'.join(kind)}: remove it, or name it in other_fields of {source}"
        )


def encode_record(record: Mapping[str, Any], tokenizer: Tokenizer, other_fields: Sequence[str] = ()) -> Encoded:
    """The tokens of a record from `parse`. Raises ValueError where it is no conversation."""
    if "text" in record:
        if not isinstance(record["text"], str):
            raise ValueError(f"text is {str(record['text'])[:SHOWN]!r}: expected a text")
        return next(encode_texts([record["text"]], tokenizer))
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return _plain(prompt, completion, tokenizer)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError("prompt and completion: expected two texts, or two lists of messages")
    before = checked_messages("prompt", prompt, other_fields) if prompt is not None else []
    name = "messages" if prompt is None else "completion"
    after = checked_messages(name, record[name], other_fields)
    if not any(message["role"] == "assistant" for message in after):
        raise ValueError(f"{name} has no message of the assistant, so there is nothing to learn: remove the record")
    tools = json_of("tools", record, list)
    variables = json_of("chat_template_kwargs", record, dict) or {}
    if taken := {"tokenizer", "messages", "tools", "given"} & set(variables):
        raise ValueError(f"chat_template_kwargs.{min(taken)}: it is no variable of a record's")
    ids, loss = encode_chat(tokenizer, [*before, *after], tools, len(before), **variables)
    return _encoded(ids, loss, tokenizer)


def encode_text(text: "str | Sequence[Any] | Mapping[str, Any]", tokenizer: Tokenizer) -> list[int]:
    """The ids of a text, of a list of messages, or of a record, as training reads them. Raises ValueError where it is
    none."""
    if isinstance(text, str):
        text = {"text": text}
    record = text if isinstance(text, Mapping) else {"messages": list(text)}
    return encode_record(parse(json.dumps(record)), tokenizer).ids.tolist()


def json_of(name: str, record: Mapping[str, Any], kind: type) -> Any:
    """The list or object `name` of a record, which some files have as text; None where there is none."""
    value = record.get(name)
    with contextlib.suppress(ValueError):
        value = json.loads(value) if isinstance(value, str) else value
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name} is {str(value)[:SHOWN]!r}: expected {'a list' if kind is list else 'an object'}")
    return value or None


def _plain(prompt: str, completion: str, tokenizer: Tokenizer) -> Encoded:
    """Tokens of `prompt` and `completion` as one text, then the eos unless it is there."""
    tokens = tokenizer.encode_with_offsets(prompt + completion)
    end = [] if tokenizer.eos is None or [id for id, _, _ in tokens[-1:]] == [tokenizer.eos] else [tokenizer.eos]
    loss = [stop > len(prompt) for _, _, stop in tokens] + [True] * len(end)
    return _encoded([*(id for id, _, _ in tokens), *end], loss, tokenizer)


def _encoded(ids: list[int], loss: list[bool], tokenizer: Tokenizer) -> Encoded:
    begin = missing_bos(tokenizer, ids)
    array = checked([*begin, *ids], tokenizer)
    first = len(tokenizer.bytes_of(int(array[0]))) if len(array) and tokenizer.bos is None else 0
    size = len(tokenizer.decode(ids).encode())
    return Encoded(array, np.array([*(False for _ in begin), *loss], bool), size, min(first, size))


def checked_messages(name: str, messages: Any, other_fields: Sequence[str]) -> list[dict[str, Any]]:
    """Checked messages of the field `name`; as TFDS and Parquet may have them, an object of lists is a list of
    objects."""
    if isinstance(messages, dict) and all(isinstance(column, list) for column in messages.values()):
        rows = zip(*messages.values(), strict=False)
        messages = [dict(zip(messages, row, strict=True)) for row in rows]
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{name} is {str(messages)[:SHOWN]!r}: expected a list of messages")
    for at, message in enumerate(messages):
        _check(f"{name}[{at}]", message, other_fields)
    return messages


def _check(where: str, message: Any, other_fields: Sequence[str]) -> None:
    if not isinstance(message, dict) or "role" not in message:
        raise ValueError(f"{where} is {str(message)[:SHOWN]!r}: expected an object with a role and a content")
    if message["role"] not in ROLES:
        raise ValueError(f"{where}.role is {message['role']!r}: expected one of {', '.join(ROLES)}")
    if unknown := [k for k, v in message.items() if v is not None and k not in (*MESSAGE, *other_fields)]:
        raise ValueError(
            f"{where} has an unknown field {unknown[0]!r}: expected {', '.join(MESSAGE)}, or name it in other_fields "
            "of Conversations"
        )
    content = message.get("content")
    if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
        raise ValueError(f"{where}.content is {str(content)[:SHOWN]!r}: expected a text")


def said(message: Mapping[str, Any]) -> str:
    """The text of a message."""
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) if content else ""
