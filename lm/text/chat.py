"""Chat templates: messages to the text that a model was trained on, and the mask of the assistant's tokens.

A template is jinja2 in tokenizer_config.json or chat_template.jinja. It is rendered as transformers does, in a sandbox
(lm/text/sandbox.py).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.text.protocol import Offsets, Tokenizer

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, and other fields that a template reads
Markers = tuple[str, str]  # around what the assistant says
NONCHARACTERS = range(0xFDD0, 0xFDF0)  # of Unicode, which no text should contain, and some do
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field; templates read the first two


def render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """`messages` rendered by `template`.

    Args:
      template: jinja2.
      messages: of the conversation, each with role and content.
      add_generation_prompt: whether to append the header of the assistant's next message.
      tools: JSON schemas of functions that the model may call.
      variables: other variables of the template: bos_token, eos_token, documents.

    Raises:
      ValueError: where the template is damaged, or refuses these messages.
    """
    return _render(template, messages, add_generation_prompt, tools, variables)


def apply_chat_template(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """`render` with the template and the control tokens of `tokenizer`; the arguments and errors are the same."""
    variables = {**tokenizer.special_tokens(), **variables}
    return render(chat_template_of(tokenizer, bool(tools)), messages, add_generation_prompt, tools, **variables)


def chat_template_of(tokenizer: Tokenizer, tools: bool = False) -> str:
    """The chat template of `tokenizer`, of several the one for `tools`. Raises ValueError where it has none."""
    templates = tokenizer.chat_template
    if isinstance(templates, str):
        return templates
    if not templates:
        raise ValueError("this tokenizer has no chat template: set tokenizer.chat_template")
    name = "tool_use" if tools and "tool_use" in templates else "default"
    if name not in templates:
        raise ValueError(f"no chat template is called default: there are {', '.join(templates)}")
    return templates[name]


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    given: int = 0,
    **variables: Any,
) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and the mask of the assistant's tokens.

    These are what the template has in {% generation %}, or else what each of the assistant's messages adds to the
    rendered conversation before it with its header, up to the end of its turn. A token is the assistant's if a
    character of it is. The first `given` messages, to which the others are the answer, have none. Raises ValueError for
    a template without {% generation %} in which a message of the assistant is rendered differently when others
    follow."""
    template = chat_template_of(tokenizer, bool(tools))
    variables = {**tokenizer.special_tokens(), **variables}
    whole = _render(template, messages, False, tools, variables)
    if re.search(r"{%[-+]?\s*generation\b", template):
        markers = _unused_markers(whole)
        marked = _render(template, messages, False, tools, variables, markers)
        if markers[0] in marked:
            text, parts = _remove_markers(marked, markers)
            tokens = tokenizer.encode_with_offsets(text)
            before = _render(template, messages[:given], False, tools, variables, markers) if given else ""
            return [id for id, _, _ in tokens], _overlaps(tokens, parts[len(_remove_markers(before, markers)[1]) :])
    parts = _answers(whole, messages, given, lambda some, open: _render(template, some, open, tools, variables))
    tokens = tokenizer.encode_with_offsets(whole)
    ids = [id for id, _, _ in tokens]
    mask = [False] * len(ids)
    for part in parts:
        for at in _turn(ids, [at for at, inside in enumerate(_overlaps(tokens, [part])) if inside], tokenizer):
            mask[at] = True
    return ids, mask


def encode_chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> list[int]:
    """The ids after which the assistant's next message is to come; with exactly one bos, where prompts have one.
    `tools` and `variables` as in `render`. Raises ValueError where there is no template, or it refuses these
    messages."""
    text = apply_chat_template(tokenizer, messages, True, tools, **variables)
    return [*missing_bos(tokenizer, ids := tokenizer.encode(text, parse_special=True)), *ids]


def missing_bos(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The bos that prompts have and that a template has not written at the start of `ids`."""
    bos = tokenizer.bos
    return [] if bos is None or list(ids[:1]) == [bos] or tokenizer.encode_prompt("")[:1] != [bos] else [bos]


def _turn(ids: Sequence[int], inside: list[int], tokenizer: Tokenizer) -> list[int]:
    """The indices `inside` a message, without the whitespace after its end of turn, the last control id."""
    controls = [at for at in inside if ids[at] in tokenizer.controls]
    while controls and inside[-1] > controls[-1] and not tokenizer.bytes_of(ids[inside[-1]]).strip():
        inside.pop()
    return inside


def _answers(
    text: str, messages: Sequence[Message], given: int, rendered: Callable[[Sequence[Message], bool], str]
) -> list[tuple[int, int]]:
    """The (start, end) in `text` of each of the assistant's messages after the first `given`."""
    parts = []
    for i, message in enumerate(messages):
        if message.get("role") != "assistant" or i < given:
            continue
        before, after = rendered(messages[:i], True) if i else "", rendered(messages[: i + 1], False)
        if not (after.startswith(before) and text.startswith(after)):
            raise ValueError(
                f"the chat template renders message {i} in another way when more messages follow: "
                "put {% generation %} .. {% endgeneration %} around the assistant's text in it"
            )
        parts.append((len(before), len(after)))
    return parts


def _overlaps(tokens: Offsets, parts: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token has a character in one of `parts`."""
    return [any(start < b and a < max(end, start + 1) for a, b in parts) for _, start, end in tokens]


def _unused_markers(text: str) -> Markers:
    """Two characters to put around the parts of a text, neither of which it has."""
    free = [character for character in map(chr, NONCHARACTERS) if character not in text]
    if len(free) < 2:
        raise ValueError("the messages hold all of Unicode's noncharacters from U+FDD0 to U+FDEF: remove them")
    return free[0], free[1]


def _remove_markers(marked: str, markers: Markers) -> tuple[str, list[tuple[int, int]]]:
    """The text without `markers`, and the (start, end) of the parts between them."""
    text, parts = "", []
    first, *rest = marked.split(markers[0])
    text += first
    for part in rest:
        inside, _, outside = part.partition(markers[1])
        parts.append((len(text), len(text) + len(inside)))
        text += inside + outside
    return text, [(a, b) for a, b in parts if a < b]


def _render(
    template: str,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    markers: Markers = ("", ""),
) -> str:
    from lm.text.sandbox import render_template  # jinja2: 40 ms of a start that renders none

    values = {"documents": None, **_plain(dict(variables))}
    values["messages"] = [_message(message) for message in _plain(list(messages))]
    values["tools"] = None if tools is None else _plain(list(tools))
    return render_template(template, values | {"add_generation_prompt": add_generation_prompt}, markers)


def _plain(value: Any) -> Any:
    """`value` in JSON's types, so that a template reaches no other methods; anything else as the name of its type."""
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
    """A message without None fields, and with its reasoning by the names that templates read."""
    if not isinstance(message, dict):
        raise ValueError(f"a message is {message!r}: expected an object with a role and a content")
    message = {key: item for key, item in message.items() if item is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
