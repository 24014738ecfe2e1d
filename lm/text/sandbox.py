"""The sandbox in which chat templates are rendered: a template comes with a model's files and is not trusted.

jinja2's own keeps it from Python's internals. This one also bounds what it makes: strings, lists and numbers on the
way, and the output, have at most LIMIT characters, elements or bits.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LIMIT = 2**27
GROWING = ("replace", "join", "expandtabs", "translate", "center", "ljust", "rjust", "zfill")  # methods of text
GROWING_FILTERS = ("replace", "join", "center", "indent", "tojson", "batch", "slice", "wordwrap")
LOOPS = 10_000_000  # elements of all ranges
COST_OF_BIT = 128  # of a number, in characters: the time that its arithmetic takes


def render_template(template: str, values: Mapping[str, Any], markers: tuple[str, str] = ("", "")) -> str:
    """`template` rendered with `values`, and `markers` around the text of each {% generation %}.

    Raises ValueError where the template is damaged or raises anything, recursion without end and what would exceed
    LIMIT included."""
    compiled = _compiled(template, markers)
    try:
        return "".join(_bounded(compiled.generate({**values, "range": _range_of(LOOPS)})))
    except Exception as error:  # a template is a program
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the chat template cannot render these messages: {reason}") from None


def _bounded(parts: Iterator[str]) -> Iterator[str]:
    length = 0
    for part in parts:
        length += len(part)
        _check(length)
        yield part


def _range_of(budget: int) -> Callable[..., range]:
    """Python's range, of at most `budget` elements over all calls: loops may be nested."""
    left = [budget]

    def bounded(*args: int) -> range:
        made = range(*args)
        left[0] -= len(made)
        _check(budget - left[0], budget)
        return made

    return bounded


# ---------------------------------------------------------------- sizes


def _check(size: float, limit: int | None = None) -> None:
    """Raises ValueError for a size beyond `limit` (None: LIMIT)."""
    if size > (limit or LIMIT):
        raise ValueError(f"it asks for more than {limit or LIMIT:,} characters or elements")


def _size(value: Any, so_far: int = 0) -> int:
    """The characters of a value as text, about; the sum stops beyond LIMIT."""
    if isinstance(value, str):
        return so_far + len(value)
    if isinstance(value, int):
        return so_far + value.bit_length() // 3 + 1
    if isinstance(value, Mapping):
        value = [item for pair in value.items() for item in pair]
    if isinstance(value, (list, tuple)):
        for item in value:
            so_far = _size(item, so_far + 1)
            if so_far > LIMIT:
                break
        return so_far
    return so_far + 1


def _check_growth(subject: Any, args: Any) -> None:
    """Raises where a function that puts one of `args`, or as many characters, at every place of `subject` could exceed
    LIMIT."""
    most = max((abs(arg) if isinstance(arg, int) else _size(arg) for arg in args), default=0)
    _check((1 + _size(subject)) * (1 + most))


def _check_format(form: str, args: Any) -> None:
    """Raises where `form` filled in with `args` could exceed LIMIT, by its widths or by what it is filled in with."""
    form = form.replace("{{", "").replace("}}", "")  # braces themselves
    percent = re.findall(r"%(?:\([^)]*\))?[-+ #0]*(\d*)(?:\.(\d+))?", form)
    braces = re.findall(r"{[^{}]*?:([^{}]*)", form)
    widths = [n for pair in percent for n in pair if n] + re.findall(r"\d+", " ".join(braces))
    given = sum(map(abs, _numbers(args))) if "*" in form or re.search(r"{[^{}]*{", form) else 0  # widths too
    _check(sum(map(int, widths)) + (_size(args) + given) * (len(percent) + form.count("{")))


def _numbers(args: Any) -> Iterator[int]:
    """The whole numbers in the arguments of a format, which may be widths."""
    listed = args.values() if isinstance(args, Mapping) else args if isinstance(args, (list, tuple)) else [args]
    for arg in listed:
        if isinstance(arg, (list, tuple, Mapping)):
            yield from _numbers(arg)
        elif isinstance(arg, int):
            yield arg


def _repeated(left: Any, right: Any) -> float:
    """The size of left * right."""
    if isinstance(left, int) and isinstance(right, int):
        return (left.bit_length() + right.bit_length()) * COST_OF_BIT
    numbers = [n for n in (left, right) if isinstance(n, int)]
    sequences = [s for s in (left, right) if isinstance(s, (str, list, tuple))]
    return max(numbers[0], 0) * len(sequences[0]) if numbers and sequences else 0


def _power(left: Any, right: Any) -> float:
    whole = isinstance(left, int) and isinstance(right, int)
    return left.bit_length() * max(right, 0) * COST_OF_BIT if whole else 0


def _joined(left: Any, right: Any) -> float:
    kinds = (str, list, tuple)
    return len(left) + len(right) if isinstance(left, kinds) and isinstance(right, kinds) else 0


SIZES: dict[str, Callable[[Any, Any], float]] = {"*": _repeated, "**": _power, "+": _joined}


# ---------------------------------------------------------------- the environment


class _Code(CodeGenerator):
    """`a ~ b` as a call of the environment, as other operators are."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Any) -> None:
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, bounded."""

    code_generator_class = _Code
    intercepted_binops = frozenset({*SIZES, "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator in SIZES:
            _check(SIZES[operator](left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        own, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(own, str) and name in GROWING:
            _check_growth(own, (*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @wraps(formatted)
        def bounded(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, (args, kwargs))
            return formatted(*args, **kwargs)

        return bounded

    def concatenate(self, parts: tuple[Any, ...]) -> str:
        """`~` of several values."""
        _check(_size(parts))
        return "".join(map(str, parts))


def _bounded_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    first = hasattr(function, "jinja_pass_arg")  # before what it is applied to

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_growth(args[first], (*args[first + 1 :], *kwargs.values()))
        return function(*args, **kwargs)

    return bounded


def _format_filter(form: Any, *args: Any, **kwargs: Any) -> str:
    _check_format(str(form), (args, kwargs))
    return str(form) % (kwargs or args)


def _bounded_output(value: Any) -> Any:
    """What is output, which becomes text."""
    _check(_size(value))
    return value


class _Generation(Extension):
    """{% generation %} .. {% endgeneration %}: the assistant's text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        markers: Any = self.environment.globals["markers"]
        return markers[0] + caller() + markers[1]


class _Namespace(Namespace):
    """jinja2's namespace without names that reach into Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a chat template must not set {name!r}")
        super().__setitem__(name, value)


@lru_cache(maxsize=64)
def _compiled(template: str, markers: tuple[str, str]) -> jinja2.Template:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_bounded_output
    )
    environment.filters |= {"tojson": _tojson, "format": _format_filter}  # jinja2's tojson escapes <, > and &
    environment.filters |= {name: _bounded_filter(environment.filters[name]) for name in GROWING_FILTERS}
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now, "namespace": _Namespace}
    environment.globals["markers"] = markers
    del environment.globals["lipsum"]  # which makes as much text as it is asked for
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is damaged in line {error.lineno}: {error.message}") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:  # of Python's compiler: too deeply nested
        raise ValueError(f"the chat template is too deeply nested: {error}") from None


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
