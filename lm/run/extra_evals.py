"""Extra evaluations: held-out text in longer rows than those of training, or under another objective.

One number says little of a model that is to read further than it was trained to, and losses under two objectives say
nothing of each other. So an experiment may name `evaluations`, made along with its own: positions are compared beyond
the training length (2108.12409), and objectives by one that all models are measured under.
"""

from dataclasses import replace

from lm.data.loader import Batches
from lm.experiment import Evaluation, Experiment
from lm.model.transformer import Transformer
from lm.run.heldout import HeldOut
from lm.sharding.mesh import row_devices
from lm.train.step import Evaluate
from lm.tune.pretrain import Pretrain


def extra_evals(
    experiment: Experiment, own: HeldOut, model: Transformer, evaluate_text: Evaluate
) -> dict[str, HeldOut]:
    """The extra evaluations that the model can read, by name: as `own`, or of an objective as `evaluate_text` does.

    Raises ValueError for an objective that the vocabulary or the length has no room for."""
    found = {}
    for name, data in batches(experiment, own.data, row_devices(own.mesh)).items():
        rows, objective = data.batch_rows // experiment.accumulate, experiment.evaluations[name].objective
        if objective is None:
            found[name] = replace(own, data=data, rows=rows)
        else:
            found[name] = HeldOut(Pretrain(objective).build(model, data), data, evaluate_text, own.mesh, rows)
    return found


def batches(experiment: Experiment, data: Batches, parts: int = 1) -> dict[str, Batches]:
    """The batches of each of the evaluations that the model can read, over the text of `data`: about as many tokens as
    one of training, in rows that divide over `parts` devices."""
    too_long = too_long_evals(experiment)
    return {
        name: _batches(name, one, experiment, data, parts)
        for name, one in experiment.evaluations.items()
        if name not in too_long
    }


def _batches(name: str, one: Evaluation, experiment: Experiment, data: Batches, parts: int) -> Batches:
    e, objective = experiment, one.objective or experiment.method.objective
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


def too_long_evals(experiment: Experiment) -> dict[str, str]:
    """Why some evaluations cannot be made, by name: their rows end beyond the last position that the model has."""
    positions, context, length = experiment.model.positions, experiment.model.context, experiment.length
    return {
        name: f"its rows have {one.times * length} tokens, and {type(positions).__name__} positions end at {context}"
        for name, one in experiment.evaluations.items()
        if one.times * length > context and not positions.endless
    }
