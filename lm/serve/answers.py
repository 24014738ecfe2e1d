"""Choices as OpenAI's API has them: of a completion, and of a chat; whole, or as the chunks of a stream."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm.decode.engine import Output, TokenLogprob
from lm.decode.sampling import NONE
from lm.serve.call import Call, Served
from lm.serve.text import StoppedText
from lm.serve.worker import Generation
from lm.text.protocol import IncrementalDecoder

LEAST = -9999.0  # a log-probability in place of -inf, which JSON has not (vLLM's number)


@dataclass
class Piece:
    """What one output adds to a choice: text, (token, log-probability; None for the first of a prompt), and why it
    ended."""

    text: str
    tokens: list[tuple[TokenLogprob, float | None]]
    finish_reason: str


async def pieces(served: Served, call: Call, generation: Generation) -> AsyncIterator[tuple[int, Piece]]:
    """(index of the choice, piece), as they come."""
    texts = [StoppedText(served.tokenizer, call.stop, call.before(i)) for i in range(len(generation.replies))]
    begun = set()
    async for index, output in generation:
        piece = _piece(texts[index], output)
        if piece.finish_reason and not output.finish_reason:
            generation.stop(index)
        if index not in begun and call.echo:
            text, ids = call.prompts[index // call.n]
            prompt = [(TokenLogprob(ids[0], 0.0, []), None), *((one, one.logprob) for one in output.prompt)]
            piece = Piece(text + piece.text, prompt + piece.tokens, piece.finish_reason)
        begun.add(index)
        yield index, piece


def _piece(text: StoppedText, output: Output) -> Piece:
    new, end = text.push(output.token) if output.token != NONE else "", output.finish_reason
    if end and not text.stopped:
        new += text.close()
    id = output.stop if output.token == NONE else output.token
    token = TokenLogprob(id, output.logprob, output.top)
    return Piece(new, [(token, output.logprob)], "stop" if text.stopped else end)


@dataclass
class Completion:
    """The answers of /v1/completions."""

    served: Served
    call: Call
    kind: str = "text_completion"
    chunk_kind: str = "text_completion"
    prefix: str = "cmpl"
    _texts: dict[int, tuple[IncrementalDecoder, int]] = field(default_factory=dict)  # of each choice, and its length

    def first(self, index: int) -> list[dict[str, Any]]:
        """Choices of a stream before anything else."""
        return []

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        return self.choice(index, piece)

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        logprobs = self._logprobs(index, piece) if self.call.logprobs is not None else None
        end = piece.finish_reason or None
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": end}

    def _logprobs(self, index: int, piece: Piece) -> dict[str, Any]:
        """Lists by token; an offset is that of the token in the text of the choice."""
        name, offsets = self.served.tokenizer.piece, []
        before = () if self.call.echo else self.call.before(index)
        decoder, at = self._texts.get(index) or (self.served.tokenizer.decoder_after(before), 0)
        for token, _ in piece.tokens:
            offsets.append(at)
            at += len(decoder.push(token.token))
        self._texts[index] = decoder, at
        return {
            "tokens": [name(token.token) for token, _ in piece.tokens],
            "token_logprobs": [None if value is None else _finite(value) for _, value in piece.tokens],
            "top_logprobs": [None if value is None else self._top(token) for token, value in piece.tokens],
            "text_offset": offsets,
        }

    def _top(self, token: TokenLogprob) -> dict[str, float]:
        """The likeliest, and the token itself; of two tokens with one text, the likelier."""
        top: dict[str, float] = {}
        for id, value in [*self._likeliest(token), (token.token, token.logprob)]:
            top.setdefault(self.served.tokenizer.piece(id), _finite(value))
        return top

    def _likeliest(self, token: TokenLogprob) -> list[tuple[int, float]]:
        """As many as were asked for, of those that have a text."""
        known = [(id, value) for id, value in token.top if id < self.served.tokenizer.vocab_size]
        return known[: self.call.logprobs]


class ChatCompletion(Completion):
    """The answers of /v1/chat/completions."""

    def __init__(self, served: Served, call: Call):
        super().__init__(served, call, "chat.completion", "chat.completion.chunk", "chatcmpl")

    def first(self, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text or not piece.finish_reason else {}
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._content(piece),
            "finish_reason": piece.finish_reason or None,
        }

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        logprobs = self._content(piece)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": piece.finish_reason or None}

    def _content(self, piece: Piece) -> dict[str, Any] | None:
        """Of the message's tokens, which the one that ends it is not."""
        if self.call.logprobs is None:
            return None
        tokens = [token for token, _ in piece.tokens if token.token not in self.call.stop_ids]
        content = [
            self._entry(token.token, token.logprob)
            | {"top_logprobs": [self._entry(id, value) for id, value in self._likeliest(token)]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _entry(self, id: int, logprob: float) -> dict[str, Any]:
        tokenizer = self.served.tokenizer
        return {"token": tokenizer.piece(id), "logprob": _finite(logprob), "bytes": list(tokenizer.bytes_of(id))}


def _finite(value: float) -> float:
    return max(value, LEAST)


def _heading(answers: Completion, kind: str) -> dict[str, Any]:
    id = f"{answers.prefix}-{secrets.token_hex(12)}"
    return {"id": id, "object": kind, "created": int(time.time()), "model": answers.served.name}


def _costs(call: Call, generation: Generation) -> dict[str, Any]:
    tokens = call.prompt_tokens
    return {"usage": generation.usage(tokens), "timings": generation.timings(tokens)}


async def whole(answers: Completion, generation: Generation) -> dict[str, Any]:
    """The answer when all choices have ended."""
    parts: list[list[Piece]] = [[] for _ in generation.replies]
    async for index, piece in pieces(answers.served, answers.call, generation):
        parts[index].append(piece)
    choices = [answers.choice(i, _joined(some)) for i, some in enumerate(parts)]
    return {**_heading(answers, answers.kind), "choices": choices, **_costs(answers.call, generation)}


def _joined(parts: Sequence[Piece]) -> Piece:
    text, tokens = "".join(part.text for part in parts), [token for part in parts for token in part.tokens]
    return Piece(text, tokens, parts[-1].finish_reason)


async def chunks(answers: Completion, generation: Generation) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a stream. The last has usage and timings; with include_usage they are in one without choices."""
    heading, call, begun, left = _heading(answers, answers.chunk_kind), answers.call, set(), len(generation.replies)
    usage = {"usage": None} if call.include_usage else {}
    async for index, piece in pieces(answers.served, call, generation):
        if index not in begun:
            begun.add(index)
            for choice in answers.first(index):
                yield {**heading, "choices": [choice], **usage}
        left -= bool(piece.finish_reason)
        last = not left and not call.include_usage
        if piece.text or piece.finish_reason or call.logprobs is not None:
            costs = _costs(call, generation) if last else usage
            yield {**heading, "choices": [answers.chunk(index, piece)], **costs}
    if call.include_usage:
        yield {**heading, "choices": [], **_costs(call, generation)}
