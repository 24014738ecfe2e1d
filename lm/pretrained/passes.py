"""A loaded model's passes over batches of padded rows, compiled."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from lm.model.inputs import Inputs
from lm.model.output import NoOutput
from lm.model.transformer import Params, Transformer
from lm.pretrained.arrays import BLOCK, padded
from lm.pretrained.sentences import Vectors


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
def vectors(model: Transformer, params: Params, how: Vectors, ids: Any, mask: Any) -> jax.Array:
    """What `how` makes of the last hidden states of each row of ids [B, T], padded on the right where `mask` is 0:
    float32 [B, n]."""
    inputs = Inputs(ids, segments=mask)
    if model.cfg.has_encoder:
        x = model.encode(params, inputs)
    else:
        cfg = replace(model.cfg, output=NoOutput(), tied=True, multi_token=None)
        states = replace(model, cfg=cfg)  # their last norm is the head's
        x = states.logits(params, model.hidden(params, inputs).x)
    return how(x, mask)


def vectors_of(model: Transformer, params: Params, how: Vectors, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """`vectors` of rows of ids of any lengths that the model reads, by blocks: float32 [B, n]."""
    found = [np.zeros((0, how.size_of(model.cfg)), np.float32)]
    for start in range(0, len(rows), BLOCK):
        block = padded(rows[start : start + BLOCK], how.longest(model.cfg))
        found.append(np.asarray(vectors(model, params, how, *block)))
    return np.concatenate(found)
