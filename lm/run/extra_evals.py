"""Extra evaluations: held-out text in longer rows than in training, under another objective, or by another method.

Losses under two objectives cannot be compared, and a loss at the training length does not show whether a model
extrapolates. So an experiment may name `evaluations` in addition to its own: positions are compared beyond the training
length (2108.12409), objectives by one under which all models are evaluated, and methods of any kind by the completions
of their models (lm/tune/completion_eval.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import jax

from lm.data.loader import Batches, prepare
from lm.data.mixture import Mixture
from lm.data.pack import OnePerRow
from lm.data.prompts import Rollouts
from lm.experiment import Evaluation, Experiment
from lm.model.transformer import Transformer
from lm.pretrained import open_model
from lm.run.heldout import HeldOut, Kept
from lm.run.start import start_params
from lm.sharding.batches import on_host, place_batch
from lm.sharding.mesh import row_devices
from lm.sharding.tracing import use_mesh
from lm.train.method import Learner, Method, Sample
from lm.train.step import Evaluate, build_eval, params_shardings, rollout_key, run_rollout
from lm.tune.pretrain import Pretrain

SHOWN = 4  # held-out prompts of a source whose completions are samples


@dataclass(frozen=True)
class ByMethod(HeldOut):
    """An evaluation by another `method` than that of the `experiment`, whose model is in `trained`: with the reference
    and the other models of a run of that method from the same start, loaded when they are first read."""

    method: Method
    experiment: Experiment
    trained: Learner

    @cached_property
    def frozen(self) -> Any:
        """Raises ValueError where a model cannot be read any more."""
        e, mesh, learner = self.experiment, self.mesh, self.learner
        start = start_params(e, mesh) if e.start and learner.reads_start else None
        paths = {
            role: model.path
            for role, model in self.method.models.items()
            if model.path is not None and role in learner.models
        }
        models = {role: open_model(path).params(mesh, e.layout) for role, path in paths.items()}
        placed = jax.tree.map(lambda shape: shape.sharding, params_shardings(learner, mesh, e.layout))
        with use_mesh(mesh, e.layout):
            return jax.jit(learner.init, out_shardings=placed)(jax.random.key(e.seed), start, models)[1]

    def samples(self, params: Any, frozen: Any) -> Iterator[Sample]:
        """Those of the first held-out rows of each source. A collective."""
        params = self.trained.model_params(params, frozen)
        for source in self.data.sources:
            batch = place_batch(next(self.data.heldout(source, self.rows)), self.mesh)
            rollout, layout = self.learner.heldout_rollout, self.experiment.layout
            done = run_rollout(rollout, self.mesh, params, self.frozen, batch, rollout_key(0, 0), layout)
            yield from islice(self.learner.heldout_samples(on_host(done), source), SHOWN)

    def _sums(self, params: Any, frozen: Any, most_tokens: int, source: str) -> dict[str, float]:
        return super()._sums(self.trained.model_params(params, frozen), self.frozen, most_tokens, source)


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
    extra: dict[str, HeldOut] = {}
    for name, data in batches(experiment, own.data, row_devices(own.mesh)).items():
        rows, one = data.batch_rows // experiment.accumulate, experiment.evaluations[name]
        if one.method:
            judge = one.method.build(model, data)
            judged = build_eval(judge, own.mesh, experiment.layout)
            extra[name] = ByMethod(judge, data, judged, own.mesh, rows, one.method, experiment, own.learner)
        elif one.objective:
            learner = experiment.trains.wrap(Pretrain(one.objective).build(model, data))
            extra[name] = HeldOut(learner, data, evaluate_text, own.mesh, rows)
        else:
            extra[name] = replace(own, data=data, rows=rows, kept=Kept())
    return extra


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
    rows = -(-one.rows // least) * least or max(1, e.rows // one.times // least) * least
    encoder = e.model.has_encoder
    shape = one.times * e.length, rows, e.seed, objective
    try:
        if one.method or one.sources:
            sources = one.sources or e.data.mixture.sources
            packing = OnePerRow() if isinstance(objective, Rollouts) else e.data.packing
            declared = replace(data.data, mixture=Mixture(sources, dict.fromkeys(sources, 1.0)), packing=packing)
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
