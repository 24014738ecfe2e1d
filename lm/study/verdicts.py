"""What can be said of a difference: a word for tables, a sentence for the report, and which way is better."""

import math
from collections.abc import Mapping, Sequence

from lm.page.words import ALPHA, interval, plural, signed
from lm.study.statistics import MOST_SEEDS, Difference

# the last part of a measure's name -> whether less is better (-1), or more (1)
BETTER: Mapping[str, int] = {"loss": -1, "perplexity": -1, "bits_per_byte": -1, "accuracy": 1, "next_sentence": 1}
SAME, UNKNOWN = "same", "cannot tell"


def direction(measure: str) -> int:
    """-1 where less of `measure` is better, 1 where more is, 0 where that is not known."""
    return BETTER.get(measure.rpartition("/")[2], 0)


def title(measure: str) -> str:
    """`code/bits_per_byte` for a person: bits per byte on code."""
    source, _, kind = measure.rpartition("/")
    return kind.replace("_", " ") + (f" on {source}" if source else "")


def extreme(sign: int) -> str:
    """What the best of a measure is called."""
    return "highest" if sign > 0 else "lowest"


def word(found: Difference, measure: str) -> str:
    """ "better", "worse" ("higher", "lower" where it is not known which is better), "same" or "cannot tell"."""
    if found.seeds > 1 and found.difference == found.low == found.high == 0:
        return SAME
    return _way(found, measure) if found.p_holm < ALPHA else UNKNOWN


def _way(found: Difference, measure: str) -> str:
    sign = direction(measure) * found.difference
    return ("better" if sign > 0 else "worse") if sign else ("higher" if found.difference > 0 else "lower")


def verdict(found: Difference, measure: str) -> str:
    """A sentence without a full stop."""
    said = _verdict(found, word(found, measure), measure)
    if not found.diverged:
        return said
    seeds = f"{plural(found.diverged, 'seed')} {'was' if found.diverged == 1 else 'were'}"
    return f"{said}; {seeds} left out, where it or the base did not come to an end"


def _verdict(found: Difference, word: str, measure: str) -> str:
    if found.seeds == 0:
        return f"{UNKNOWN}: at no seed have both it and the base finished"
    way = f"{_way(found, measure)} by {abs(found.difference):.3g}" if found.difference else "the same"
    if found.seeds == 1:
        return f"{UNKNOWN}: {way} at the one seed, which gives no interval"
    if word == SAME:
        return f"the same as the base at each of {found.seeds} seeds"
    if math.isnan(found.low):
        return f"{UNKNOWN}: {way} at each seed alike, so that no interval can be given"
    if word != UNKNOWN:
        return f"{word} by {amount(found)}"
    return f"{UNKNOWN}: {signed(found.difference)} ({_interval(found.low, found.high)}); {_needed(found)}"


def amount(found: Difference) -> str:
    """How large a difference is, without its sign, and its interval."""
    low, high = (-found.high, -found.low) if found.difference < 0 else (found.low, found.high)
    return f"{abs(found.difference):.3g} ({_interval(low, high)})"


def _interval(low: float, high: float) -> str:
    return interval(low, high, lambda x: signed(x).lstrip("+"))


def _needed(found: Difference) -> str:
    if found.p < ALPHA:
        return f"p = {found.p:.2g} would do for one arm alone, but is {found.p_holm:.2g} after Holm's correction"
    if math.isinf(found.seeds_needed):
        return f"to see so small a difference would need more than {MOST_SEEDS:,} seeds"
    return f"to see this difference would need about {found.seeds_needed:,.0f} seeds"


def best_first(arms: Sequence[Difference], measure: str) -> list[Difference]:
    """The largest improvement first."""
    return sorted(arms, key=lambda d: -direction(measure) * d.difference)
