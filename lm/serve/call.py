"""What a request to /v1/completions or /v1/chat/completions asks for, as requests of the engine."""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from lm.bounds import INT32
from lm.decode.engine import Request
from lm.decode.grammar import Constraint, Grammars
from lm.decode.images import vision_of
from lm.decode.sampling import Sampling
from lm.decode.slots import TOP
from lm.model.config import ModelConfig
from lm.pretrained.images import look_at
from lm.pretrained.model import Pretrained
from lm.serve.fields import ApiError, Fields, bad, ids_of
from lm.serve.images import content_of
from lm.serve.structured import grammar
from lm.text.image_tokens import ImageTokens, render_chat
from lm.text.tokenizer import Tokenizer
from lm.tune.vision import image_tokens

SEEDS = 2**32
STOPS, STOP_LENGTH = 128, 1000
CHOICES = 128  # of a prompt
MESSAGE = ("role", "content", "name", "reasoning_content")  # fields of a message
TEMPLATE = ("messages", "tools", "tokenizer", "template", "add_generation_prompt")  # no variables of a client's
LOG_PROBS = ("raw_logprobs", "processed_logprobs")  # vLLM's names


@contextmanager
def refusing(param: str | None) -> Iterator[None]:
    """A ValueError inside is the client's: about the field `param`, or the one that its message begins with."""
    try:
        yield
    except ApiError:
        raise
    except ValueError as error:
        raise ApiError(400, str(error), param or str(error).partition("=")[0]) from None


@dataclass(frozen=True)
class Limits:
    """Of what a client may ask for: bytes of a body, new tokens of a choice (0: what the context has room for),
    seconds of a request, seconds to send or read a part of it, tokens of a text that is looked into (0: none is)."""

    body_bytes: int = 8 << 20
    new_tokens: int = 0
    seconds: float = 600.0
    idle_seconds: float = 60.0
    inspect_tokens: int = 1024


@dataclass(frozen=True)
class Served:
    """A model under a name, with `length` tokens of context, and a tokenizer."""

    name: str
    model: Pretrained
    tokenizer: Tokenizer
    length: int
    limits: Limits = Limits()

    @cached_property
    def grammars(self) -> Grammars:
        """Of the tokenizer, made when a request first has one. Raises ValueError where the library is missing."""
        return Grammars(self.tokenizer, self.model.config.vocab, self.model.stop_ids)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of a prompt; names of control ids in it are those ids. With `special`, what the model expects around
        a prompt is added: a bos once, also where the text has its own."""
        with refusing("prompt"):
            if not special:
                return self.tokenizer.encode(text, parse_special=True)
            ids, bos = self.tokenizer.encode_prompt(text, parse_special=True), self.tokenizer.bos
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def chat(self, fields: Fields) -> tuple[str, list[bytes]]:
        """The messages of a body, by the model's template, and the files of their images."""
        messages = fields.take("messages", [], "a list of messages", list)
        if not messages:
            bad("messages", "messages: expected a list of at least one message")
        variables = fields.take("chat_template_kwargs", {}, "an object", dict)
        if taken := set(variables) & set(TEMPLATE):
            bad("chat_template_kwargs", f"chat_template_kwargs.{min(taken)}: it is no variable of a client's")
        files: list[bytes] = []
        own = [_message(i, message, self.model.config, files) for i, message in enumerate(messages)]
        header = fields.flag("add_generation_prompt", True)
        mark = self.image_tokens.mark(self.tokenizer) if files else ""
        with refusing("messages"):
            return render_chat(self.tokenizer, own, mark, header, **variables), files

    def encode_chat(self, text: str, images: int, special: bool = False) -> list[int]:
        """The ids of rendered messages with so many images."""
        if not images:
            return self.encode(text, special)  # the template has written the bos
        with refusing("messages"):
            return self.image_tokens.encode_rendered(text, images, self.tokenizer)

    @property
    def image_tokens(self) -> ImageTokens:
        return image_tokens(vision_of(self.model.config))


@dataclass(frozen=True)
class Call:
    """Prompts, as text and as ids, and what is asked of each: `n` choices of up to `max_new_tokens`.

    `stop` are strings, `stop_ids` ids; `logprobs` is how many alternatives of each token are given (None: no
    log-probabilities), `processed` and `grammar` as in the engine's Request; `echo` puts the prompt before the text.
    The text `continues` the prompt's, or is one of its own. `images` [M, size, size, 3] are those of the one prompt."""

    prompts: Sequence[tuple[str, list[int]]]
    n: int
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    stop_ids: tuple[int, ...]
    seed: int
    logprobs: int | None
    processed: bool
    echo: bool
    stream: bool
    include_usage: bool
    continues: bool
    grammar: Constraint | None
    images: np.ndarray | None = None

    def requests(self) -> list[Request]:
        """One for each choice, those of the first prompt first."""
        return [
            Request(
                ids,
                self.max_new_tokens,
                self.sampling,
                self.stop_ids,
                self.seed,
                index,
                TOP if self.logprobs else 0,  # of which some may be ids that the tokenizer does not have
                self.processed,
                self.echo and self.logprobs is not None,
                self.grammar,
                self.images,
            )
            for _, ids in self.prompts
            for index in range(self.n)
        ]

    def before(self, index: int) -> Sequence[int]:
        """The tokens that choice `index` continues."""
        return self.prompts[index // self.n][1] if self.continues else ()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(ids) for _, ids in self.prompts)


def completion(served: Served, fields: Fields) -> Call:
    """The call of a body of /v1/completions. Raises ApiError."""
    special = fields.flag("add_special_tokens", True)
    prompts = prompts_of(served, fields, "prompt", special)
    logprobs = fields.integer("logprobs", None, 0, TOP)
    return _call(served, fields, prompts, logprobs, fields.flag("echo"), 16, continues=True)


def chat_completion(served: Served, fields: Fields) -> Call:
    """The call of a body of /v1/chat/completions. Raises ApiError."""
    text, files = served.chat(fields)
    asked, top = fields.flag("logprobs"), fields.integer("top_logprobs", None, 0, TOP)
    if top is not None and not asked:
        bad("top_logprobs", "top_logprobs without logprobs: set logprobs to true")
    prompts = [(text, served.encode_chat(text, len(files)))]
    call = _call(served, fields, prompts, (top or 0) if asked else None, False, served.length, continues=False)
    if not files:
        return call
    with refusing("messages"):
        return replace(call, images=look_at(files, served.model.config))  # whose places fit the context


def _call(
    served: Served,
    fields: Fields,
    prompts: list[tuple[str, list[int]]],
    logprobs: int | None,
    echo: bool,
    room: int,
    continues: bool,
) -> Call:
    """The fields that both routes share.

    Args:
      served: the model.
      fields: of the body, which are used up.
      prompts: (text, ids) of each.
      logprobs: alternatives; None: no log-probabilities.
      echo: whether the prompt comes before the text.
      room: new tokens where the body names no number.
      continues: as in Call."""
    model_name(served, fields)
    endless = fields.left.get("ignore_eos")
    stop, stop_ids = _stops(served, fields)
    n = fields.integer("n", 1, 1, CHOICES) or 1
    seed = fields.integer("seed", None, 0, SEEDS - 1)
    mode = fields.text("logprobs_mode", LOG_PROBS[0])
    if mode not in LOG_PROBS:
        bad("logprobs_mode", f"logprobs_mode={mode}: expected {' or '.join(LOG_PROBS)}")
    stream, options = fields.flag("stream"), fields.part("stream_options")
    if options.left and not stream:
        bad("stream_options", "stream_options without stream: set stream to true")
    include_usage = options.flag("include_usage")
    options.finish()
    fields.text("user"), fields.text("safety_identifier")  # whose request it is, which changes no answer
    max_new_tokens = _max_new_tokens(served, fields, prompts, room)
    sampling, (field, texts) = _sampling(served, fields), grammar(fields)
    fields.finish()
    if texts and endless:
        bad("ignore_eos", f"ignore_eos and {field}, whose texts end: leave one of them out")
    with refusing(field):
        constraint = served.grammars.constraint(texts, continues) if texts else None
    return Call(
        prompts,
        n,
        max_new_tokens,
        sampling,
        stop,
        stop_ids,
        secrets.randbelow(SEEDS) if seed is None else seed,
        logprobs,
        mode == LOG_PROBS[1],
        echo,
        stream,
        include_usage,
        continues,
        constraint,
    )


def model_name(served: Served, fields: Fields) -> None:
    """Raise ApiError where the body names another model."""
    if (name := fields.text("model", served.name)) != served.name:
        raise ApiError(404, f"no model {name!r}: this server has {served.name!r}", "model", "model_not_found")


def prompts_of(
    served: Served, fields: Fields, name: str, special: bool, before: str = ""
) -> list[tuple[str, list[int]]]:
    """(text, ids) of each in the field `name`: a text, a list of texts, ids, or a list of lists of ids.

    Args:
      served: whose tokenizer reads texts.
      fields: the request's.
      name: of the field.
      special: whether the tokenizer adds its special tokens to a text.
      before: what stands in front of each text; ids are read as they are.

    Raises ApiError for anything else."""
    expected = "a text, a list of texts, token ids, or a list of lists of ids"
    value, vocab = fields.take(name, None, expected, str, list), served.tokenizer.vocab_size
    if value is None or value == []:
        bad(name, f"{name}: expected {expected}")
    if isinstance(value, str) or not isinstance(value[0], str | list):
        value = [value]
    prompts = []
    for i, one in enumerate(value):
        if not isinstance(one, type(value[0])):
            bad(name, f"{name} has texts and token ids: expected one kind")
        ids = served.encode(before + one, special) if isinstance(one, str) else ids_of(name, one, vocab)
        if not ids:
            bad(name, f"{name} {i} has no tokens: expected at least one")
        prompts.append((one if isinstance(one, str) else served.tokenizer.decode(ids), ids))
    return prompts


def _message(i: int, message: Any, cfg: ModelConfig, files: list[bytes]) -> Mapping[str, Any]:
    """A message whose content is text, or with images parts, whose files are added to `files`. Raises ApiError for
    anything else."""
    if not isinstance(message, dict):
        bad("messages", f"messages[{i}]: expected an object with a role and a content")
    fields, own = Fields(message, f"messages[{i}]."), {}
    for name in MESSAGE:
        kinds = (str, list) if name == "content" else (str,)
        own[name] = fields.take(name, None, "text", *kinds)
    fields.finish()
    if not own["role"] or own["content"] is None:
        bad("messages", f"messages[{i}]: expected a role and a content")
    if isinstance(own["content"], list):
        own["content"] = content_of(f"messages[{i}].content", own["content"], cfg, files)
    return {name: value for name, value in own.items() if value is not None}


def _stops(served: Served, fields: Fields) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Strings, and ids: the model's own unless ignore_eos, those asked for, and control ids whose names are strings of
    `stop`."""
    stop, vocab = fields.strings("stop", STOPS, STOP_LENGTH), served.tokenizer.vocab_size
    asked = ids_of("stop_token_ids", fields.take("stop_token_ids", [], "token ids", list), vocab)
    own = () if fields.flag("ignore_eos") else served.model.stop_ids
    named = (id for id, name in served.tokenizer.controls.items() if name in stop)
    return stop, tuple(dict.fromkeys([*own, *asked, *named]))


def _max_new_tokens(served: Served, fields: Fields, prompts: list[tuple[str, list[int]]], room: int) -> int:
    """As asked for, or `room`, at most what the longest prompt leaves. Raises ApiError for what does not fit."""
    longest, limit = max(len(ids) for _, ids in prompts), served.limits.new_tokens or INT32
    left = served.length - longest
    if left < 1:
        message = f"a prompt of {longest:,} tokens leaves no room in the context of {served.length:,}: shorten it"
        raise ApiError(400, message, "prompt", "context_length_exceeded")
    names = ("max_tokens", "max_completion_tokens")
    given = {name: fields.integer(name, None, 1, INT32) for name in names}
    name, asked = next(((n, v) for n, v in given.items() if v), ("", min(room, left, limit)))
    if asked > limit:
        bad(name, f"{name}={asked}: this server gives at most {limit}")
    if asked > left:
        message = f"{name}={asked} and a prompt of {longest:,} tokens do not fit the context of {served.length:,}"
        raise ApiError(400, f"{message}: ask for at most {left:,}", name, "context_length_exceeded")
    if len({value for value in given.values() if value}) > 1:
        bad(names[0], f"{names[0]} and {names[1]} differ: give one")
    return asked


def _sampling(served: Served, fields: Fields) -> Sampling:
    """How to draw. Raises ApiError with the field that is out of range."""
    number, padded = fields.number, served.model.config.vocab > served.tokenizer.vocab_size
    top_k = fields.integer("top_k", 0, -1, INT32) or 0  # vLLM's -1 is all
    with refusing(None):
        return Sampling(
            number("temperature", 1.0),
            max(0, top_k),
            number("top_p", 1.0),
            number("min_p", 0.0),
            number("typical_p", 1.0),
            number("repetition_penalty", 1.0),
            number("presence_penalty", 0.0),
            number("frequency_penalty", 0.0),
            _bias(served, fields),
            served.tokenizer.vocab_size if padded else 0,
        )


def _bias(served: Served, fields: Fields) -> tuple[tuple[int, float], ...]:
    """The field logit_bias: id, as text, to a number from -100 to 100."""
    bias = fields.take("logit_bias", {}, "an object of token ids and numbers", dict)
    for id, value in bias.items():
        known = id.isascii() and id.isdigit() and len(id) < 10 and int(id) < served.tokenizer.vocab_size
        number = isinstance(value, int | float) and not isinstance(value, bool) and -100 <= value <= 100
        if not known or not number:
            expected = f"token ids from 0 to {served.tokenizer.vocab_size - 1}, and numbers from -100 to 100"
            bad("logit_bias", f"logit_bias has {id[:20]!r}: expected {expected}")
    return tuple((int(id), float(value)) for id, value in bias.items())
