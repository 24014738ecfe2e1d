"""What the fields of tokenizer_config.json, and of the files like it, may hold."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lm.text.protocol import ROLES

MAX_ID = 1_000_000  # of a token: more is damage


class Kind(NamedTuple):
    """What a field is, in words, and whether a value is one."""

    expected: str
    accepts: Callable[[Any], bool]


def is_id(value: Any) -> bool:
    """Whether a value may be the id of a token."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and isinstance(value.get("content"), str))


def _are_tokens(value: Any) -> bool:
    listed = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(listed, list) and all(map(_is_token, listed))


def _is_decoder(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        id.isdecimal() and is_id(int(id)) and isinstance(token, Mapping) and _is_token(token)
        for id, token in value.items()
    )


def _is_template(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list)
        and all(
            isinstance(one, Mapping) and isinstance(one.get("name"), str) and isinstance(one.get("template"), str)
            for one in value
        )
    )


TOKEN = Kind("a token", _is_token)
TOKENS = Kind("a list of tokens", _are_tokens)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
FLAGS = (
    *("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"),
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars"),  # BERT's
)
KINDS: dict[str, Kind] = {
    **{f"{role}_token": TOKEN for role in ROLES},
    **dict.fromkeys(("additional_special_tokens", "extra_special_tokens"), TOKENS),
    **dict.fromkeys(FLAGS, FLAG),
    "added_tokens_decoder": Kind(f"tokens by their ids, of at most {MAX_ID}", _is_decoder),
    "chat_template": Kind("jinja2, or a list of objects with a name and a template", _is_template),
    "tokenizer_class": Kind("a name", lambda value: isinstance(value, str)),
    "extra_ids": Kind(f"a number of at most {MAX_ID}", is_id),
}


def checked_fields(file: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The `fields` of a file, less flags that are null. Raises ValueError for one that is not of its kind."""
    for name, value in fields.items():
        if value is not None and name in KINDS and not KINDS[name].accepts(value):
            raise ValueError(f"{file} is damaged: {name} is {str(value)[:60]!r}, expected {KINDS[name].expected}")
    return {name: value for name, value in fields.items() if value is not None or name not in FLAGS}


def checked_ids(file: str, ids: Mapping[str, Any]) -> dict[str, int]:
    """The ids of a file, token -> id. Raises ValueError where they are something else."""
    for name, id in ids.items():
        if not is_id(id):
            raise ValueError(f"{file} is damaged: {name!r} has {str(id)[:60]!r}, expected an id of at most {MAX_ID}")
    return dict(ids)


def checked_stops(file: str, stops: Any) -> tuple[int, ...]:
    """The ids of generation_config.json's eos_token_id. Raises ValueError where they are something else."""
    listed = [] if stops is None else stops if isinstance(stops, list) else [stops]
    if not all(map(is_id, listed)):
        raise ValueError(f"{file} is damaged: eos_token_id is {str(stops)[:60]!r}, expected an id or a list of them")
    return tuple(listed)
