"""One step of training: gradients (summed over micro-batches), the optimizer, the moving average.

It is jitted once, with the shardings of its state and batch, and the state that goes in is donated. What a method makes
of its current parameters before a step (its rollout), and what it makes of held-out batches, is here too.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.sharding.rules import Layout, spec
from lm.sharding.shardings import batch_sharding, on_host, shardings, shardings_like
from lm.sharding.tracing import as_state, to_device, using
from lm.train.loss import Metrics
from lm.train.method import Batch, Learner
from lm.train.state import TrainState, averaged, new_state

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Rollout = Callable[[int, TrainState, Batch], Batch]
Evaluate = Callable[[Any, Any, Batch, int], Metrics]
ROLLOUTS = 2**32 - 1  # folded into the seed in the place of a step, which none reaches: their keys are their own


def state_shardings(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> tuple[Any, Any]:
    """The training state as ShapeDtypeStructs that carry their shardings, and those shardings as a tree.

    Args:
      learner: whose parameters, trained and frozen, the state holds; their logical axes place them.
      optimizer: whose state is placed as the parameters are, by the rules that `layout` has for it.
      mesh: the devices.
      ema: the decay of the moving average; 0 for a state without one.
      layout: which variant of the rules; it may keep the optimizer's state on the host."""
    shapes = jax.eval_shape(lambda key: fresh_state(learner, optimizer, ema, key), jax.random.key(0))
    axes = learner.axes()
    params = shardings(shapes.params, axes, mesh, layout.rules)
    moments = shardings(shapes.params, axes, mesh, layout.state_rules)
    frozen = shardings(shapes.frozen, learner.frozen_axes(), mesh, layout.rules)
    placed = shardings_like(shapes, shapes.params, params, mesh)
    opt_state = shardings_like(shapes.opt_state, shapes.params, moments, mesh)
    if layout.optimizer_on_host:
        opt_state = on_host(shapes.opt_state, opt_state, mesh)
    placed = replace(placed, opt_state=opt_state, ema=moments if ema else (), frozen=frozen)
    return described(shapes, placed), placed


def params_shardings(learner: Learner, mesh: Mesh, layout: Layout = Layout()) -> tuple[Any, Any]:
    """(params, frozen) as ShapeDtypeStructs that carry their shardings, for those who want no more of the state."""
    params, frozen = jax.eval_shape(learner.init, jax.random.key(0))
    return (
        described(params, shardings(params, learner.axes(), mesh, layout.rules)),
        described(frozen, shardings(frozen, learner.frozen_axes(), mesh, layout.rules)),
    )


def described(shapes: Any, placed: Any) -> Any:
    """A tree of arrays or their shapes as ShapeDtypeStructs with the shardings `placed`."""
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)


def fresh_state(learner: Learner, optimizer: optax.GradientTransformation, ema: float, key: jax.Array) -> TrainState:
    """The state before the first step, wherever it comes to lie: what `init_state` compiles."""
    params, frozen = learner.init(key)
    return new_state(params, optimizer, bool(ema), frozen)


def init_state(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> TrainState:
    """The state before the first step, each array made where it lives. The same numbers on any mesh.

    Args: as of `state_shardings`; `seed` is what the parameters are drawn from."""
    _, placed = state_shardings(learner, optimizer, mesh, ema, layout)
    make = jax.jit(lambda key: fresh_state(learner, optimizer, ema, key), out_shardings=placed)
    with using(mesh, layout):
        return make(jax.random.key(seed))


def build_step(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int = 0,
    accumulate: int = 1,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> Step:
    """(state, batch) -> (state one step on, metrics), compiled once; the state that goes in is donated.

    Args:
      learner: whose loss is lowered.
      optimizer: what makes updates of gradients.
      mesh: the devices.
      seed: of all that is random in a step.
      accumulate: micro-batches, one at a time in memory, whose gradients are summed.
      ema: the decay of the moving average of the parameters (0: none).
      layout: which variant of the sharding rules.

    Returns: the step. Its metrics are scalars on the devices: those of the learner's loss (weighted means), total (the
    loss that was differentiated), grad_norm (before clipping) and tokens (the sum of the batch's weights)."""
    jitted = compiled(one_step(learner, optimizer, accumulate, ema), learner, optimizer, mesh, ema, layout)
    # the seed is data, not a constant of the program: runs that differ in it alone share what is compiled
    return under(mesh, jitted, np.uint32(seed), layout=layout)


def compiled(
    step: Any,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> Any:
    """`step`, (state, batch, hyperparameters) -> (state, metrics), jitted with the shardings of the state, which is
    donated. The other arguments are those of `build_step`."""
    _, placed = state_shardings(learner, optimizer, mesh, ema, layout)
    scalars = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, in_shardings=(placed, None, None), out_shardings=(placed, scalars), donate_argnums=0)


def one_step(learner: Learner, optimizer: optax.GradientTransformation, accumulate: int = 1, ema: float = 0.0) -> Any:
    """(state, batch, seed) -> (state one step on, metrics): what is compiled."""

    axes = learner.axes()

    def gradients(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Metrics, Any]:
        (total, metrics), grads = jax.value_and_grad(learner.loss, has_aux=True)(params, frozen, batch, key)
        return {**metrics, "total": total}, as_state(grads, axes)

    def step(state: TrainState, batch: Batch, seed: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        tokens, weights = batch["weights"].sum(), learner.weights
        batch = {**batch, **{name: a / jnp.maximum(a.sum(), 1.0) for name, a in batch.items() if name in weights}}
        if accumulate == 1:
            metrics, grads = gradients(state.params, state.frozen, batch, key)
        else:
            metrics, grads = _accumulated(partial(gradients, state.params, state.frozen), batch, key, accumulate)
        opt_state = to_device(state.opt_state)
        updates, opt_state = optimizer.update(grads, opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, opt_state, averaged(state.ema, params, ema), state.frozen)
        return new, {**metrics, "grad_norm": optax.global_norm(grads), "tokens": tokens}

    return step


def _accumulated(gradients: Any, batch: Batch, key: jax.Array, parts: int) -> Any:
    """The sum of `gradients(batch, key)` over `parts` equal slices of the rows, one at a time in memory."""
    # row i goes to slice i % parts, so that each slice keeps every device's share of the rows
    split = {n: jnp.moveaxis(a.reshape(a.shape[0] // parts, parts, *a.shape[1:]), 1, 0) for n, a in batch.items()}

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(*part)), None

    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(gradients, {n: a[0] for n, a in split.items()}, key),
    )
    return jax.lax.scan(body, zero, (split, jax.random.split(key, parts)))[0]


def as_given(step: int, state: TrainState, batch: Batch) -> Batch:
    """No rollout: the batch itself."""
    return batch


def build_rollout(learner: Learner, mesh: Mesh, seed: int, layout: Layout = Layout()) -> Rollout:
    """(step, state, batch) -> the batch that `step` trains on, made with the parameters of `state`, from which that
    step starts. For a learner without rollouts, `as_given`: nothing is dispatched."""
    if not learner.has_rollout:
        return as_given

    def rollout(step: int, state: TrainState, batch: Batch) -> Batch:
        return rolled_out(learner, mesh, state.params, state.frozen, batch, rollout_key(seed, step), layout)

    return rollout


def rolled_out(
    learner: Learner, mesh: Mesh, params: Any, frozen: Any, batch: Batch, key: jax.Array, layout: Layout = Layout()
) -> Batch:
    """The learner's rollout of a batch that lies on the devices, laid over `mesh` as every batch is; the arguments are
    those of `Learner.rollout`."""
    with using(mesh, layout):
        return jax.device_put(learner.rollout(params, frozen, batch, key), batch_sharding(mesh))


def rollout_key(seed: int, step: int) -> jax.Array:
    """The key of a step's rollout, or of that of a held-out batch of this number."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), np.uint32(ROLLOUTS)), step)


def build_eval(learner: Learner, mesh: Mesh, layout: Layout = Layout()) -> Evaluate:
    """(params, frozen, batch, number) -> the sums of `Learner.evaluate` over the held-out batch of that number, which
    seeds its rollout where the method makes one: the same for every run."""
    jitted = under(mesh, jax.jit(learner.evaluate), layout=layout)

    def evaluate(params: Any, frozen: Any, batch: Batch, number: int) -> Metrics:
        if learner.has_rollout:
            batch = rolled_out(learner, mesh, params, frozen, batch, rollout_key(0, number), layout)
        return jitted(params, frozen, batch)

    return evaluate


def under(mesh: Mesh, jitted: Any, *last: Any, layout: Layout = Layout()) -> Any:
    """`jitted` with `last` as its last arguments, called under `mesh`."""

    def call(*args: Any) -> Any:
        with using(mesh, layout):
            return jitted(*args, *last)

    def lower(*args: Any) -> Any:
        with using(mesh, layout):
            return jitted.lower(*args, *last)

    call.lower = lower  # type: ignore[attr-defined]
    return call


def own_rows(mesh: Mesh, rows: int) -> np.ndarray | None:
    """The numbers, ascending, of those rows of a batch of `rows` that this process's devices hold; None: all."""
    held: Any = NamedSharding(mesh, spec(("batch",))).addressable_devices_indices_map((rows,))
    own = np.unique(np.concatenate([np.arange(rows)[index] for index in held.values()]))
    return None if len(own) == rows else own


def place(batch: Batch, mesh: Mesh, own: np.ndarray | None = None, rows: int = 0) -> Batch:
    """The global arrays of a batch that is given whole, or of which the rows `own` of `rows` are given."""
    placing = batch_sharding(mesh)
    if jax.process_count() == 1:
        return {name: jax.make_array_from_process_local_data(placing, array) for name, array in batch.items()}

    def part(array: np.ndarray) -> jax.Array:
        there = np.arange(len(array)) if own is None else own
        shape = (len(array) if own is None else rows, *array.shape[1:])
        wanted = np.arange(shape[0])

        def piece(index: Any) -> np.ndarray:
            return np.asarray(array[np.searchsorted(there, wanted[index[0]])][(slice(None), *index[1:])])

        return jax.make_array_from_callback(shape, placing, piece)

    return {name: part(array) for name, array in batch.items()}


def whole(tree: Any) -> Any:
    """A tree of arrays that lie over several processes, whole on one device of each. All processes call it."""

    def gathered(x: jax.Array) -> jax.Array:
        everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
        return jax.jit(lambda a: a, out_shardings=everywhere)(x).addressable_data(0)

    return jax.tree.map(gathered, tree)
