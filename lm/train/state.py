"""What a training run carries from one step to the next: one frozen value, handed in and handed back.

A run without a moving average, or a method without frozen parameters, leaves the empty tuple in their place: a tree
without leaves, so that every `jax.tree.map` over the state passes it by, and checkpoints, shardings and donation need
no special case.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run after `step` updates.

    `step` int32 scalar; `params` the trained tree; `opt_state` the optimizer's; `ema` the moving average of `params`
    or (); `frozen` parameters that the method reads and no update touches (a reference model, a LoRA base) or ()."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = ()
    frozen: Any = ()


def new_state(params: Any, optimizer: optax.GradientTransformation, ema: bool = False, frozen: Any = ()) -> TrainState:
    """The state before the first step. The moving average, if any, starts as a copy of `params` (its own buffers: the
    state is donated, and a buffer cannot be donated twice)."""
    average = jax.tree.map(jnp.copy, params) if ema else ()
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average, frozen)


def update_ema(ema: Any, params: Any, decay: float) -> Any:
    """`ema` one step on: decay * ema + (1 - decay) * params. The empty tuple stays empty."""
    if not jax.tree.leaves(ema):
        return ema
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p.astype(e.dtype) - e), ema, params)
