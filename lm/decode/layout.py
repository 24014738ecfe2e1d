"""A model laid out for decoding, where each step reads all weights for a few tokens: they must be read in place.

XLA's CPU compiler copies what it slices from a stack of layers, and what it joins (query, key and value as one product)
anew at every step. So layers are unrolled over a list of one tree a layer, and weights that lie apart stay apart. On a
mesh a step gathers no weights: its activations, which are small, go to where they are.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from lm.model.attention import Attention
from lm.model.cache import AXES, Cache
from lm.model.config import ModelConfig, Slot
from lm.model.int8 import quantize
from lm.model.native import Streamed, has_kernel
from lm.model.parts import FeedForward
from lm.model.transformer import Params, Transformer
from lm.sharding.rules import MESH_AXES, AnyMesh, DecodingLayout, Layout, Rule, fitting_spec
from lm.sharding.tracing import use_mesh

WEIGHTS = ("float32", "bfloat16", "int8")
INPUTS = dict(query=1, key=1, value=1, out=2, gate=1, up=1, down=1)  # axes of a matrix that its product sums over
TABLE = 0  # in their place: an embedding [V, D] that is the output too, and sums over D


class Decoder(NamedTuple):
    """A model as it decodes, and its parameters in that layout."""

    model: Transformer
    params: Params


def for_decoding(model: Transformer, params: Params, weights: str = "float32") -> Decoder:
    """`model` and `params` as one CPU decodes them fastest, elsewhere as they are. The same values, in the same memory:
    what is not sliced on whole cache lines alone is copied. Where a compiler is found, attention, feed-forward and
    output are multiplied by a kernel (lm/model/native.py).

    With `weights` bfloat16 or int8 (lm/model/int8.py), those are copies of so many bits; on a CPU without a compiler
    they are of float32, rounded alike. Raises ValueError for other weights, or for int8 elsewhere."""
    check_weights(weights)
    if model.compute.backend != "cpu" or any(len(a.devices()) > 1 for a in jax.tree.leaves(params)):
        if weights == "int8":
            raise ValueError("weights='int8' are for decoding on one CPU: leave them out here")
        return Decoder(model, params) if weights == "float32" else _narrowed(model, params, weights)
    return for_one_cpu(model, params, weights)


def layout_for(width: int, tokens: int) -> Layout | DecodingLayout:
    """The layout in which the devices of a mesh exchange less: for many tokens they gather weights, for few they sum
    activations. Of a product [D, F] the first takes D F numbers, the second 2 F for each token, and the products that
    lead back to the model's width nothing; so that few is D / 2 (`width` D)."""
    return DecodingLayout() if 2 * tokens <= width else Layout()


def on_mesh(params: Params, width: int, tokens: int) -> contextlib.AbstractContextManager[Any]:
    """Trace and run a program of so many tokens over the mesh on which `params` are, where it is one of
    lm/sharding/mesh.py; `width` is the model's."""
    sharding = jax.tree.leaves(params)[0].sharding
    ours = isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == MESH_AXES
    return use_mesh(sharding.mesh, layout_for(width, tokens)) if ours else contextlib.nullcontext()


def cache_shardings(cache: Cache, mesh: AnyMesh, rules: Mapping[str, Rule]) -> Cache:
    """The shardings of a cache of a decoder: rows over the devices that share a batch, heads over those of tensor
    parallelism."""

    def of(stacked: int, a: Any) -> Any:
        known = AXES if a.ndim - stacked == len(AXES) else AXES[:1]
        axes = [*["layers"] * stacked, *known, *[None] * (a.ndim - stacked - len(known))]
        return NamedSharding(mesh, fitting_spec(mesh, a.shape, axes, rules))

    layers = {name: jax.tree.map(partial(of, not isinstance(slot, list)), slot) for name, slot in cache.layers.items()}
    return replace(cache, layers=layers, length=of(0, cache.length))


def _narrowed(model: Transformer, params: Params, weights: str) -> Decoder:
    """Copies of `weights`, a layer at a time: an accelerator reads layers that lie apart ahead of their products."""
    compute = replace(model.compute, unroll=0, remat="nothing", keep=(), offload=())
    narrow = lambda a: a.astype(weights)  # noqa: E731
    others = jax.tree.map(narrow, {name: tree for name, tree in params.items() if name != "layers"})
    layers = {slot: _layers(stack, narrow) for slot, stack in params["layers"].items()}
    return Decoder(replace(model, compute=compute), {**others, "layers": layers})


def for_one_cpu(model: Transformer, params: Params, weights: str = "float32") -> Decoder:
    """`for_decoding` on one CPU; traced too, where layers are cut from their stacks once."""
    model, params = layers_apart(model), unstack(params)
    if has_kernel() and jnp.dtype(model.compute.matmul) == jnp.float32:
        return Decoder(model, _stored(model.cfg, params, partial(_streamed, weights)))
    return Decoder(model, params if weights == "float32" else _stored(model.cfg, params, partial(_rounded, weights)))


def layers_apart(model: Transformer) -> Transformer:
    """`model` as CPUs decode it fastest: over unrolled layers, and products that read each weight once."""
    compute = replace(model.compute, unroll=0, flat="no", remat="nothing", keep=(), offload=())
    return replace(model, compute=compute)


def check_weights(weights: str) -> None:
    """Raise ValueError for what is none of WEIGHTS."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}: expected {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}")


def _streamed(weights: str, w: jax.Array, contract: int) -> Streamed:
    if weights == "int8":
        return quantize(w.T).T if contract == TABLE else quantize(w, contract)
    return Streamed(w.astype(weights), w.shape)


def _rounded(weights: str, w: jax.Array, contract: int) -> jax.Array:
    return _streamed(weights, w, contract).rounded()


def _stored(cfg: ModelConfig, params: Params, store: Callable[[jax.Array, int], Any]) -> Params:
    """Unstacked parameters with what one product reads as `store` keeps it."""

    def stored(layer: Params, names: set[str]) -> Params:
        return {name: store(w, INPUTS[name]) if name in names else w for name, w in layer.items()}

    layers = {
        name: [stored(layer, _products(cfg.slots[name])) for layer in slot] for name, slot in params["layers"].items()
    }
    stored_params = {**params, "layers": layers}
    if cfg.tied:
        stored_params["table"] = store(params["stem"]["tokens"], TABLE)
    elif "kernel" in params["head"]:
        stored_params["head"] = {**params["head"], "kernel": store(params["head"]["kernel"], 1)}
    return stored_params


def is_streamed(cfg: ModelConfig, params: Params) -> bool:
    """Whether layers multiply and attend by the kernel of lm/model/native.py alone: what a token gets is then the same
    to the bit however many are read at once, up to as many as it takes."""

    def streams(slot: Slot, layer: Params) -> bool:
        attention, products = slot.mixer, _products(slot)
        by_kernel = type(attention) is Attention and not (attention.softcap or attention.sinks or slot.positions.biased)
        return (
            by_kernel
            and type(slot.ffn) is FeedForward
            and all(isinstance(w, Streamed) for name, w in layer.items() if name in products)
        )

    return all(streams(cfg.slots[name], layer) for name, slot in params["layers"].items() for layer in slot)


def _products(slot: Slot) -> set[str]:
    """The weights of a layer that are read by one product each: not those of experts, nor of other mixers."""
    attention = ("query", "key", "value", "out") if type(slot.mixer) is Attention else ()
    return {*attention, *(("gate", "up", "down") if type(slot.ffn) is FeedForward else ())}


def unstack(params: Params) -> Params:
    """The parameters with a list of one tree a layer in place of arrays stacked over layers, views of them where that
    can be; as they are where that was done."""
    return {**params, "layers": {slot: _layers(stack) for slot, stack in params["layers"].items()}}


def _layers(stack: Any, store: Callable[[jax.Array], jax.Array] = lambda a: a) -> list[Any]:
    """One tree a layer, of what `store` makes of each array."""
    if isinstance(stack, list):
        return [jax.tree.map(store, layer) for layer in stack]
    count = len(jax.tree.leaves(stack)[0])
    apart = jax.tree.map(lambda a: [store(layer) for layer in map(_slicer(a), range(count))], stack)
    return [jax.tree.map(lambda _, layers, i=i: layers[i], stack, apart) for i in range(count)]


def _slicer(stacked: jax.Array) -> Callable[[int], jax.Array]:
    """Layer i of an array, by i."""
    if isinstance(stacked, jax.core.Tracer):
        return lambda i: stacked[i]
    (device, *more) = stacked.devices()
    if device.platform != "cpu" or more:
        return lambda i: stacked[i]
    view, put = np.asarray(stacked), partial(jax.device_put, device=device if stacked.committed else None)
    return lambda i: put(view[i])
