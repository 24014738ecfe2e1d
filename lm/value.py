"""Operations on frozen values, of which an experiment is made.

Everything that a run depends on is a frozen dataclass of numbers, strings, tuples, dicts and other such values. The
operations are `replace` (nested), `parse` (from `a.b=c` text), `plain` and `build` (to JSON data and back),
`fingerprint` and `differences`. A field that accepts one of several classes is annotated with their common base class,
and its JSON names the class.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import math
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lm.renamed import place_now, upgrade

T = TypeVar("T")
LATE = "late"  # in a field's metadata: see `late`
TRUST = "LM_TRUST"  # environment: where it is set, the modules that data name are imported


def late() -> Any:
    """A field that came after data were written, None by default: JSON data, and so fingerprints, do not have it where
    it is None, and are what they were."""
    return dataclasses.field(default=None, metadata={LATE: True})


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: its close matches, then all known names."""
    known = [str(k) for k in known]
    matches = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return (f"did you mean {' or '.join(matches)}? " if matches else "") + f"known: {', '.join(known) or 'none'}"


def field_names(value: Any) -> list[str]:
    """The names that `replace` accepts for `value`: a dataclass's fields, a mapping's keys."""
    return list(value) if isinstance(value, Mapping) else [f.name for f in dataclasses.fields(value)]


def _check_field(value: Any, name: str) -> None:
    if not isinstance(value, Mapping) and name not in field_names(value):
        now = place_now(type(value).__name__, name)
        cure = f"it is {now} now" if now else suggest(name, field_names(value))
        raise ValueError(f"{type(value).__name__} has no field {name!r}: {cure}")


def field(value: Any, name: str) -> Any:
    """The field `name` of `value`, or the entry of a mapping, None where it has none. Raises ValueError for an unknown
    field, with the known ones, and for a value without fields."""
    if not isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
        raise ValueError(f"{value!r} has no fields, so {name!r} cannot be set in it")
    _check_field(value, name)
    return _get(value, name)


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name)


def _with(value: Any, changes: Mapping[str, Any]) -> Any:
    return {**value, **changes} if isinstance(value, Mapping) else dataclasses.replace(value, **changes)


def replace(value: T, changes: Mapping[str, Any]) -> T:
    """`value` with `changes`; a dict in place of a nested value changes that value, anything else replaces it.

    Raises ValueError for an unknown field, with the known ones."""
    new = {}
    for name, change in changes.items():
        old = field(value, name)
        nested = isinstance(change, Mapping) and (dataclasses.is_dataclass(old) or isinstance(old, Mapping))
        new[name] = replace(old, change) if nested else change
    return typing.cast(T, _with(value, new))


def paths(changes: Mapping[str, Any], above: str = "") -> list[str]:
    """The dotted paths that a nested change sets."""
    found: list[str] = []
    for name, change in changes.items():
        path = f"{above}{name}"
        found += paths(change, f"{path}.") if isinstance(change, Mapping) and change else [path]
    return found


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths to values, as a nested change."""
    out: dict[str, Any] = {}
    for path, new in changes.items():
        *folders, name = path.split(".")
        here = out
        for folder in folders:
            here = here.setdefault(folder, {})
        here[name] = new
    return out


def parse(value: T, setting: str) -> T:
    """`value` after one `path.to.field=text`, with the text parsed as the field's type: `steps=100`, `model.layers=4`,
    `model.positions=Rotary(theta=5e5)`, `compute.dtype=bfloat16`, `compute.keep=attention,out`."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise ValueError(f"cannot read {setting!r}: expected field=value, as in steps=100 or model.layers=4")
    try:
        return _parse(value, type(value), path.split("."), text)
    except ValueError as error:
        named = str(error).startswith(f"{path}=")
        raise ValueError(str(error) if named else f"{setting}: {error}") from None


def _parse(value: Any, kind: Any, path: list[str], text: str) -> Any:
    """`value`, annotated `kind`, with the field at `path` parsed from `text`."""
    name, *rest = path
    if isinstance(value, Mapping):
        entries = typing.get_args(kind)
        known = type(next(iter(value.values()), ""))
        inner = entries[1] if entries else float if known is int else known
        if rest and name not in value:
            raise ValueError(f"no entry {name!r}: {suggest(name, value)}")
    elif dataclasses.is_dataclass(value):
        _check_field(value, name)
        inner = _hints(typing.cast(Any, type(value)))[name]
    else:
        raise ValueError(f"{value!r} has no fields, so {name!r} cannot be set in it")
    return _with(value, {name: _parse(_get(value, name), inner, rest, text) if rest else _from_text(inner, text)})


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _all_subclasses(cls: type) -> list[type]:
    """A class and all below it."""
    below: list[type] = type.__subclasses__(cls)
    return [cls, *(found for sub in below for found in _all_subclasses(sub))]


def subclasses(cls: type) -> dict[str, type]:
    """The classes that a field annotated `cls` accepts, by name; of several definitions of a name the newest."""
    return {found.__name__: found for found in _all_subclasses(cls)}


def _alternatives(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _from_text(kind: Any, text: str) -> Any:
    """`text` parsed as the type `kind`: a scalar, a constructor call (`Rotary(theta=1e6)`), or a literal. Raises
    ValueError where it is none."""
    kinds = _alternatives(kind)
    if type(None) in kinds and text in ("None", "null", "none"):
        return None
    for one in (k for k in kinds if k is not type(None)):
        if one is str:
            return text
        if one is bool and text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        if one in (int, float):
            try:
                number = float(text.replace("_", ""))
            except ValueError:
                continue
            if one is float:
                return number
            if math.isfinite(number) and number == int(number):
                return int(text.replace("_", "")) if text.replace("_", "").lstrip("+-").isdigit() else int(number)
        elif dataclasses.is_dataclass(one):
            return _from_call(typing.cast(type, one), text)
        elif typing.get_origin(one) is tuple and dataclasses.is_dataclass(typing.get_args(one)[0]):
            return tuple(_from_text(typing.get_args(one)[0], part) for part in _elements(text))
        elif typing.get_origin(one) is tuple and typing.get_args(one)[0] is str and _are_names(text):
            return tuple(text.split(","))
        elif one not in (bool, int, float):
            try:
                return fit(one, ast.literal_eval(text))
            except (ValueError, SyntaxError, TypeError):
                continue
    names = " or ".join("None" if k is type(None) else getattr(k, "__name__", str(k)) for k in kinds)
    raise ValueError(f"cannot read {text!r} as {names}")


def _are_names(text: str) -> bool:
    """Whether `text` is names separated by commas."""
    return all(part.isidentifier() for part in text.split(","))


def _elements(text: str) -> list[str]:
    """The elements of a tuple or list as text; of another expression, that alone."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ValueError(f"cannot read {text!r}: write it as Python does, as in (LayerKind(…), LayerKind(…))") from None
    return [ast.unparse(node) for node in (tree.elts if isinstance(tree, (ast.Tuple, ast.List)) else [tree])]


def _from_call(base: type, text: str) -> Any:
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ValueError(f"cannot read {text!r}: write it as Python does, as in {base.__name__}(…)") from None
    if isinstance(tree, ast.Name):
        tree = ast.Call(func=tree, args=[], keywords=[])
    known = subclasses(base)
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args):
        raise ValueError(f"cannot read {text!r}: write it as Python does, with named fields, as in {base.__name__}(…)")
    if tree.func.id not in known:
        raise ValueError(f"unknown {base.__name__} {tree.func.id!r}: {suggest(tree.func.id, known)}")
    cls = known[tree.func.id]
    fields = [f.name for f in dataclasses.fields(cls)]
    arguments = {}
    for keyword in tree.keywords:
        if keyword.arg not in fields:
            raise ValueError(f"{cls.__name__} has no field {keyword.arg!r}: {suggest(str(keyword.arg), fields)}")
        node = keyword.value
        literal = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)
        arguments[keyword.arg] = _from_text(_hints(cls)[keyword.arg], literal)
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"cannot build {text!r}: {error}") from None


def fit(kind: Any, data: Any) -> Any:
    """JSON data converted to the annotated type: lists to tuples, dicts to dataclasses. Raises ValueError where it is
    not of that type."""
    kinds = _alternatives(kind)
    if len(kinds) > 1:
        if data is None and type(None) in kinds:
            return None
        others = [one for one in kinds if one is not type(None)]
        if len(others) == 1:
            return fit(others[0], data)  # which says what is wrong
        for one in others:
            try:
                return fit(one, data)
            except (ValueError, TypeError):
                continue
        raise ValueError(f"{data!r} is none of {kinds}")
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return data
    if dataclasses.is_dataclass(origin):
        if not isinstance(data, Mapping):
            raise ValueError(f"{data!r} is not a {origin}")
        return build(typing.cast(type, origin), data)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise ValueError(f"{data!r} is not a list")
        each = [inner[0]] * len(data) if len(inner) == 2 and inner[1] is Ellipsis else list(inner) or [Any] * len(data)
        return tuple(fit(k, d) for k, d in zip(each, data, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise ValueError(f"{data!r} is not a mapping")
        return {k: fit(inner[1] if inner else Any, v) for k, v in data.items()}
    if origin is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, origin) or (isinstance(data, bool) and origin is not bool):
        raise ValueError(f"{data!r} is not a {getattr(kind, '__name__', kind)}")
    return data


def plain(value: Any) -> Any:
    """`value` as JSON data. A dataclass becomes a dict whose "type" is the class name, with its module outside `lm`;
    `late` fields are left out. Raises ValueError for what is no such value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        ours = cls.__module__.split(".")[0] == "lm"
        name = cls.__name__ if ours else f"{cls.__module__}:{cls.__name__}"
        found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if not _is_left_out(value, f)}
        return {"type": name, **plain(found)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [plain(v) for v in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    kind = type(value).__name__
    raise ValueError(f"an experiment is made of numbers, text, tuples, dicts and dataclasses, not of {kind} {value!r}")


def _is_left_out(value: Any, field: Any) -> bool:
    return LATE in field.metadata and getattr(value, field.name) is None


def build(cls: type[T], data: Mapping[str, Any]) -> T:
    """The inverse of `plain`: a value of `cls` or of the subclass named by `data["type"]`, earlier names included
    (lm/renamed.py). Data import no code: a class outside `lm` is found where its module is imported already, or TRUST
    is set. Raises ValueError for an unknown class or field, or one that is missing."""
    data = upgrade({"type": cls.__name__, **data})
    name, actual = data["type"], typing.cast(Any, _class_named(cls, data["type"]))
    fields = {f.name for f in dataclasses.fields(actual)}
    unknown = set(data) - fields - {"type"}
    if unknown:
        raise ValueError(f"{name} has no field {sorted(unknown)[0]!r}: {suggest(sorted(unknown)[0], sorted(fields))}")
    arguments = {k: fit(_hints(actual)[k], v) for k, v in data.items() if k != "type"}
    try:
        return typing.cast(T, actual(**arguments))
    except TypeError as error:
        raise ValueError(f"cannot build {name}: {error}") from None


def _class_named(cls: type[T], name: Any) -> type[T]:
    """The class that data call `name`, one of those that a field annotated `cls` accepts."""
    if not isinstance(name, str):
        raise ValueError(f"type is {name!r}: expected the name of a class")
    module, of_others, own = name.rpartition(":")
    if not of_others:
        known = subclasses(cls)
    else:
        check_trusted(module)
        found = vars(importlib.import_module(module)).get(own)
        accepted = _all_subclasses(cls)
        known = {own: found} if isinstance(found, type) and found in accepted else {}
    if own not in known:
        raise ValueError(f"unknown {cls.__name__} {name!r}: {suggest(name, known)}")
    return typing.cast(type[T], known[own])


def check_trusted(module: str) -> None:
    """Raises ValueError for a module that a file names and that is not imported yet, unless TRUST is set."""
    if module not in sys.modules and os.environ.get(TRUST, "") in ("", "0"):
        raise ValueError(
            f"the module {module} is named by a file of the run and not imported here: a file imports no code unless "
            f"you trust it, with --trust or {TRUST}=1"
        )


def fingerprint(value: Any) -> str:
    """16 hex digits of a hash of the value's JSON data."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The differences of two JSON data (see `plain`): (dotted path, left, right), with None where one has no value."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = list(a) + [k for k in b if k not in a]
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{path}.{k}" if path else str(k))]
    return [] if a == b else [(path, a, b)]
