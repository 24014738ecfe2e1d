"""What can be sentence of a difference: a word for tables, a sentence for the report, and which way is better."""

import math
from collections.abc import Mapping, Sequence

from lm.page.words import ALPHA, Estimate, plural, signed
from lm.study.statistics import MOST_SEEDS, Difference

# the last part of a measure's name -> whether less is better (-1), or more (1)
BETTER: Mapping[str, int] = {
    **dict.fromkeys(("loss", "perplexity", "bits_per_byte", "calibration_error"), -1),
    **dict.fromkeys(("accuracy", "next_sentence"), 1),
}
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


def word(d: Difference, measure: str) -> str:
    """ "better", "worse" ("higher", "lower" where it is not known which is better), "same" or "cannot tell"."""
    if d.seeds > 1 and d.difference == d.low == d.high == 0:
        return SAME
    return _way(d, measure) if d.p_holm < ALPHA else UNKNOWN


def _way(d: Difference, measure: str) -> str:
    sign = direction(measure) * d.difference
    return ("better" if sign > 0 else "worse") if sign else ("higher" if d.difference > 0 else "lower")


def verdict(d: Difference, measure: str) -> str:
    """A sentence without a full stop."""
    sentence = _verdict(d, word(d, measure), measure)
    if not d.diverged:
        return sentence
    seeds = f"{plural(d.diverged, 'seed')} {'was' if d.diverged == 1 else 'were'}"
    return f"{sentence}; {seeds} left out, where it or the base did not come to an end"


def _verdict(d: Difference, word: str, measure: str) -> str:
    if d.seeds == 0:
        return f"{UNKNOWN}: at no seed have both it and the base finished"
    way = f"{_way(d, measure)} by {abs(d.difference):.3g}" if d.difference else "the same"
    if d.seeds == 1:
        return f"{UNKNOWN}: {way} at the one seed, which gives no interval"
    if word == SAME:
        return f"the same as the base at each of {d.seeds} seeds"
    if math.isnan(d.low):
        return f"{UNKNOWN}: {way} at each seed alike, so that no interval can be given"
    if word != UNKNOWN:
        return f"{word} by {amount(d)}"
    return f"{UNKNOWN}: {signed(d.difference)} ({_interval(d)}); {_needed(d)}"


def amount(d: Difference) -> str:
    """How large a difference is, without its sign, and its interval."""
    return f"{abs(d.difference):.3g} ({_interval(d, turned=d.difference < 0)})"


def _interval(d: Difference, turned: bool = False) -> str:
    low, high = (-d.high, -d.low) if turned else (d.low, d.high)
    return Estimate(d.difference, low, high).interval(lambda x: signed(x).lstrip("+"))


def _needed(d: Difference) -> str:
    if d.p < ALPHA:
        return f"p = {d.p:.2g} would do for one arm alone, but is {d.p_holm:.2g} after Holm's correction"
    if math.isinf(d.seeds_needed):
        return f"to see so small a difference would need more than {MOST_SEEDS:,} seeds"
    return f"to see this difference would need about {d.seeds_needed:,.0f} seeds"


def best_first(arms: Sequence[Difference], measure: str) -> list[Difference]:
    """The largest improvement first."""
    return sorted(arms, key=lambda d: -direction(measure) * d.difference)
