"""One step of training: gradients (summed over micro-batches), the optimizer, the moving average.

It is jitted once, with the shardings of its state and batch, and the state that goes in is donated.
"""

from collections.abc import Callable
from dataclasses import replace
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
from lm.train.state import TrainState, averaged, new_state
from lm.train.task import Batch, Task

WEIGHTS = ("weights", "next_sentence_weights")  # what a batch has of these sums to 1, whatever the rows of padding
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def state_shardings(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> tuple[Any, Any]:
    """The training state as ShapeDtypeStructs that carry their shardings, and those shardings as a tree."""
    shapes = jax.eval_shape(lambda key: new_state(task.init(key), optimizer, bool(ema)), jax.random.key(0))
    axes = task.axes()
    params = shardings(shapes.params, axes, mesh, layout.rules)
    moments = shardings(shapes.params, axes, mesh, layout.state_rules)
    placed = shardings_like(shapes, shapes.params, params, mesh)
    opt_state = shardings_like(shapes.opt_state, shapes.params, moments, mesh)
    if layout.optimizer_on_host:
        opt_state = on_host(shapes.opt_state, opt_state, mesh)
    placed = replace(placed, opt_state=opt_state, ema=moments if ema else ())
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed), placed


def init_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> TrainState:
    """The state before the first step, each array made where it lives. The same numbers on any mesh."""
    _, placed = state_shardings(task, optimizer, mesh, ema, layout)
    make = jax.jit(lambda key: new_state(task.init(key), optimizer, bool(ema)), out_shardings=placed)
    with using(mesh, layout):
        return make(jax.random.key(seed))


def build_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int = 0,
    accumulate: int = 1,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> Step:
    """(state, batch) -> (state one step on, metrics), compiled once; the state that goes in is donated.

    The metrics are scalars on device: loss and accuracy (weighted means), grad_norm (before clipping), tokens (the sum
    of the weights). next_sentence_loss and next_sentence (accuracy) are means over rows, where a batch asks for it."""
    jitted = compiled(one_step(task, optimizer, accumulate, ema), task, optimizer, mesh, ema, layout)
    # the seed is data, not a constant of the program: runs that differ in it alone share what is compiled
    return under(mesh, jitted, np.uint32(seed), layout=layout)


def compiled(
    step: Any,
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> Any:
    """`step`, (state, batch, numbers) -> (state, metrics), jitted with the shardings of the state, which is donated."""
    _, placed = state_shardings(task, optimizer, mesh, ema, layout)
    scalars = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, in_shardings=(placed, None, None), out_shardings=(placed, scalars), donate_argnums=0)


def one_step(task: Task, optimizer: optax.GradientTransformation, accumulate: int = 1, ema: float = 0.0) -> Any:
    """(state, batch, seed) -> (state one step on, metrics): what is compiled."""

    axes = task.axes()

    def gradients(params: Any, batch: Batch, key: jax.Array) -> tuple[Metrics, Any]:
        (total, metrics), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch, key)
        return {**metrics, "total": total}, as_state(grads, axes)

    def step(state: TrainState, batch: Batch, seed: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        tokens = batch["weights"].sum()
        batch = {**batch, **{name: a / jnp.maximum(a.sum(), 1.0) for name, a in batch.items() if name in WEIGHTS}}
        if accumulate == 1:
            metrics, grads = gradients(state.params, batch, key)
        else:
            metrics, grads = _accumulated(gradients, state.params, batch, key, accumulate)
        opt_state = to_device(state.opt_state)
        updates, opt_state = optimizer.update(grads, opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, opt_state, averaged(state.ema, params, ema), state.frozen)
        return new, {**metrics, "grad_norm": optax.global_norm(grads), "tokens": tokens}

    return step


def _accumulated(gradients: Any, params: Any, batch: Batch, key: jax.Array, parts: int) -> Any:
    """The sum of `gradients` over `parts` equal slices of the rows, one at a time in memory."""
    # row i goes to slice i % parts, so that each slice keeps every device's share of the rows
    split = {n: jnp.moveaxis(a.reshape(a.shape[0] // parts, parts, *a.shape[1:]), 1, 0) for n, a in batch.items()}

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(params, *part)), None

    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(gradients, params, {n: a[0] for n, a in split.items()}, key),
    )
    return jax.lax.scan(body, zero, (split, jax.random.split(key, parts)))[0]


def build_eval(task: Task, mesh: Mesh, layout: Layout = Layout()) -> Callable[[Any, Batch], Metrics]:
    """(params, batch) -> the weighted sums of loss and accuracy over the batch; `tokens`, the sum of the weights, and
    `pairs`, that of the next sentences' where the batch has them."""

    def evaluate(params: Any, batch: Batch) -> Metrics:
        counts = {"tokens": batch["weights"].sum()}
        if "next_sentence_weights" in batch:
            counts["pairs"] = batch["next_sentence_weights"].sum()
        return {**task.loss(params, batch, None)[1], **counts}

    return under(mesh, jax.jit(evaluate), layout=layout)


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
