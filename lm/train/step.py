"""One step of training: gradients (summed over micro-batches), the optimizer, the moving average.

It is jitted once, with the shardings of its state and batch, and donates the state. A method's rollouts, before a step,
and its evaluation of held-out batches are here too.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.machine.hardware import compile_sooner
from lm.model.transformer import key_shape
from lm.sharding.rules import Layout
from lm.sharding.shardings import batch_sharding, on_host, shardings, shardings_like
from lm.sharding.tracing import shard_as_state, to_device_memory, use_mesh
from lm.train.loss import Metrics
from lm.train.method import Batch, Learner
from lm.train.state import TrainState, new_state, update_ema

Init = Callable[..., TrainState]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
Rollout = Callable[[int, TrainState, Batch], Batch]
Evaluate = Callable[[Any, Any, Batch, int], Metrics]
ROLLOUTS = 2**32 - 1  # folded into the seed in place of a step's index, which none reaches


def state_shardings(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> tuple[Any, Any]:
    """The training state as ShapeDtypeStructs that carry their shardings, and those shardings as a tree.

    Args:
      learner: the method, whose parameters, trained and frozen, have logical axes.
      optimizer: its state is sharded as the parameters are, by the layout's rules for it.
      mesh: the devices.
      ema: the decay of the moving average (0: none).
      layout: the variant of the sharding rules; it may keep the optimizer's state on the host."""
    shapes = jax.eval_shape(lambda key: fresh_state(learner, optimizer, ema, key), key_shape())
    axes = learner.axes()
    params = shardings(shapes.params, axes, mesh, layout.rules)
    moments = shardings(shapes.params, axes, mesh, layout.state_rules)
    frozen = shardings(shapes.frozen, learner.frozen_axes(), mesh, layout.rules)
    placed = shardings_like(shapes, shapes.params, params, mesh)
    opt_state = shardings_like(shapes.opt_state, shapes.params, moments, mesh)
    if layout.offload_optimizer:
        opt_state = on_host(shapes.opt_state, opt_state, mesh)
    placed = replace(placed, opt_state=opt_state, ema=moments if ema else (), frozen=frozen)
    return abstract_arrays(shapes, placed), placed


def params_shardings(learner: Learner, mesh: Mesh, layout: Layout = Layout()) -> tuple[Any, Any]:
    """(params, frozen) as ShapeDtypeStructs that carry their shardings: the state without the optimizer's."""
    params, frozen = jax.eval_shape(learner.init, key_shape())
    return (
        abstract_arrays(params, shardings(params, learner.axes(), mesh, layout.rules)),
        abstract_arrays(frozen, shardings(frozen, learner.frozen_axes(), mesh, layout.rules)),
    )


def abstract_arrays(shapes: Any, placed: Any) -> Any:
    """A tree of arrays or their shapes as ShapeDtypeStructs with the shardings `placed`."""
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, placed)


def fresh_state(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    ema: float,
    key: jax.Array,
    start: Any = None,
    models: Any = None,
) -> TrainState:
    """The state before the first step, on any device: what `init_state`, which has the arguments, compiles."""
    params, frozen = learner.init(key, start, models)
    return new_state(params, optimizer, bool(ema), frozen)


def build_init(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> Init:
    """(seed, start, models) -> the state before the first step, each array initialised on the devices that hold it: the
    same values on any mesh. See `init_state` for the three, and `state_shardings` for the other arguments."""
    _, placed = state_shardings(learner, optimizer, mesh, ema, layout)

    def fresh(seed: jax.Array, start: Any, models: Any) -> TrainState:
        return fresh_state(learner, optimizer, ema, jax.random.key(seed), start, models)

    make = jax.jit(fresh, out_shardings=placed, donate_argnums=(1, 2), compiler_options=compile_sooner())

    def init(seed: int, start: Any = None, models: Any = None) -> TrainState:
        with use_mesh(mesh, layout), warnings.catch_warnings():
            # a matrix that is kept in fewer bits leaves no buffer of its size
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            return make(np.uint32(seed), start, models)

    return init


def init_state(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    ema: float = 0.0,
    layout: Layout = Layout(),
    start: Any = None,
    models: Any = None,
) -> TrainState:
    """The state before the first step: that of `build_init`, for one seed.

    Args:
      learner, optimizer, mesh, ema, layout: see `state_shardings`.
      seed: of the initial parameters.
      start: the model's parameters, on the mesh's devices, in place of drawn ones; None: they are drawn.
      models: role -> parameters, likewise, of the other models that the method reads."""
    return build_init(learner, optimizer, mesh, ema, layout)(seed, start, models)


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
      learner: the method, whose loss is minimised.
      optimizer: gradients -> updates.
      mesh: the devices.
      seed: of dropout and whatever else is random in a step.
      accumulate: micro-batches, one at a time in memory, whose gradients are summed.
      ema: the decay of the moving average of the parameters (0: none).
      layout: the variant of the sharding rules.

    Returns: the step. Its metrics are scalars on the devices: those of the learner's loss (weighted means), total (the
    loss that is differentiated), grad_norm (before clipping) and tokens (the sum of the batch's weights)."""
    jitted = jit_step(step_function(learner, optimizer, accumulate, ema), learner, optimizer, mesh, ema, layout)
    # the seed is data, not a constant of the program: runs that differ in it alone share what is compiled
    return with_mesh(mesh, jitted, np.uint32(seed), layout=layout)


def jit_step(
    step: Any,
    learner: Learner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    ema: float = 0.0,
    layout: Layout = Layout(),
) -> Any:
    """`step`, (state, batch, data) -> (state, metrics), jitted with the shardings of the state, which is donated.

    Args:
      step: what is compiled; its `data` are small replicated arrays, a seed for instance.
      learner, optimizer, mesh, ema, layout: see `build_step`."""
    _, placed = state_shardings(learner, optimizer, mesh, ema, layout)
    scalars = NamedSharding(mesh, PartitionSpec())
    placement: dict[str, Any] = dict(in_shardings=(placed, None, None), out_shardings=(placed, scalars))
    return jax.jit(step, **placement, donate_argnums=0, compiler_options=learner.model.compute.compiler_options)


def step_function(
    learner: Learner, optimizer: optax.GradientTransformation, accumulate: int = 1, ema: float = 0.0
) -> Any:
    """(state, batch, seed) -> (state one step on, metrics): what is compiled."""

    gradients = gradient_function(learner, accumulate)

    def update(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """The state after an update with `batch`, still at its step."""
        metrics, grads = gradients(state.params, state.frozen, batch, key)
        opt_state = to_device_memory(state.opt_state)
        updates, opt_state = optimizer.update(grads, opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = replace(state, params=params, opt_state=opt_state, ema=update_ema(state.ema, params, ema))
        return new, {**metrics, "grad_norm": optax.global_norm(grads)}

    def step(state: TrainState, batch: Batch, seed: jax.Array) -> tuple[TrainState, Metrics]:
        key, tokens = jax.random.fold_in(jax.random.key(seed), state.step), batch["weights"].sum()
        if learner.updates == (1, 1):
            state, metrics = update(state, batch, key)
        else:
            state, metrics = _several_updates(update, state, batch, key, *learner.updates)
        frozen = learner.advance(state.frozen, batch)
        return replace(state, step=state.step + 1, frozen=frozen), {**metrics, "tokens": tokens}

    return step


def gradient_function(learner: Learner, accumulate: int = 1) -> Any:
    """(params, frozen, batch, key) -> (metrics, gradients) of a batch's loss, its weights scaled to the sum 1."""
    axes = learner.axes()

    def gradients(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Metrics, Any]:
        (total, metrics), grads = jax.value_and_grad(learner.loss, has_aux=True)(params, frozen, batch, key)
        return {**metrics, "total": total}, shard_as_state(grads, axes)

    def scaled(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Metrics, Any]:
        weights = learner.weights
        batch = {**batch, **{name: a / jnp.maximum(a.sum(), 1.0) for name, a in batch.items() if name in weights}}
        if accumulate == 1:
            return gradients(params, frozen, batch, key)
        summed: tuple[Metrics, Any] = _accumulate_gradients(partial(gradients, params, frozen), batch, key, accumulate)
        return summed

    return scaled


def _several_updates(
    update: Any, state: TrainState, batch: Batch, key: jax.Array, minibatches: int, epochs: int
) -> tuple[TrainState, Metrics]:
    """The state after an update with each of `minibatches` in each of `epochs`, and the means of their metrics."""
    split = _split_rows(batch, minibatches)

    def body(state: TrainState, u: jax.Array) -> tuple[TrainState, Metrics]:
        part = {name: a[u % minibatches] for name, a in split.items()}
        return update(state, part, jax.random.fold_in(key, u))

    state, metrics = jax.lax.scan(body, state, jnp.arange(minibatches * epochs))
    return state, {name: values.mean() for name, values in metrics.items()}


def _accumulate_gradients(gradients: Any, batch: Batch, key: jax.Array, parts: int) -> Any:
    """The sum of `gradients(batch, key)` over `parts` equal slices of the rows, one at a time in memory."""
    split = _split_rows(batch, parts)

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradients(*part)), None

    zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(gradients, {n: a[0] for n, a in split.items()}, key),
    )
    return jax.lax.scan(body, zero, (split, jax.random.split(key, parts)))[0]


def _split_rows(batch: Batch, parts: int) -> Batch:
    """A batch as [parts, rows, ...]: row i goes to part i % parts, so that each keeps every device's share of them."""
    return {n: jnp.moveaxis(a.reshape(a.shape[0] // parts, parts, *a.shape[1:]), 1, 0) for n, a in batch.items()}


def no_rollout(step: int, state: TrainState, batch: Batch) -> Batch:
    """No rollout: the batch itself."""
    return batch


def build_rollout(learner: Learner, mesh: Mesh, seed: int, layout: Layout = Layout()) -> Rollout:
    """(step, state, batch) -> the batch that `step` trains on, by the parameters of `state`, from which it starts.

    For a learner without rollouts it is `no_rollout`: nothing is dispatched."""
    if not learner.has_rollout:
        return no_rollout

    def rollout(step: int, state: TrainState, batch: Batch) -> Batch:
        key = rollout_key(seed, step)
        return run_rollout(learner.rollout, mesh, state.params, state.frozen, batch, key, layout)

    return rollout


def run_rollout(
    rollout: Callable[[Any, Any, Batch, jax.Array], Batch],
    mesh: Mesh,
    params: Any,
    frozen: Any,
    batch: Batch,
    key: jax.Array,
    layout: Layout = Layout(),
) -> Batch:
    """`rollout` of a batch on the devices, its result sharded over `mesh` as every batch is.

    Args:
      rollout: a learner's, for training or for held-out batches.
      params, frozen, batch, key: what it gets.
      mesh, layout: under which its programs are compiled."""
    with use_mesh(mesh, layout):
        return jax.device_put(rollout(params, frozen, batch, key), batch_sharding(mesh))


def rollout_key(seed: int, step: int) -> jax.Array:
    """The key of the rollout of a step, or of a held-out batch of this index."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), np.uint32(ROLLOUTS)), step)


def build_eval(learner: Learner, mesh: Mesh, layout: Layout = Layout()) -> Evaluate:
    """(params, frozen, batch, index) -> the sums of `Learner.evaluate` over a held-out batch; its index is the seed of
    its rollout, if any, so that all runs draw alike."""
    jitted = with_mesh(mesh, jax.jit(learner.evaluate, compiler_options=compile_sooner()), layout=layout)

    def evaluate(params: Any, frozen: Any, batch: Batch, index: int) -> Metrics:
        if learner.has_rollout:
            batch = run_rollout(learner.heldout_rollout, mesh, params, frozen, batch, rollout_key(0, index), layout)
        return jitted(params, frozen, batch)

    return evaluate


def compile_in_thread(step: Any, state: Any, batch: Any) -> threading.Thread:
    """A thread, started, that compiles `step`, that of `build_step`, for a state and a batch of these shapes: while the
    state is made or restored. JAX keeps what it compiles, and a call of the step, once the thread has ended, finds it;
    what cannot be compiled raises there."""

    def compile_step() -> None:
        with contextlib.suppress(Exception):
            step.lower(state, batch).compile()

    thread = threading.Thread(target=compile_step, name="compile the step")
    thread.start()
    return thread


def with_mesh(mesh: Mesh, jitted: Any, *last: Any, layout: Layout = Layout()) -> Any:
    """`jitted` with `last` as its last arguments, called under `mesh`."""

    def call(*args: Any) -> Any:
        with use_mesh(mesh, layout):
            return jitted(*args, *last)

    def lower(*args: Any) -> Any:
        with use_mesh(mesh, layout):
            return jitted.lower(*args, *last)

    call.lower = lower  # type: ignore[attr-defined]
    return call
