"""A step of a run looked into: what each place of the model held, each target's loss, each array's gradient.

All of it is reduced on the devices, to numbers by token or by layer, and found without a word about the method: the
batches, the loss and the weights of its targets are the learner's.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.inspect.summary import Spot, Summary, first_not_finite, order, summaries
from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.run.course import Run
from lm.run.replay import Replay, layers_of, named
from lm.sharding.tracing import use_mesh
from lm.train.checkpoint import flatten
from lm.train.method import Batch, Learner
from lm.train.state import TrainState
from lm.train.step import gradient_function


class Sizes(NamedTuple):
    """Of an array, [its first axis] where that is of layers, else [1]: the `largest` size of its numbers (infinite
    where one is not finite), and the `bits` of all, a checksum."""

    largest: Any
    bits: Any


@dataclass(frozen=True)
class Examination:
    """What a step had: the `places` of the model by name, in the `order` of computation; `targets`: name of an array of
    weights -> each target's loss, of its shape; the trained parameters (`params`) and their `gradients` by path, these
    empty where a step takes several updates."""

    places: Mapping[str, Summary]
    order: tuple[tuple[str, int], ...]
    targets: Mapping[str, np.ndarray]
    params: Mapping[str, Sizes]
    gradients: Mapping[str, Sizes]

    @property
    def spot(self) -> Spot | None:
        """The first value of the forward pass that is not finite."""
        return first_not_finite(self.places, self.order)


def examine(replay: Replay, state: TrainState, batch: Batch) -> Examination:
    """What the step that begins with `state` and learns from `batch` has; nothing is changed."""
    run, e = replay.run, replay.experiment
    learner = run.prepared.learner
    inside, targets, sizes, gradients = _programs(run.like or run)
    given = state.params, state.frozen, batch, np.uint32(e.seed), state.step
    with use_mesh(run.prepared.mesh, e.layout):
        params = jax.device_get(sizes(state.params))
        moved = jax.device_get(gradients(*given)) if learner.updates == (1, 1) else {}
        places, ordered = jax.device_get(inside(*given)), order(learner.model, Inputs.of(batch).encoder is not None)
        return Examination(places, ordered, jax.device_get(targets(*given)), params, moved)


@functools.lru_cache(maxsize=2)
def _programs(run: Run) -> tuple[Any, Any, Any, Any]:
    """What an examination reads of the steps of `run`, and of runs like it, each compiled once: the places and the
    targets of (params, frozen, batch, seed, step), the sizes of params, and those of the gradients."""
    e, prepared = run.experiment, run.prepared
    model, learner = prepared.learner.model, prepared.learner
    plain = e.build(Transformer(e.model, replace(prepared.compute, loss_chunk=0)))
    copies = e.method.objective.row_copies if e.method.whole_groups else 1

    def key_of(seed: jax.Array, step: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed), step)

    def inside(params: Any, frozen: Any, batch: Batch, seed: jax.Array, step: jax.Array) -> dict[str, Summary]:
        dropped = key_of(seed, step) if model.cfg.dropout and e.accumulate == 1 else None
        return summaries(model, learner.model_params(params, frozen), Inputs.of(batch), dropped)

    def targets(params: Any, frozen: Any, batch: Batch, seed: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
        return target_losses(plain, params, frozen, batch, copies)

    def gradients(params: Any, frozen: Any, batch: Batch, seed: jax.Array, step: jax.Array) -> dict[str, Sizes]:
        return _sizes(e.model, gradient_function(learner, e.accumulate)(params, frozen, batch, key_of(seed, step))[1])

    def sizes(params: Any) -> dict[str, Sizes]:
        return _sizes(e.model, params)

    return jax.jit(inside), jax.jit(targets), jax.jit(sizes), jax.jit(gradients)


def target_losses(learner: Learner, params: Any, frozen: Any, batch: Batch, copies: int = 1) -> dict[str, jax.Array]:
    """The loss of each target, [B, ...] as the array of weights that weighs it: the loss of a batch is their sum, so
    that it is the gradient in the weight. Traced; `copies` rows, which a method reads beside one another, at a time.

    The learner's model is to compute its loss in one chunk, whose gradient in the weights is known."""
    names = [name for name in learner.weights if name in batch]

    def of_rows(rows: Batch) -> Any:
        def loss(weights: Batch) -> jax.Array:
            return learner.loss(params, frozen, {**rows, **weights}, None)[0]

        return jax.grad(loss)({name: rows[name] for name in names})

    groups = {name: a.reshape(-1, copies, *a.shape[1:]) for name, a in batch.items()}
    losses = jax.lax.map(of_rows, groups)
    return {name: losses[name].reshape(batch[name].shape) for name in names}


def _sizes(model: Any, tree: Any) -> dict[str, Sizes]:
    """The sizes of each array of a tree of parameters, by its path."""

    def of(name: str, x: jax.Array) -> Sizes:
        layers = layers_of(model, name)
        rows = x.reshape(len(layers), -1) if layers and x.ndim and len(layers) == len(x) else x.reshape(1, -1)
        largest = jnp.where(jnp.isfinite(rows), jnp.abs(rows), jnp.inf).max(-1)
        words = jax.lax.bitcast_convert_type(rows.astype(jnp.float32), jnp.uint32)
        weights = 2 * jnp.arange(rows.shape[1], dtype=jnp.uint32) + 1
        return Sizes(largest, (words * weights).sum(-1, dtype=jnp.uint32))

    return {name: of(name, x) for name, x in flatten(tree).items() if jnp.issubdtype(x.dtype, jnp.floating)}


def not_finite(model: Any, sizes: Mapping[str, Sizes]) -> Iterator[str]:
    """The arrays that are not finite, with their layers."""
    for name, one in sizes.items():
        marked = ~np.isfinite(one.largest)
        if marked.any():
            yield named(model, name, marked)
