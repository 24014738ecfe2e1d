"""The legal range of every number of an experiment, said where its field is declared.

    class RMSNorm(Norm):
        eps: NonNegative = 1e-6

The names are of annotated types: `Count` is an int, `Positive` a float. `check` walks a value with all that is in it,
and refuses the first number outside its range by the path of its field. Where none is declared, any finite number is
legal. A number that a field takes for something else, as 0 for all, says so by a `Sentinel`.
"""

import dataclasses
import functools
import math
import numbers
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

INT32 = 2**31 - 1  # the largest index that a device counts with
FLOAT32 = 3.4028234663852886e38


@dataclass(frozen=True)
class Bounds:
    """From `low` to `high`, both included unless `above` or `below` says otherwise; `whole` numbers alone."""

    low: float = -FLOAT32
    high: float = FLOAT32
    above: bool = False
    below: bool = False
    whole: bool = False

    def fault(self, number: Any) -> str:
        """What was expected instead of `number`; empty where it is legal."""
        if self.whole and not isinstance(number, numbers.Integral):
            return "expected a whole number"
        if not math.isfinite(number) and number != self.low:
            return "expected a finite number" + (" or -inf" if math.isinf(self.low) else "")
        low = number < self.low or (self.above and number == self.low)
        if not low and (number < self.high or (number == self.high and not self.below)):
            return ""
        least = f"{'more than' if self.above else 'at least'} {self.low:,}"
        most = f"{'less than' if self.below else 'at most'} {self.high:,}"
        narrow = self.low > -FLOAT32 and self.high < INT32
        if low:
            return f"expected {least}{f' and {most}' if narrow else ''}"
        return f"expected {f'{least} and ' if narrow else ''}{most}"

    def __str__(self) -> str:
        ends = {
            ("above" if self.above else "from"): self.low if self.low > -FLOAT32 else None,
            ("below" if self.below else "to"): self.high if self.high < INT32 else None,
        }
        said = [f"{word} {end:,}" for word, end in ends.items() if end is not None]
        return " ".join(["a whole number" if self.whole else "a number", *said])


@dataclass(frozen=True)
class Sentinel:
    """The `number` of a field that stands for what it `means`."""

    number: float
    means: str


FINITE = Bounds()
Finite = Annotated[float, FINITE]
Positive = Annotated[float, Bounds(0, above=True)]
NonNegative = Annotated[float, Bounds(0)]
Fraction = Annotated[float, Bounds(0, 1)]  # both ends included
Share = Annotated[float, Bounds(0, 1, above=True, below=True)]  # neither
Probability = Annotated[float, Bounds(0, 1, above=True)]
Decay = Annotated[float, Bounds(0, 1, below=True)]  # of a moving average; also a rate of dropout
Count = Annotated[int, Bounds(1, INT32, whole=True)]
Natural = Annotated[int, Bounds(0, INT32, whole=True)]
Seed = Annotated[int, Bounds(0, 2**32 - 1, whole=True)]


def whole(low: int, high: int = INT32) -> Bounds:
    """The whole numbers from `low` to `high`."""
    return Bounds(low, high, whole=True)


def check(value: Any, above: str = "") -> None:
    """Raise ValueError for the first number in `value`, a dataclass, that is outside its range, by the path of its
    field after `above`."""
    for path, number, bounds in numbers_of(value, above):
        if fault := bounds.fault(number):
            raise ValueError(f"{path}={number!r}: {fault}")


def require(kind: Any, **named: Any) -> None:
    """Raise ValueError where one of the numbers `named` is outside the range of `kind`, as in require(Seed, seed=3)."""
    for name, number in named.items():
        if fault := next(bounds.fault(number) for bounds in bounds_in(kind)):
            raise ValueError(f"{name}={number!r}: {fault}")


def numbers_of(value: Any, path: str = "", hint: Any = Any) -> Iterator[tuple[str, Any, Bounds]]:
    """(path, number, its bounds) of every number in `value`, which is annotated `hint`."""
    if value is None or type(value) in (bool, str):  # as most fields are
        return
    if type(value) in (int, float):
        yield path, value, next(iter(bounds_in(hint)), FINITE)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name, one in hints(type(value)).items():
            yield from numbers_of(getattr(value, name), f"{path}.{name}" if path else name, one)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from numbers_of(one, f"{path}.{key}", inner(hint))
    elif isinstance(value, tuple | list):
        for i, one in enumerate(value):
            yield from numbers_of(one, f"{path}[{i}]", inner(hint, i))
    elif isinstance(value, numbers.Real):
        yield path, value, next(iter(bounds_in(hint)), FINITE)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, bounds included."""
    every = typing.get_type_hints(cls, include_extras=True)
    return {field.name: every[field.name] for field in dataclasses.fields(typing.cast(Any, cls))}


def bounds_in(hint: Any) -> list[Bounds]:
    """Those that an annotation, or an alternative of it, declares."""
    own = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Bounds)]
    return own or [found for one in typing.get_args(hint) for found in bounds_in(one)]


def meaning(hint: Any, value: Any) -> str:
    """What `value` stands for in a field annotated `hint`; empty where it is no sentinel."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return next((one.means for one in sentinels_in(hint) if number and one.number == value), "")


def sentinels_in(hint: Any) -> list[Sentinel]:
    """Those that an annotation declares."""
    return [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Sentinel)]


def inner(hint: Any, index: int = 1) -> Any:
    """The annotation of what is in a mapping (at index 1) or, at `index`, in a sequence."""
    kinds = [k for k in (hint, *typing.get_args(hint)) if isinstance(typing.get_origin(k), type)]
    found = next((typing.get_args(k) for k in kinds if typing.get_args(k)), ())
    index = 0 if found[1:] == (Ellipsis,) else index
    return found[index] if len(found) > index else Any
