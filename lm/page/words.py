"""What every report says in the same way: lists of names, numbers with their digits, intervals, sizes, times."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

LEVEL = 0.95  # of every interval
ALPHA = 1 - LEVEL
NONE = "–"  # a number that there is not


def join_and(words: Iterable[object], most: int = 0, rest: str = "more") -> str:
    """The words as `a, b and c`; of more than `most` (0: no limit) the first, and how many are the `rest`."""
    listed = [str(word) for word in words]
    if most and len(listed) > most:
        listed = [*listed[:most], f"{len(listed) - most} {rest}"]
    return f"{', '.join(listed[:-1])} and {listed[-1]}" if len(listed) > 1 else "".join(listed)


def plural(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def median(values: Iterable[float]) -> float:
    """The middle one of the finite values, of an even number the upper; nan where there are none."""
    known = sorted(v for v in values if math.isfinite(v))
    return known[len(known) // 2] if known else math.nan


def size(count: float) -> str:
    """Bytes as 3.1 GiB, 12.0 MiB, 4.0 KiB or 17 bytes."""
    for unit, of in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} bytes"


def in_words(seconds: float) -> str:
    """A time for a sentence: seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def signed(value: float, spec: str = ".3g") -> str:
    """With a sign, and a true minus."""
    return f"{value:+{spec}}".replace("-", "−")


def number(value: float, decimals: int, sign: bool = False) -> str:
    """With a true minus; a dash where it is not finite."""
    written = f"{value:{'+' if sign else ''}.{decimals}f}" if math.isfinite(value) else NONE
    return written.replace("-", "−")


def decimals(spreads: Iterable[float]) -> int:
    """How many show the middle one of the `spreads` with two digits: from 2 to 6, and 4 where none is known."""
    middle = median(s for s in spreads if s > 0)
    return 4 if math.isnan(middle) else min(6, max(2, 1 - math.floor(math.log10(middle))))


def probability(p: float) -> str:
    """A p-value with two or three digits."""
    return NONE if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def between(low: float, high: float, digits: int) -> str:
    """An interval as [low, high]; a dash where there is none."""
    return NONE if math.isnan(low) else f"[{number(low, digits)}, {number(high, digits)}]"


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval, nan where none can be given."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2

    def span(self, write: Callable[[float], str] = "{:.4g}".format) -> str:
        """The interval as `low to high`; a dash where there is none."""
        return NONE if math.isnan(self.low) else f"{write(self.low)} to {write(self.high)}"

    def interval(self, write: Callable[[float], str] = "{:.4g}".format) -> str:
        """The interval in a sentence."""
        return f"{LEVEL:.0%} interval {self.span(write)}"

    def over_seeds(self, seeds: int, write: Callable[[float], str] = "{:.4g}".format) -> str:
        """The interval in brackets, and how many seeds it is from."""
        return f"({self.interval(write)}, {seeds} seeds)" if seeds > 1 else "(one seed: no interval)"
