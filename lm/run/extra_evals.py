"""Extra evaluations: held-out text in longer rows than those of training, or under another objective.

Losses under two objectives cannot be compared, and a loss at the training length does not show whether a model
extrapolates. So an experiment may name `evaluations` in addition to its own: positions are compared beyond the training
length (2108.12409), and objectives by one under which all models are evaluated.
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
    """The extra evaluations within the model's context, by name.

    Args:
      experiment: declares them.
      own: its own evaluation, which one without an objective repeats in longer rows.
      model: the model.
      evaluate_text: pretraining's compiled evaluation, for those with an objective.

    Raises ValueError for an objective that the vocabulary or the length has no room for."""
    extra = {}
    for name, data in batches(experiment, own.data, row_devices(own.mesh)).items():
        rows, objective = data.batch_rows // experiment.accumulate, experiment.evaluations[name].objective
        if objective is None:
            extra[name] = replace(own, data=data, rows=rows)
        else:
            learner = experiment.trains.wrap(Pretrain(objective).build(model, data))
            extra[name] = HeldOut(learner, data, evaluate_text, own.mesh, rows)
    return extra


def batches(experiment: Experiment, data: Batches, parts: int = 1) -> dict[str, Batches]:
    """The batches of each evaluation within the model's context, over the text of `data`: about as many tokens each as
    in training, in rows that divide over `parts` devices."""
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
        extra = Batches(data.data, data.tokenizer, data.stores, one.times * e.length, rows, e.seed, objective, encoder)
    except ValueError as error:
        raise ValueError(f"evaluations.{name}: {error}") from None
    needed = extra.context.vocab + objective.extra_tokens(extra.context)
    if needed > e.model.vocab:
        raise ValueError(
            f"evaluations.{name}: {type(objective).__name__} and the tokenizer need {needed} ids and model.vocab is "
            f"{e.model.vocab}: raise it to at least {needed}"
        )
    return extra


def too_long_evals(experiment: Experiment) -> dict[str, str]:
    """name -> why, of the evaluations whose rows are longer than the model's positions reach."""
    positions, context, length = experiment.model.positions, experiment.model.context, experiment.length
    return {
        name: f"its rows have {one.times * length} tokens, and {type(positions).__name__} positions end at {context}"
        for name, one in experiment.evaluations.items()
        if one.times * length > context and not positions.endless
    }
