"""A value as the Python that makes it, of its plain data (lm.value.plain): as text, and as coloured lines."""

from collections.abc import Callable, Mapping
from typing import Any

from lm.page.markup import Markup, joined, tag

WIDTH = 96  # columns: a longer value has a line a field


def as_python(data: Any, write: Callable[[Any], str] = repr) -> str:
    """In one line; numbers, texts and the like by `write`."""
    if isinstance(data, Mapping):
        typed, name = _is_class(data), _class(data)
        fields = {k: as_python(v, write) for k, v in data.items() if not typed or k != "type"}
        inner = ", ".join(f"{k}={v}" if typed else f"{k!r}: {v}" for k, v in fields.items())
        return f"{name}({inner})" if typed else f"{{{inner}}}"
    return f"[{', '.join(as_python(x, write) for x in data)}]" if isinstance(data, (list, tuple)) else write(data)


def with_commas(leaf: Any) -> str:
    """As repr, but whole numbers with commas."""
    return f"{leaf:,}" if isinstance(leaf, int) and not isinstance(leaf, bool) else repr(leaf)


def coloured(data: Any, indent: int = 0) -> Markup:
    """Over several lines where it is long, field names grey, the names of classes in colour."""
    if not isinstance(data, Mapping) or not data:
        return joined([as_python(data)])
    typed = _is_class(data)
    start, end = ("(", ")") if typed else ("{", "}")
    name = tag("em", _class(data)) if typed else Markup("")
    inside = [
        joined([tag("i", f"{k}=" if typed else f"{k!r}: "), coloured(v, indent + 4)])
        for k, v in data.items()
        if not typed or k != "type"
    ]
    if indent and indent + len(as_python(data)) <= WIDTH:
        return joined([name, start, Markup(", ".join(inside)), end])
    pad = " " * (indent + 4)
    return joined([name, start, "\n", *(joined([pad, one, ",\n"]) for one in inside), " " * indent, end])


def _is_class(data: Mapping[str, Any]) -> bool:
    """Whether it is of a class, or else a dict, in which "type" is a key as any other."""
    return isinstance(data.get("type"), str)


def _class(data: Mapping[str, Any]) -> str:
    return str(data.get("type", "")).rpartition(":")[2]
