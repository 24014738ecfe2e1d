"""Further evaluations: the held-out text in longer rows than those of training, or asked by another objective.

One number says little of a model that is to read further than it was trained to, and losses under two objectives say
nothing of each other. So an experiment may name `evaluations`, each made beside its own: positions are compared beyond
the training length (2108.12409), and objectives by one that all of them are asked.
"""

from lm.data.loader import Batches
from lm.experiment import Evaluation, Experiment


def batches(experiment: Experiment, data: Batches, parts: int = 1) -> dict[str, Batches]:
    """The batches of each of the evaluations that the model can read, over the text of `data`.

    A batch has about as many tokens as one of training, in rows that divide over `parts` devices. Raises ValueError for
    an objective that the vocabulary or the length has no room for."""
    too_long = impossible(experiment)
    return {
        name: _batches(name, one, experiment, data, parts)
        for name, one in experiment.evaluations.items()
        if name not in too_long
    }


def _batches(name: str, one: Evaluation, experiment: Experiment, data: Batches, parts: int) -> Batches:
    e, objective = experiment, one.objective or experiment.objective
    least = parts * e.accumulate
    rows = max(1, e.rows // one.times // least) * least
    encoder = e.model.has_encoder
    try:
        found = Batches(data.data, data.tokenizer, data.stores, one.times * e.length, rows, e.seed, objective, encoder)
    except ValueError as error:
        raise ValueError(f"evaluations.{name}: {error}") from None
    needed = found.context.vocab + objective.extra_tokens(found.context)
    if needed > e.model.vocab:
        raise ValueError(
            f"evaluations.{name}: {type(objective).__name__} and the tokenizer need {needed} ids and model.vocab is "
            f"{e.model.vocab}: raise it to at least {needed}"
        )
    return found


def impossible(experiment: Experiment) -> dict[str, str]:
    """Why some of the evaluations cannot be made: their rows end beyond the last position that the model has."""
    positions, context, length = experiment.model.positions, experiment.model.context, experiment.length
    return {
        name: f"its rows have {one.times * length} tokens, and {type(positions).__name__} positions end at {context}"
        for name, one in experiment.evaluations.items()
        if one.times * length > context and not positions.endless
    }
