"""A model laid out for decoding, where each step reads all weights for a few tokens: they must be read in place.

XLA's CPU compiler copies what it slices from a stack of layers, and what it joins (query, key and value as one product)
anew at every step. So layers are unrolled over a list of one tree a layer, and weights that lie apart stay apart.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.model.transformer import Params, Transformer


class Decoder(NamedTuple):
    """A model as it decodes, and its parameters in that layout."""

    model: Transformer
    params: Params


def for_decoding(model: Transformer, params: Params) -> Decoder:
    """`model` and `params` as one CPU decodes them fastest; elsewhere as they are. The same values, in the same memory:
    what is not sliced on whole cache lines alone is copied."""
    if model.compute.backend != "cpu" or any(len(a.devices()) > 1 for a in jax.tree.leaves(params)):
        return Decoder(model, params)
    compute = replace(model.compute, unroll=0, flat="no", remat="nothing", keep=(), offload=())
    return Decoder(replace(model, compute=compute), unstack(params))


def unstack(params: Params) -> Params:
    """The parameters with a list of one tree a layer in place of arrays stacked over layers, views of them where that
    can be; as they are where that was done."""
    return {**params, "layers": {slot: _layers(stack) for slot, stack in params["layers"].items()}}


def _layers(stack: Any) -> list[Any]:
    if isinstance(stack, list):
        return stack
    count = len(jax.tree.leaves(stack)[0])
    apart = jax.tree.map(lambda a: list(map(_slicer(a), range(count))), stack)
    return [jax.tree.map(lambda _, layers, i=i: layers[i], stack, apart) for i in range(count)]


def _slicer(stacked: jax.Array) -> Callable[[int], jax.Array]:
    """Layer i of an array, by i."""
    (device, *more) = stacked.devices()
    if device.platform != "cpu" or more:
        return lambda i: stacked[i]
    view, put = np.asarray(stacked), partial(jax.device_put, device=device if stacked.committed else None)
    return lambda i: put(view[i])
