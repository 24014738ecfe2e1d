"""Extra evaluations: held-out text in longer rows than those of training, or by another objective or method.

Losses under two objectives cannot be compared, and a loss at the training length does not show whether a model
extrapolates. So an experiment may name `evaluations` in addition to its own: positions are compared beyond the training
length (2108.12409), objectives by one under which all models are evaluated, and methods by the measures of one, on
documents that they need not have read: KTO and DPO by pairs.
"""

from dataclasses import replace

from lm.data.loader import Batches, prepare
from lm.data.mixture import Mixture
from lm.experiment import Evaluation, Experiment
from lm.model.transformer import Transformer
from lm.run.heldout import HeldOut
from lm.sharding.mesh import row_devices
from lm.train.method import Learner
from lm.train.step import Evaluate, build_eval
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

    Raises ValueError for an objective that the vocabulary or the length has no room for, sources of another kind than
    it reads, and a method that reads more than the model."""
    extra = {}
    for name, data in batches(experiment, own.data, row_devices(own.mesh)).items():
        rows, one = data.batch_rows // experiment.accumulate, experiment.evaluations[name]
        if one.method:
            learner = experiment.trains.wrap(_reads_model_alone(name, one.method.build(model, data)))
            extra[name] = HeldOut(learner, data, build_eval(learner, own.mesh, experiment.layout), own.mesh, rows)
        elif one.objective:
            learner = experiment.trains.wrap(Pretrain(one.objective).build(model, data))
            extra[name] = HeldOut(learner, data, evaluate_text, own.mesh, rows)
        else:
            extra[name] = replace(own, data=data, rows=rows)
    return extra


def _reads_model_alone(name: str, learner: Learner) -> Learner:
    """`learner`, of the evaluation `name`. Raises ValueError where it reads more than the model that is evaluated."""
    if learner.has_rollout or learner.reads_start or learner.models:
        raise ValueError(
            f"evaluations.{name}.method reads a reference, another model or completions of its own: take one that "
            "reads the model alone, such as SimPO() for pairs"
        )
    return learner


def batches(experiment: Experiment, data: Batches, parts: int = 1) -> dict[str, Batches]:
    """The batches of each evaluation within the model's context, of the text of `data` or of sources of its own: about
    as many tokens each as in training, in rows that divide over `parts` devices."""
    too_long = too_long_evals(experiment)
    return {
        name: _batches(name, one, experiment, data, parts)
        for name, one in experiment.evaluations.items()
        if name not in too_long
    }


def _batches(name: str, one: Evaluation, experiment: Experiment, data: Batches, parts: int) -> Batches:
    e, objective = experiment, one.objective or (one.method or experiment.method).objective
    least = parts * e.accumulate
    rows = max(1, e.rows // one.times // least) * least
    encoder = e.model.has_encoder
    shape = one.times * e.length, rows, e.seed, objective
    try:
        if one.method or one.sources:
            sources = one.sources or e.data.mixture.sources
            declared = replace(data.data, mixture=Mixture(sources, dict.fromkeys(sources, 1.0)))
            extra = prepare(declared, *shape, data.tokenizer, encoder=encoder)
        else:
            extra = Batches(data.data, data.tokenizer, data.stores, *shape, encoder)
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
