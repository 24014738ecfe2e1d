"""What may stand in a field of an experiment: a number's range, the names of a text, the classes of a value."""

import dataclasses
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from lm.bounds import FINITE, bounds_in, hints, inner, sentinels_in
from lm.value import field, plain, subclasses

LINE = 110  # characters
Rows = list[tuple[str, str]]  # (what may stand there, what it is)


class Field(NamedTuple):
    """A field: what stands in it, its annotation, the `names` where it is one of some (None: any text), and what its
    class's docstring says of it."""

    value: Any
    hint: Any
    names: Mapping[str, Any] | typing.Sequence[str] | None
    about: str


def members(value: Any, hint: Any = Any) -> dict[str, tuple[Any, Any]]:
    """Name -> (value, annotation) of what is in a dataclass, or in a mapping annotated `hint`."""
    if isinstance(value, Mapping):
        return {str(name): (one, inner(hint)) for name, one in value.items()}
    if not dataclasses.is_dataclass(value):
        return {}
    cls: Any = type(value)
    return {name: (getattr(value, name), one) for name, one in hints(cls).items()}


def find_field(value: Any, path: str) -> Field:
    """The field at the dotted `path` of `value`. Raises ValueError for an unknown one, with the known ones."""
    hint: Any = Any
    found = Field(value, type(value), None, "")
    for name in path.split("."):
        one = field(value, name)
        hint = inner(hint) if isinstance(value, Mapping) else hints(typing.cast(Any, type(value)))[name]
        names = {} if isinstance(value, Mapping) else getattr(type(value), "choices", {})
        found = Field(one, hint, names.get(name), mentions(type(value), name))
        value = one
    return found


def mentions(cls: type, name: str) -> str:
    """The sentences of a class's docstring that have `name` in backticks."""
    text = " ".join((cls.__doc__ or "").split())
    sentences = re.split(r"(?<=[.;])\s+(?=[A-Z`-])", text)
    return " ".join(one.removeprefix("- ") for one in sentences if f"`{name}`" in one)


def allowed(hint: Any, names: Any = None) -> Rows:
    """What may stand in a field annotated `hint`, a row each.

    Args:
      hint: the annotation.
      names: the texts it accepts (None: all)."""
    if names is not None:
        docs = names if isinstance(names, Mapping) else {}
        return [(name or "''", line_of(docs[name]) if name in docs else "") for name in names]
    own = [(f"{one.number:g}", one.means) for one in sentinels_in(hint)]
    bare = hint.__origin__ if hasattr(hint, "__metadata__") else hint
    if typing.get_origin(bare) in (typing.Union, types.UnionType):
        return [*own, *(row for one in typing.get_args(bare) for row in allowed(one))]
    origin, inside = typing.get_origin(bare) or bare, typing.get_args(bare)
    if origin in (int, float):
        return [(str(next(iter(bounds_in(hint)), FINITE)), ""), *own]
    if dataclasses.is_dataclass(origin):
        return [
            (signature(cls), line_of(cls))
            for cls in subclasses(typing.cast(type, origin)).values()
            if complete(cls) and not cls.__name__.startswith("_")
        ]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return [("name=…, each of", ""), *allowed(inner(bare))]
    if origin is tuple:
        several = inside[1:] == (Ellipsis,)
        each = inside[:1] if several else inside
        return [("several of" if several else f"{len(each)} of", ""), *(row for one in each for row in allowed(one))]
    plainly = {type(None): "None", bool: "true or false", str: "a text", Any: "anything"}
    return [(plainly.get(origin, getattr(origin, "__name__", str(origin))), "")]


def signature(cls: type) -> str:
    """A class with its fields, as `--set` takes it."""
    shown = []
    for one in dataclasses.fields(typing.cast(Any, cls)):
        factory: Any = one.default_factory
        default = one.default if factory is dataclasses.MISSING else factory()
        shown.append(one.name if default is dataclasses.MISSING else f"{one.name}={short(default)}")
    return f"{cls.__name__}({', '.join(shown)})"


def short(value: Any) -> str:
    """A default in a signature: a class without its fields."""
    data = plain(value)
    return f"{data['type'].rpartition(':')[2]}()" if isinstance(data, Mapping) and "type" in data else repr(value)


def line_of(thing: Any) -> str:
    """The first sentence of a docstring that is a thing's own, or of it what fits a line."""
    text = " ".join((getattr(thing, "__doc__", None) or "").split())
    own = isinstance(thing, type) or hasattr(thing, "__code__")
    return textwrap.shorten(re.split(r"(?<=[.;])\s", text)[0].rstrip(".;"), LINE, placeholder=" …") if own else ""


def complete(cls: type) -> bool:
    """Whether a class is more than what its subclasses have in common: no function of it is left to them."""
    functions: Any = (getattr(cls, name, None) for name in dir(cls) if not name.startswith("__"))
    functions = (one.fget if isinstance(one, property) else one for one in functions)
    left = ("NotImplementedError",)
    return not any(one.__code__.co_names == left for one in functions if hasattr(one, "__code__"))
