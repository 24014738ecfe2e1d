"""Measures that arms can be compared by.

A loss per token is in other units under another tokenizer, and of another question under another objective: bits per
byte compare across tokenizers, and an extra evaluation (lm/run/extra_evals.py) asks all arms one question.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lm import value
from lm.experiment import Experiment

TOKENIZER, OBJECTIVE = "data.tokenizer", "method.objective"
PER_TOKEN = ("loss", "perplexity", "accuracy")


def comparable_measure(measure: str, base: Experiment, differ: Iterable[str]) -> str:
    """`measure`; where it is "", the loss, or across tokenizers bits per byte.

    Args:
      base: the study's.
      differ: those of TOKENIZER and OBJECTIVE in which arms differ.

    Raises:
      ValueError: where the arms cannot be compared by it.
    """
    differ = set(differ)
    evaluation = base.evaluations.get(measure.partition("/")[0])
    if OBJECTIVE in differ and not (evaluation and evaluation.objective):
        raise ValueError(
            f"arms differ in {OBJECTIVE}, so their {measure or 'losses'} are of different questions: "
            "evaluations={'asked': Evaluation(objective=…)} and measure='asked/loss' ask all of them one"
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
    return measure or ("bits_per_byte" if TOKENIZER in differ else "loss")


def differ_in(base: Experiment, arms: Iterable[Mapping[str, Any] | Experiment]) -> set[str]:
    """Those of TOKENIZER and OBJECTIVE in which an arm, a nested change of `base` or an experiment, differs from it."""
    arms = list(arms)
    return {path for path in (TOKENIZER, OBJECTIVE) if any(_at(base, arm, path) != _at(base, {}, path) for arm in arms)}


def _at(base: Experiment, arm: Mapping[str, Any] | Experiment, path: str) -> Any:
    """The field of an arm; the base's where it cannot be built, which whoever runs the arm finds."""
    top, name = path.split(".")
    old = getattr(base, top)
    if isinstance(arm, Experiment):
        return getattr(getattr(arm, top), name)
    try:
        given = arm.get(top, {})
        return getattr(value.replace(old, given) if isinstance(given, Mapping) else given, name, None)
    except ValueError:
        return getattr(old, name)


def drawn_from(paths: Iterable[str]) -> set[str]:
    """Those of TOKENIZER and OBJECTIVE that ranges at these paths change."""
    listed = list(paths)
    return {
        path
        for path in (TOKENIZER, OBJECTIVE)
        if any(drawn == path or drawn.startswith(f"{path}.") or path.startswith(f"{drawn}.") for drawn in listed)
    }
