"""A loaded model's passes over batches of padded rows, compiled."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.model.inputs import Inputs
from lm.model.output import NoOutput
from lm.model.transformer import Params, Transformer


@partial(jax.jit, static_argnums=0)
def logits(model: Transformer, params: Params, inputs: Inputs) -> jax.Array:
    """Float32 logits [B, T, V]."""
    return model(params, inputs)


@partial(jax.jit, static_argnums=0)
def scores(model: Transformer, params: Params, inputs: Inputs) -> jax.Array:
    """Float32 [B, n] of texts [B, T], padded on the right by segment 0, as the output pools them; of each token
    [B, T, n]."""
    assert inputs.segments is not None
    return model.scores(params, model.hidden(params, inputs).x, inputs.segments)


@partial(jax.jit, static_argnums=0)
def mean(model: Transformer, params: Params, ids: Any, mask: Any) -> jax.Array:
    """The mean of the last hidden states of each row of ids [B, T], padded where `mask` is 0: float32 [B, D]."""
    inputs = Inputs(ids, segments=mask)
    if model.cfg.has_encoder:
        x = model.encode(params, inputs)
    else:
        cfg = replace(model.cfg, output=NoOutput(), tied=True, multi_token=None)
        states = replace(model, cfg=cfg)  # their last norm is the head's
        x = states.logits(params, model.hidden(params, inputs).x)
    weights = mask[..., None].astype(jnp.float32)
    return (x.astype(jnp.float32) * weights).sum(1) / weights.sum(1)
