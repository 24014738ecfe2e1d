"""What a sweep may choose from: a range for each field, by the field's dotted path.

    {"optimizer.b2": Uniform(0.9, 0.999), "model.layers": Integer(2, 6), "model.tied": Choice(True, False)}

An option of a Choice may bring fields that only it has, or that only then are free:

    {"optimizer": Choice(
        With(AdamW(), {"optimizer.learning_rate": LogUniform(1e-3, 1e-2), "optimizer.eps": LogUniform(1e-10, 1e-6)}),
        With(Lion(), {"optimizer.learning_rate": LogUniform(1e-4, 1e-3)}),
    )}

A *draw* is one choice from every range in force, by name, in numbers and labels; `settings` are the values that it
stands for, by path; `changed` is the experiment with them. The name of a range is its path, after which come the labels
of the options that brought it: "optimizer.learning_rate [Lion]".
"""

import dataclasses
import itertools
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import value
from lm.experiment import Experiment

Draw = dict[str, Any]  # name -> number, or label of an option
Settings = dict[str, Any]  # path -> value
TRIES = 1000  # draws for each arm, where the others were there already
KINDS = "Uniform, LogUniform, Integer or Choice"


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, both included; `points` evenly spaced ones in a grid. With `log`, steps of equal ratio are
    equal steps. The contract of all ranges."""

    low: float
    high: float
    points: int = 0
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"{self}: expected finite numbers, low below high")
        if self.points < 0 or self.points == 1:
            raise ValueError(f"{self}: expected at least 2 points, or 0 where no grid is wanted")
        if self.log and self.low <= 0:
            raise ValueError(f"{self}: a logarithmic range lies above 0; raise low, or use Uniform")

    @property
    def labels(self) -> list[str]:
        """Of options; a range of numbers has none."""
        return []

    @property
    def size(self) -> float:
        """How many different numbers, or options with what they bring, it has; infinity where it is continuous."""
        return math.inf

    def exhaustive(self) -> "Range":
        """The range with all it has in a grid, where that is finite."""
        return self

    def at(self, share: float) -> Any:
        """The number or label at a share of the way from low to high, 0 to 1."""
        return float(min(max(self._between(share), self.low), self.high))

    def _between(self, share: float) -> float:
        if self.log:
            return math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        return self.low + share * (self.high - self.low)

    def place(self, drawn: Any) -> float:
        """The share of the way at which a number or label lies; the inverse of `at`."""
        if self.log:
            return math.log(drawn / self.low) / math.log(self.high / self.low)
        return float((drawn - self.low) / (self.high - self.low))

    def grid(self) -> list[Any]:
        """The numbers or labels of a grid. Raises ValueError where their number is open."""
        if not self.points:
            raise ValueError(f"{self}: a grid needs to know how many, as in {dataclasses.replace(self, points=5)}")
        return [self.at(share) for share in np.linspace(0, 1, self.points)]

    def holds(self, drawn: Any) -> bool:
        """Whether a number or label lies in the range."""
        return isinstance(drawn, float | int) and self.low <= drawn <= self.high

    def option(self, drawn: Any) -> "With":
        """The value that a number or label stands for, and what is free only when it was drawn."""
        return With(drawn, {})


Space = Mapping[str, Range]


@dataclass(frozen=True)
class Uniform(Range):
    """A number from low to high, all equally likely."""


@dataclass(frozen=True)
class LogUniform(Range):
    """A number from low to high, above 0, its logarithm uniform."""

    log: bool = True


@dataclass(frozen=True)
class Integer(Range):
    """A whole number from low to high, or its logarithm uniform with `log`. A grid has all, or `points`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise ValueError(f"{self}: expected whole numbers")

    @property
    def size(self) -> float:
        return self.high - self.low + 1

    def exhaustive(self) -> "Integer":
        return dataclasses.replace(self, points=0)

    def at(self, share: float) -> int:
        """The nearest whole number; plain ranges give each the same share."""
        near = round(self._between(share)) if self.log else self.low + math.floor(share * (self.high - self.low + 1))
        return int(min(max(near, self.low), self.high))

    def grid(self) -> list[int]:
        """All whole numbers, or as many as `points` says, less those that come twice."""
        if not self.points:
            return list(range(int(self.low), int(self.high) + 1))
        return sorted({round(self._between(share)) for share in np.linspace(0, 1, self.points)})


@dataclass(frozen=True)
class With:
    """An option that brings a `space` of its own: ranges by path, as in the whole space."""

    value: Any
    space: Space


@dataclass(frozen=True, init=False)
class Choice(Range):
    """One of several values, or nested changes; one that is a `With` brings ranges of its own."""

    options: tuple[With, ...] = ()

    def __init__(self, *options: Any):
        known = tuple(one if isinstance(one, With) else With(one, {}) for one in options)
        for name, field in (("options", known), ("low", 0), ("high", len(options) - 1), ("points", 0), ("log", False)):
            object.__setattr__(self, name, field)
        if not options:
            raise ValueError("Choice(): expected options, as in Choice(True, False)")
        if twice := [label for label in self.labels if self.labels.count(label) > 1]:
            raise ValueError(f"Choice: the option {twice[0]} is there twice")

    def __repr__(self) -> str:
        return f"Choice({', '.join(self.labels)})"

    @property
    def labels(self) -> list[str]:
        """The options as text, each different."""
        return [label(option.value) for option in self.options]

    @property
    def size(self) -> float:
        return sum(size(option.space) for option in self.options)

    def exhaustive(self) -> "Choice":
        return Choice(*(With(option.value, _exhaustive(option.space)) for option in self.options))

    def at(self, share: float) -> str:
        return self.labels[min(int(share * len(self.options)), len(self.options) - 1)]

    def place(self, drawn: Any) -> float:
        return self.labels.index(drawn) / max(len(self.options) - 1, 1)

    def grid(self) -> list[str]:
        """All options."""
        return self.labels

    def holds(self, drawn: Any) -> bool:
        return drawn in self.labels

    def option(self, drawn: Any) -> With:
        return self.options[self.labels.index(drawn)]


def label(one: Any) -> str:
    """A value in short: of a dataclass the fields that differ from their defaults."""
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        given = {f.name: getattr(one, f.name) for f in dataclasses.fields(one) if getattr(one, f.name) != _default(f)}
        inner = ", ".join(f"{name}={label(now)}" for name, now in given.items())
        return f"{type(one).__name__}({inner})" if inner else type(one).__name__
    if isinstance(one, Mapping):
        return ", ".join(f"{name}={label(now)}" for name, now in one.items()) or "unchanged"
    if isinstance(one, tuple | list):
        return f"({', '.join(map(label, one))})"
    return str(one)


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


# ---------------------------------------------------------------- draws


def _walk(
    space: Space, choose: Callable[[str, Range], Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str, Range, Any]]:
    """(name, path, range, what was drawn) of each range in force, each chosen by `choose` of its name."""
    for path, one in space.items():
        name = _name(path, above)
        drawn = choose(name, one)
        yield name, path, one, drawn
        yield from _walk(one.option(drawn).space, choose, (*above, str(drawn)))


def draw(space: Space, choose: Callable[[str, Range], Any]) -> Draw:
    """A draw, each range in force chosen by `choose` of its name."""
    return {name: drawn for name, _, _, drawn in _walk(space, choose)}


def settings(space: Space, drawn: Draw) -> Settings:
    """The values that a draw stands for, by path. Raises ValueError where it is not one of this space."""

    def known(name: str, one: Range) -> Any:
        if name not in drawn or not one.holds(drawn[name]):
            raise ValueError(f"{name}={drawn.get(name)!r}: expected one of {one}")
        return drawn[name]

    return {path: one.option(chosen).value for _, path, one, chosen in _walk(space, known)}


def grid(space: Space, above: tuple[str, ...] = ()) -> list[Draw]:
    """Every combination, the last range changing fastest."""
    draws: list[Draw] = [{}]
    for path, one in space.items():
        each = [
            {_name(path, above): drawn, **rest}
            for drawn in one.grid()
            for rest in grid(one.option(drawn).space, (*above, str(drawn)))
        ]
        draws = [{**before, **new} for before in draws for new in each]
    return draws


def random(space: Space, count: int, seed: int) -> dict[int, Draw]:
    """`count` different draws by number, each by a generator of its own."""
    return _distinct(space, [_random(space, seed, i) for i in range(count)], seed)


def _random(space: Space, seed: int, number: int) -> Draw:
    rng = np.random.default_rng([seed, number])
    return draw(space, lambda _, one: one.at(rng.random()))


def latin(space: Space, count: int, seed: int) -> dict[int, Draw]:
    """A Latin hypercube (McKay et al. 1979) by number: along each range, one draw in each of `count` equal parts. Of
    draws that coincide, as a range has few values, one is kept, and others are drawn at random."""
    from scipy.stats import qmc

    names = list(ranges(space))
    shares = qmc.LatinHypercube(len(names), rng=np.random.default_rng(seed)).random(count)

    def placed(row: Mapping[str, float]) -> Draw:
        return draw(space, lambda name, one: one.at(row[name]))

    return _distinct(space, [placed(dict(zip(names, row, strict=True))) for row in shares], seed)


def _distinct(space: Space, draws: Sequence[Draw], seed: int) -> dict[int, Draw]:
    """The different ones of `draws` by their numbers, and as many others, whose numbers go on from there, as were there
    already: at random, or all that are left where the space has no more than `draws`."""
    count = len(draws)
    others = grid(_exhaustive(space)) if size(space) <= count else _further(space, seed, count)
    found: dict[tuple[Any, ...], tuple[int, Draw]] = {}
    for number, drawn in enumerate(itertools.chain(draws, others)):
        if number >= count and len(found) == count:
            break
        found.setdefault(tuple(drawn.items()), (number, drawn))
    return dict(found.values())


def _further(space: Space, seed: int, count: int) -> Iterator[Draw]:
    """Random draws after the first `count`; not without end, as a value may be next to never drawn."""
    return (_random(space, seed, i) for i in range(count, TRIES * count))


def size(space: Space) -> float:
    """How many different draws there are; infinity where a range is continuous."""
    return math.prod(one.size for one in space.values())


def _exhaustive(space: Space) -> Space:
    """`space` with all of its whole numbers in a grid, whatever `points` says."""
    return {path: one.exhaustive() for path, one in space.items()}


def ranges(space: Space, above: tuple[str, ...] = ()) -> dict[str, Range]:
    """All ranges by name, those that options bring after the choice between them."""
    by_name: dict[str, Range] = {}
    for path, one in space.items():
        by_name[_name(path, above)] = one
        for option in one.labels:
            by_name |= ranges(one.option(option).space, (*above, option))
    return by_name


def _name(path: str, above: tuple[str, ...]) -> str:
    return f"{path} [{', '.join(above)}]" if above else path


def changed(base: Experiment, chosen: Settings) -> Experiment:
    """`base` with the settings: those of a part after the part itself, all at once."""
    done: Settings = {}
    for path in sorted(chosen, key=lambda path: path.count(".")):
        part = max((p for p in done if path.startswith(f"{p}.")), key=len, default="")
        if part:
            done[part] = value.replace(done[part], value.nested({path.removeprefix(f"{part}."): chosen[path]}))
        else:
            done[path] = chosen[path]
    return base.replace(value.nested(done))


# ---------------------------------------------------------------- whether it makes sense


def check(base: Experiment, space: Space) -> None:
    """Raises ValueError for a space that is empty, or is no space of `base`'s fields, whatever is chosen."""
    if not space:
        raise ValueError("space={}: expected a range for at least one field, by its path")
    _check(base, space, [{}])


def _check(base: Experiment, space: Space, several: list[Settings]) -> list[Settings]:
    """`several` is what may have been chosen before; what may have been after `space`."""
    given: Any
    for path, given in space.items():
        if not isinstance(given, Range):
            listed = isinstance(given, list | tuple)
            hint = f"; for these values: Choice({', '.join(map(label, given))})" if listed else ""
            raise ValueError(f"space[{path!r}]={given!r}: expected {KINDS}{hint}")
        if path in ("seed", "name"):
            raise ValueError(f"space[{path!r}]: the study sets it; seeds= takes the seeds")
        one: Range = given
        after: list[Settings] = []
        for before in several:
            if path in before:
                raise ValueError(f"space[{path!r}]: the field is there twice")
            _check_field(base, path, one, before)
            after += [] if one.labels else [{**before, path: None}]
            for option in map(one.option, one.labels):
                after += _check(base, option.space, [{**before, path: option.value}])
        several = after
    return several


def _check_field(base: Experiment, path: str, one: Range, chosen: Mapping[str, Any]) -> None:
    """Raises ValueError where there is no field at `path`, or it is of another kind than the range."""
    part = max((p for p in chosen if path.startswith(f"{p}.")), key=len, default="")
    holder = chosen[part] if part else base
    if part and isinstance(holder, Mapping):
        return  # a nested change: what it changes is not checked
    *folders, last = path.removeprefix(f"{part}." if part else "").split(".")
    try:
        for name in folders:
            holder = value.field(holder, name)
        value.field(holder, last)
    except ValueError as error:
        raise ValueError(f"space[{path!r}]: {error}") from None
    whole = dataclasses.is_dataclass(holder) and typing.get_type_hints(type(holder)).get(last) is int
    if whole and not isinstance(one, Integer | Choice):
        raise ValueError(f"space[{path!r}]={one}: the field is a whole number; use Integer")
