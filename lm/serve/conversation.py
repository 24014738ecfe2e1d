"""A conversation with a model: its messages, and its replies as they are drawn."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm.decode.engine import Engine, Request
from lm.decode.images import vision_of
from lm.decode.sampling import NONE, Sampling
from lm.pretrained.images import look_at
from lm.pretrained.model import Pretrained
from lm.text.chat import encode_chat_prompt
from lm.text.image_tokens import as_text, render_chat
from lm.text.tokenizer import Tokenizer
from lm.tune.vision import image_tokens

LENGTH = 8192  # tokens of context a slot, where nothing else is asked for: a cache of them is made for every slot


def engine_of(model: Pretrained, slots: int, length: int = 0) -> Engine:
    """An engine for `model`, each of whose slots has `length` tokens (0: the model's context, at most LENGTH). Raises
    ValueError for a model that is no decoder, or a length that it has not."""
    length = length_of(model, length)
    if model.prefix:
        raise ValueError("this model reads a prompt in both directions (prefix-LM), which `lm sample` alone does")
    if slots < 1:
        raise ValueError(f"--slots {slots}: expected at least 1")
    laid, params = model.decoder
    unrolled = replace(laid, compute=replace(laid.compute, unroll=0))
    return Engine(unrolled, params, slots, length)


def length_of(model: Pretrained, length: int) -> int:
    """The tokens of a text: `length`, or the model's context up to LENGTH. Raises ValueError for one that it has not,
    and for a model without a tokenizer."""
    context = model.config.context
    if model.tokenizer is None:
        raise ValueError("this model came without a tokenizer, which text needs: put one beside its weights")
    if not 0 <= length <= context or length in (1, 2):
        raise ValueError(f"--length {length:,}: expected 3 to {context:,}, the model's context")
    return length or min(context, LENGTH)


@dataclass
class Conversation:
    """What was said so far, and how the model goes on. `messages` are {"role": .., "content": ..}; a model without a
    chat template continues their contents as one text. The content of one with images is a list of parts, and `images`
    are those of all; `pending` are for the next message: (path, image)."""

    model: Pretrained
    engine: Engine
    sampling: Sampling = Sampling()
    max_new_tokens: int = 512
    seed: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    pending: list[tuple[str, np.ndarray]] = field(default_factory=list)

    @property
    def tokenizer(self) -> Tokenizer:
        assert self.model.tokenizer is not None  # or there were no engine
        return self.model.tokenizer

    def reply(self, text: str, interrupted: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """The answer to `text`, as it is drawn, until it is complete or `interrupted`: what was said by then stays.

        Raises ValueError where the conversation leaves no room for an answer; `text` is then not part of it."""
        shown = [{"type": "image", "path": path} for path, _ in self.pending]
        content = [*shown, {"type": "text", "text": text}] if shown else text
        asked = [*self.messages, {"role": "user", "content": content}]
        images = [*self.images, *(image for _, image in self.pending)]
        ids = self._ids(asked, len(images))
        if (room := self.engine.length - len(ids)) < 1:
            raise ValueError(
                f"the conversation has {len(ids):,} tokens, and the context {self.engine.length:,}: "
                "/reset begins a new one"
            )
        padded = self.model.config.vocab > self.tokenizer.vocab_size
        sampling = replace(self.sampling, vocab_size=self.tokenizer.vocab_size if padded else 0)
        most, stop = min(self.max_new_tokens, room), self.model.stop_ids
        said, seen = "", np.stack(images) if images else None
        request = Request(ids, most, sampling, stop, self.seed, len(asked), images=seen)
        for new in self._drawn(request, interrupted):
            said += new
            yield new
        self.messages, self.images = [*asked, {"role": "assistant", "content": said}], images
        self.pending = []

    def _drawn(self, request: Request, interrupted: Callable[[], bool]) -> Iterator[str]:
        """The text of a request. The engine is asked to stop between two steps, never within one."""
        number, text = self.engine.submit(request), self.tokenizer.incremental_decoder()
        while self.engine.busy and not interrupted():
            for output in self.engine.step():
                if output.finish_reason == "not finite":
                    raise ValueError("the model's logits are NaN or infinite")
                if output.token != NONE:
                    yield text.push(output.token)
        self.engine.cancel(number)
        yield text.close()

    def _ids(self, messages: list[dict[str, Any]], images: int) -> list[int]:
        template = self.tokenizer.chat_template
        if not images:
            if template:
                return encode_chat_prompt(self.tokenizer, messages)
            return self.tokenizer.encode_prompt("".join(message["content"] for message in messages))
        tokens = image_tokens(vision_of(self.model.config))
        mark = tokens.mark(self.tokenizer)
        if template:
            return tokens.encode_rendered(render_chat(self.tokenizer, messages, mark), images, self.tokenizer)
        return tokens.encode("".join(as_text(message["content"], mark) for message in messages), images, self.tokenizer)

    # ---------------------------------------------------------------- commands

    def command(self, line: str) -> str:
        """Do what a line that begins with / says; the answer to it. Raises ValueError for one that is not known."""
        name, _, rest = line.partition(" ")
        known: dict[str, Callable[[str], str]] = {
            "/reset": self.reset,
            "/image": self.image,
            "/system": self.system,
            "/temperature": self.temperature,
            "/save": self.save,
        }
        if name not in known:
            raise ValueError(f"unknown command {name}: {', '.join(known)}, /exit")
        return known[name](rest.strip())

    def image(self, path: str) -> str:
        """Show the image in a file with the next message."""
        vision_of(self.model.config)
        if not path:
            raise ValueError("/image: expected the name of a file, as in /image cat.png")
        self.pending.append((path, look_at([Path(path).expanduser()], self.model.config)[0]))
        return f"{path} goes with the next message"

    def reset(self, rest: str = "") -> str:
        """Forget what was said, but for the system message."""
        self.images, self.pending = [], []
        self.messages = [message for message in self.messages if message["role"] == "system"]
        return "a new conversation"

    def system(self, text: str) -> str:
        """Put another system message, or none, before the rest."""
        others = [message for message in self.messages if message["role"] != "system"]
        self.messages = [*([{"role": "system", "content": text}] if text else []), *others]
        return f"the system message: {text}" if text else "no system message"

    def temperature(self, text: str) -> str:
        """Set the temperature."""
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"/temperature {text}: expected a number, as in /temperature 0.7") from None
        self.sampling = replace(self.sampling, temperature=value)
        return f"temperature {value:g}"

    def save(self, path: str) -> str:
        """Write the messages as one line of JSON into a new file."""
        if not path:
            raise ValueError("/save: expected the name of a file, as in /save talk.jsonl")
        try:
            with Path(path).expanduser().open("x", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except FileExistsError:
            raise ValueError(f"{path} is there already: choose another name") from None
        return f"{len(self.messages)} messages in {path}"
