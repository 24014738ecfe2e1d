"""What training, evaluation and serving have in common: mesh, data, model and method, without optimizer or state.

A collective: all processes of a run prepare together.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm.data.loader import Batches, Progress, make_tokenizer, prepare
from lm.data.objective import ObjectiveContext, objective_context
from lm.experiment import Experiment
from lm.inspect import watching
from lm.inspect.probes import probe
from lm.legal import check_mesh
from lm.machine import processes
from lm.machine.monitor import preparing
from lm.model.compute import Compute
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.run.extra_evals import extra_evals
from lm.run.folder import as_begun, check_sources, on_first_process, save_tokenizer
from lm.run.heldout import HeldOut
from lm.run.start import start_tokenizer
from lm.sharding.batches import local_rows
from lm.sharding.mesh import make_mesh
from lm.sharding.rules import Layout
from lm.text.tokenizer import Tokenizer, load_tokenizer
from lm.train.method import Learner
from lm.train.step import Evaluate, build_eval, with_mesh
from lm.tune.pretrain import Pretrain


@dataclass(frozen=True)
class Prepared:
    """An experiment in its `folder`, on `mesh`: its `data`, the `model` under `compute`, and the method bound to both
    (`learner`). This process reads the `local_rows` of each batch (None: all). `heldout` has the evaluations by the
    prefix of their measures; `evaluate` and `evaluate_text` are compiled for them, as `read_inside` and `read_probes`
    are for what the run notes of its model's inside (lm/run/watching.py)."""

    experiment: Experiment
    folder: Path
    mesh: Mesh
    compute: Compute
    data: Batches
    model: Transformer
    local_rows: np.ndarray | None
    learner: Learner
    evaluate: Evaluate
    evaluate_text: Evaluate
    read_inside: Callable[..., dict[str, jax.Array]]
    read_probes: Callable[..., list[dict[str, jax.Array]]]
    heldout: dict[str, HeldOut]

    def measure(self, params: Any, frozen: Any, most_tokens: int = 0) -> dict[str, float]:
        """All measures of held-out data: eval/… of the experiment's own evaluation, evaluations/NAME/… of extra ones.

        At most `most_tokens` of each source are read (0: all)."""
        by_prefix = {prefix: one.measure(params, frozen, most_tokens) for prefix, one in self.heldout.items()}
        return {f"{prefix}/{name}": x for prefix, measures in by_prefix.items() for name, x in measures.items()}


def prepare_run(
    experiment: Experiment, folder: Path, mesh: Mesh | None = None, like: Prepared | None = None
) -> Prepared:
    """Prepare `experiment` in its claimed `folder`, on `mesh` (None: the experiment's, over all devices).

    `like` is of an experiment with the same programs, of which this one shares what is compiled. Raises ValueError
    where mesh, model, data and method do not fit together, or a source cannot be read."""
    e, mesh = experiment, mesh or make_mesh(experiment.mesh)
    check_mesh(e, mesh.shape)
    data, compute = open_data(e, folder), e.compute.resolve(mesh.devices.flat[0].platform)
    model, rows = Transformer(e.model, compute), local_rows(mesh, e.rows)
    learner = e.build(model, data, rows)
    evaluate = like.evaluate if like else build_eval(learner, mesh, e.layout)
    evaluate_text = like.evaluate_text if like else build_eval(e.trains.wrap(Pretrain().build(model)), mesh, e.layout)
    heldout = HeldOut(learner, data, evaluate, mesh, data.batch_rows // e.accumulate)
    if like and data.same_heldout(like.data):
        heldout = replace(heldout, kept=like.heldout["eval"].kept)
    inside, probes = (like.read_inside, like.read_probes) if like else _reads(learner, model, mesh, e.layout)
    extra = {f"evaluations/{name}": one for name, one in extra_evals(e, heldout, model, evaluate_text).items()}
    programs = evaluate, evaluate_text, inside, probes
    return Prepared(e, folder, mesh, compute, data, model, rows, learner, *programs, {"eval": heldout, **extra})


def _reads(learner: Learner, model: Transformer, mesh: Mesh, layout: Layout) -> tuple[Any, Any]:
    """What a run notes of its model's inside, compiled: (params, frozen, text, repeated) -> its numbers, and
    (params, frozen, probes) -> what is kept of each of them."""

    def noted(params: Any, frozen: Any, text: Inputs | None, repeated: Any) -> Any:
        return watching.inside(model, learner.model_params(params, frozen), text, repeated)

    def probed(params: Any, frozen: Any, probes: Sequence[jax.Array]) -> Any:
        now = learner.model_params(params, frozen)
        return [probe(model, now, tokens) for tokens in probes]

    return with_mesh(mesh, jax.jit(noted), layout=layout), with_mesh(mesh, jax.jit(probed), layout=layout)


def open_data(experiment: Experiment, folder: Path) -> Batches:
    """The experiment's batches in its claimed `folder`. The first process trains the tokenizer; each machine tokenises
    what it reads."""
    e, saved = replace(experiment, data=as_begun(folder, experiment.data)), folder / "tokenizer"
    encoder = e.model.has_encoder
    with preparing() if processes.is_first() else contextlib.nullcontext() as progress:
        on_first_process("tokenizer", folder, lambda: _train_tokenizer(e, saved, progress))
        data = processes.all_or_raise(
            "data",
            lambda: prepare(
                e.data, e.length, e.rows, e.seed, e.method.objective, load_tokenizer(saved), progress, encoder
            ),
        )
    check_vocabulary(e, data.context)
    check_sources(folder, e.data.mixture.sources)
    if processes.is_first():
        print(*data.remarks(), sep="\n", end="\n" * bool(data.remarks()))
    return data


def _train_tokenizer(experiment: Experiment, saved: Path, progress: Progress | None) -> None:
    e = experiment
    if not saved.exists():
        tokenizer = tokenizer_of(e, progress)
        check_vocabulary(e, objective_context(tokenizer, e.length, e.model.has_encoder))
        save_tokenizer(tokenizer, saved)


def tokenizer_of(experiment: Experiment, progress: Progress | None = None) -> Tokenizer:
    """The tokenizer that a run of `experiment` begins with. Raises ValueError where there is none."""
    e = experiment
    tokenizer = start_tokenizer(e) if e.start else make_tokenizer(e.data, progress)
    if e.data.chat_template:
        tokenizer.give_template(e.data.chat_template)
    return tokenizer


def check_vocabulary(experiment: Experiment, context: ObjectiveContext) -> None:
    """Raises ValueError where the model has fewer ids than the tokenizer and the objective need."""
    objective = experiment.method.objective
    pieces, extra = context.vocab, objective.extra_tokens(context)
    if pieces + extra > experiment.model.vocab:
        more = f", {type(objective).__name__} adds {extra}" if extra else ""
        raise ValueError(
            f"the tokenizer has {pieces} pieces{more} and model.vocab is {experiment.model.vocab}: "
            f"raise model.vocab to at least {pieces + extra}"
        )
