"""Measures that arms can be compared by.

A loss per token is in other units under another tokenizer, and of another question under another objective: bits per
byte compare across tokenizers, and an extra evaluation (lm/run/extra_evals.py) asks all arms one question. Held-out
text is compared with itself.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lm import value
from lm.data.source import Source
from lm.experiment import Experiment

TOKENIZER, OBJECTIVE, SOURCES = "data.tokenizer", "method.objective", "data.mixture.sources"
PER_TOKEN = ("loss", "perplexity", "accuracy")


def comparable_measure(measure: str, base: Experiment, differ: Iterable[str]) -> str:
    """`measure`; where it is "", the loss, or across tokenizers bits per byte.

    Args:
      base: the study's.
      differ: those of TOKENIZER, OBJECTIVE and SOURCES.NAME in which arms differ.

    Raises:
      ValueError: where the arms cannot be compared by it.
    """
    differ = set(differ)
    evaluation = base.evaluations.get(measure.partition("/")[0])
    if OBJECTIVE in differ and not (evaluation and (evaluation.objective or evaluation.method)):
        raise ValueError(
            f"arms differ in {OBJECTIVE}, so their {measure or 'losses'} are of different questions: "
            "evaluations={'asked': Evaluation(objective=…)} and measure='asked/loss' ask all of them one (or method=…)"
        )
    if TOKENIZER in differ and measure.rpartition("/")[2] in PER_TOKEN:
        raise ValueError(
            f"arms differ in {TOKENIZER}, and measure={measure!r} is of their tokens: take measure='bits_per_byte'"
        )
    if TOKENIZER in differ and not measure and "bits_per_byte" not in base.method.objective.measures:
        raise ValueError(
            f"arms differ in {TOKENIZER}, and {type(base.method.objective).__name__} has no measure that compares "
            "across them: evaluations={'asked': Evaluation(objective=CausalLM())} and measure='asked/bits_per_byte'"
        )
    if not (evaluation and evaluation.sources):
        _check_sources(measure, base, {path.removeprefix(f"{SOURCES}.") for path in differ if path.startswith(SOURCES)})
    return measure or ("bits_per_byte" if TOKENIZER in differ else "loss")


def _check_sources(measure: str, base: Experiment, differ: set[str]) -> None:
    """Raises ValueError where `measure` is of a source by a name in `differ`, or a mean over them."""
    alike = [name for name in base.data.mixture.sources if name not in differ]
    if differ and not any(name in measure.split("/")[:-1] for name in alike):
        cure = f"take one of a source that all have, as '{alike[0]}/loss'" if alike else "give all the same sources"
        raise ValueError(
            f"arms differ in {SOURCES} ({', '.join(sorted(differ))}), so their {measure or 'losses'} are of different "
            f"texts: {cure}"
        )


def differ_in(base: Experiment, arms: Iterable[Mapping[str, Any] | Experiment]) -> set[str]:
    """Those of TOKENIZER, OBJECTIVE and SOURCES.NAME in which an arm, a nested change of `base` or an experiment,
    differs from it."""
    arms = list(arms)
    paths = {
        path for path in (TOKENIZER, OBJECTIVE) if any(_at(base, arm, path) != _at(base, {}, path) for arm in arms)
    }
    own = _comparable(base.data.mixture.sources)
    others = [_comparable(_at(base, arm, SOURCES)) for arm in arms]
    names = {name for sources in others for name in {*own, *sources} if own.get(name) != sources.get(name)}
    return paths | {f"{SOURCES}.{name}" for name in names}


def _comparable(sources: Mapping[str, Source]) -> dict[str, Source]:
    return {name: source.comparable() for name, source in sources.items()}


def _at(base: Experiment, arm: Mapping[str, Any] | Experiment, path: str) -> Any:
    """The field of an arm; the base's where it cannot be built, which whoever runs the arm finds."""
    top, *rest = path.split(".")
    old = getattr(base, top)
    if isinstance(arm, Experiment):
        return _walk(getattr(arm, top), rest)
    try:
        given = arm.get(top, {})
        return _walk(value.replace(old, given) if isinstance(given, Mapping) else given, rest)
    except (ValueError, AttributeError):
        return _walk(old, rest)


def _walk(whole: Any, names: Iterable[str]) -> Any:
    for name in names:
        whole = getattr(whole, name)
    return whole


def drawn_from(base: Experiment, paths: Iterable[str]) -> set[str]:
    """Those of TOKENIZER, OBJECTIVE and SOURCES.NAME that ranges at these paths change."""
    listed = list(paths)
    return {
        path
        for path in (TOKENIZER, OBJECTIVE, *(f"{SOURCES}.{name}" for name in base.data.mixture.sources))
        if any(drawn == path or drawn.startswith(f"{path}.") or path.startswith(f"{drawn}.") for drawn in listed)
    }
