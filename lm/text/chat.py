"""Chat templates: messages to the text that a model was taught, and which of its tokens are the assistant's.

A template is jinja2 in tokenizer_config.json or chat_template.jinja, rendered as transformers renders it, in a sandbox:
a template comes with a model's files and is not trusted.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from lm.text.protocol import Tokenizer

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, and what else a template asks for
# Around what a template says is generated, where turns() asks: noncharacters, which no text should hold.
OPEN, CLOSE = "\ufdd0", "\ufdd1"
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing; templates ask for the first two


def render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """`messages` as `template` writes them, with the header of an answer where `add_generation_prompt`. `variables`
    are what else it asks for: bos_token, eos_token, documents.

    Raises ValueError where the template is damaged, or refuses these messages."""
    return _render(template, messages, add_generation_prompt, tools, variables, marked=False)


def render_with(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """`render` with the template and the control tokens of `tokenizer`."""
    variables = {**tokenizer.special_tokens(), **variables}
    return render(template_of(tokenizer, bool(tools)), messages, add_generation_prompt, tools, **variables)


def template_of(tokenizer: Tokenizer, tools: bool = False) -> str:
    """The chat template of `tokenizer`, of several the one for `tools`. Raises ValueError where it has none."""
    found = tokenizer.chat_template
    if isinstance(found, str):
        return found
    if not found:
        raise ValueError("this tokenizer has no chat template: set tokenizer.chat_template")
    name = "tool_use" if tools and "tool_use" in found else "default"
    if name not in found:
        raise ValueError(f"no chat template is called default: there are {', '.join(found)}")
    return found[name]


def turns(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and which of them are the assistant's.

    Those in {% generation %} of the template, or else what each answer adds to the conversation before it and the
    header of an answer, to its end of turn. Raises ValueError for a template in which an earlier answer depends on
    later messages and nothing says what is generated."""
    template = template_of(tokenizer, bool(tools))
    variables = {**tokenizer.special_tokens(), **variables}
    marked = _render(template, messages, False, tools, variables, marked=True)
    if OPEN in marked:
        text, parts = _unmark(marked)
        spans = tokenizer.spans(text)
        return [id for id, _, _ in spans], _inside(spans, parts)
    parts = _answers(marked, messages, lambda some, open: _render(template, some, open, tools, variables, False))
    spans = tokenizer.spans(marked)
    ids = [id for id, _, _ in spans]
    mask = [False] * len(ids)
    for part in parts:
        inside = [at for at, yes in enumerate(_inside(spans, [part])) if yes]
        while (
            inside and ids[inside[-1]] not in tokenizer.controls and any(ids[i] in tokenizer.controls for i in inside)
        ):
            if tokenizer.bytes_of(ids[inside[-1]]).strip():
                break
            inside.pop()  # white space after the end of the turn
        for at in inside:
            mask[at] = True
    return ids, mask


def _answers(
    text: str, messages: Sequence[Message], rendered: Callable[[Sequence[Message], bool], str]
) -> list[tuple[int, int]]:
    """Where each of the assistant's messages lies in `text`."""
    found = []
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before, after = rendered(messages[:i], True) if i else "", rendered(messages[: i + 1], False)
        if not (after.startswith(before) and text.startswith(after)):
            raise ValueError(
                f"the chat template writes message {i} in another way when more messages follow: "
                "put {% generation %} .. {% endgeneration %} around what the assistant says in it"
            )
        found.append((len(before), len(after)))
    return found


def _inside(spans: Sequence[tuple[int, int, int]], parts: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token has a character in one of `parts`."""
    return [any(start < b and a < max(end, start + 1) for a, b in parts) for _, start, end in spans]


def _unmark(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without marks, and what lay between them."""
    text, parts = "", []
    first, *rest = marked.split(OPEN)
    text += first
    for part in rest:
        inside, _, outside = part.partition(CLOSE)
        parts.append((len(text), len(text) + len(inside)))
        text += inside + outside
    return text, [(a, b) for a, b in parts if a < b]


# ---------------------------------------------------------------- the sandbox


def _render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    marked: bool,
) -> str:
    chat = [_message(plain) for plain in _plain(list(messages))]
    given = {"documents": None, **_plain(dict(variables))}
    given |= {"messages": chat, "tools": _plain(list(tools)) if tools is not None else None}
    compiled = _compiled(template, marked)
    try:
        return compiled.render(**given, add_generation_prompt=add_generation_prompt)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"the chat template cannot write these messages: {error}") from None


def _plain(value: Any) -> Any:
    """`value` in JSON's types, so that a template sees no methods but theirs; anything else only by its type."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return f"<{type(value).__name__}>"


def _message(message: Any) -> dict[str, Any]:
    """A message without its empty fields, and its reasoning by the names that templates know."""
    if not isinstance(message, dict):
        raise ValueError(f"a message is {message!r}: expected an object with a role and a content")
    message = {key: item for key, item in message.items() if item is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


class _Generation(Extension):
    """{% generation %} .. {% endgeneration %}: what the assistant says."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return OPEN + caller() + CLOSE if self.environment.globals["marked"] else caller()


class _Space(Namespace):
    """jinja2's namespace, closed to names that reach into Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a chat template must not set {name!r}")
        super().__setitem__(name, value)


@lru_cache(maxsize=64)
def _compiled(template: str, marked: bool) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson  # jinja2's own escapes <, > and &
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "namespace": _Space, "marked": marked}
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is damaged in line {error.lineno}: {error.message}") from None


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
