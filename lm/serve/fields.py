"""Reading the JSON of a request: every field is asked for by name and kind, and what nobody asked for is refused."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lm.bounds import FLOAT32
from lm.value import suggest

# Fields of OpenAI's or vLLM's API that are not served, with the values that ask for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "continue_final_message": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "metadata": ({},),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}


class ApiError(ValueError):
    """What a client is told: a status, a message, the field `param` it is about, and headers."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message, param = (None if text is None else _unicode(text) for text in (str(self), self.param))
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}


def bad(param: str, message: str) -> NoReturn:
    """Refuse a field."""
    raise ApiError(400, message, param)


def parse(data: bytes) -> "Fields":
    """The fields of a body. Raises ApiError for what is not a JSON object, with numbers that are finite and names that
    occur once."""
    try:
        body = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twice)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is {_kind(body)}: expected an object")
    return Fields(body)


class Fields:
    """The fields of a JSON object; null is as good as absent."""

    def __init__(self, body: Mapping[str, Any], path: str = ""):
        self.left, self.path = dict(body), path
        self.known: list[str] = []

    def take(self, name: str, default: Any, expected: str, *kinds: type) -> Any:
        """The value of a field, of one of `kinds`, or the default."""
        self.known.append(name)
        value = self.left.pop(name, None)
        if value is None:
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            bad(self.path + name, f"{self.path}{name} is {_kind(value)}: expected {expected}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.take(name, default, "true or false", bool))

    def text(self, name: str, default: str = "") -> str:
        return str(self.take(name, default, "a string", str))

    def number(self, name: str, default: float) -> float:
        value = self.take(name, default, "a number", int, float)
        if not abs(value) <= FLOAT32:
            bad(self.path + name, f"{self.path}{name}={_short(value)}: expected a finite number")
        return float(value)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self.take(name, default, "a whole number", int)
        if value is not None and not low <= value <= high:
            bad(self.path + name, f"{self.path}{name}={value}: expected {low} to {high}")
        return None if value is None else int(value)

    def strings(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """One string, or a list of them; none of them empty."""
        value = self.take(name, [], "a string or a list of strings", str, list)
        values = (value,) if isinstance(value, str) else tuple(value)
        if not all(isinstance(one, str) and 0 < len(one) <= longest for one in values) or len(values) > most:
            bad(name, f"{name}: expected at most {most} strings of 1 to {longest:,} characters")
        return values

    def part(self, name: str) -> "Fields":
        """The fields of an object."""
        return Fields(self.take(name, {}, "an object", dict), f"{self.path}{name}.")

    def finish(self) -> None:
        """Refuse the fields that are left, but for those that ask for nothing."""
        for name, value in self.left.items():
            if value is None or (not self.path and any(value == one for one in NEUTRAL.get(name, ()))):
                continue
            if not self.path and name in NEUTRAL:
                bad(name, f"{name}={_short(value)} is not supported by this server: leave it out")
            bad(self.path + name, f"unknown field {self.path}{name}: {suggest(name, sorted(self.known))}")


def ids_of(name: str, value: Sequence[Any], vocab: int) -> list[int]:
    """A list of token ids. Raises ApiError for anything else in it."""
    for one in value:
        if not isinstance(one, int) or isinstance(one, bool):
            bad(name, f"{name} has {_short(one)}: expected token ids")
        if not 0 <= one < vocab:
            bad(name, f"{name} has token id {one}: expected 0 to {vocab - 1}")
    return list(value)


def _unicode(text: str) -> str:
    """A text that UTF-8 has: a client's names may hold half a character."""
    return text.encode(errors="backslashreplace").decode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return found


def _kind(value: Any) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number"}
    return kinds.get(type(value), "null" if value is None else "a number")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
