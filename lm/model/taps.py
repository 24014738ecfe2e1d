"""Taps: named places in the transformer whose values are read, and edited, while it computes.

A `Watch` is a field of the `Transformer`: where it has none, or names other places, nothing is computed that was not
before, and no bit differs. Values come out of scans and rematerialised layers as flax's sown variables do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.compute import Compute
from lm.model.scoring import MINUS_INFINITY, Scoring, Span, heads_first, heads_last, product
from lm.value import suggest

EditFn = Callable[[jax.Array, Any], jax.Array]
ReadFn = Callable[[jax.Array], Any]

PLACES = {  # name -> axes, meaning
    "embedding": ("BTD", "the residual stream before the first layer"),
    "resid_pre": ("BTD", "the residual stream before a layer"),
    "attn_query": ("BTNH", "the queries of each head, as they meet the keys"),
    "attn_key": ("BSKH", "the keys, as they meet the queries"),
    "attn_value": ("BSKH", "the values"),
    "attn_logits": ("BNTS", "attention's logits by query head; far below 0 where the mask hides a key"),
    "attn_pattern": ("BNTS", "attention's probabilities by query head"),
    "attn_head": ("BTNH", "what each head has read, before the output weights"),
    "attn_out": ("BTD", "attention's output, before a norm that it may pass on the way to the residual stream"),
    "resid_mid": ("BTD", "the residual stream after attention"),
    "mlp_inner": ("BTF", "the hidden units of the feed-forward"),
    "router_logits": ("BTE", "the router's logits of the experts"),
    "mlp_out": ("BTD", "the feed-forward's output, before such a norm"),
    "resid_post": ("BTD", "the residual stream after a layer"),
}
CROSS = "cross_"  # before the names of cross-attention's places
ENCODER = "encoder_"  # before those of an encoder's


def names() -> tuple[str, ...]:
    """All places that any model has."""
    crossed = [CROSS + name for name in PLACES if name.startswith("attn_")]
    return (*PLACES, *crossed, "resid_cross", *(ENCODER + name for name in PLACES))


def axes(name: str) -> str:
    """The axes of one layer's value of a place, a letter each: B rows, T queries, S keys, D the model's width, N query
    heads, K key and value heads, H a head's size, F hidden units, E experts."""
    return PLACES.get(name.removeprefix(ENCODER).removeprefix(CROSS), PLACES["resid_mid"])[0]


@dataclass(frozen=True, eq=False)
class Watch:
    """What is read and edited of a model's places.

    `reads`: place -> what is kept of its value x (x itself, or a number of each head). `edits`: place -> a function of
    x and the number of the layer (traced where layers are scanned; 0 outside of them), whose result the model goes on
    with. A place is read after it is edited. Raises ValueError for a place that no model has."""

    reads: Mapping[str, ReadFn] = field(default_factory=dict)
    edits: Mapping[str, EditFn] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = names()
        for name in (*self.reads, *self.edits):
            if name not in known:
                raise ValueError(f"unknown tap {name!r}: {suggest(name, known)}")

    def of_encoder(self) -> "Watch":
        """The places of the encoder, by the names that they have in a model of its own."""

        def own(places: Mapping[str, Any]) -> dict[str, Any]:
            return {name.removeprefix(ENCODER): f for name, f in places.items() if name.startswith(ENCODER)}

        return Watch(own(self.reads), own(self.edits))

    def places(self, layer: Any) -> dict[str, "Place"]:
        """Each place's own part of this, in the layer of that number."""
        every = dict.fromkeys((*self.reads, *self.edits))
        edit = {name: partial(_edit, f, layer) for name, f in self.edits.items()}
        return {name: Place(self.reads.get(name), edit.get(name)) for name in every}


@dataclass(frozen=True)
class Place:
    """What is done with the value of one place."""

    read: ReadFn | None = None
    edit: Callable[[jax.Array], jax.Array] | None = None

    def edited(self, x: jax.Array) -> jax.Array:
        """x, as the model goes on with it."""
        return x if self.edit is None else self.edit(x)

    def kept(self, name: str, x: jax.Array) -> dict[str, Any]:
        """What is kept of x, under its name."""
        return {} if self.read is None else {name: self.read(x)}


def _edit(edit: EditFn, layer: Any, x: jax.Array) -> jax.Array:
    y = edit(x, layer)
    if y.shape != x.shape:
        raise ValueError(f"an edit gave an array of shape {y.shape} for one of {x.shape}")
    return y.astype(x.dtype)


def tap(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """x, the value of the place `name` of this layer: read and edited where the layer's variables "watch" say so."""
    place: Place | None = module.get_variable("watch", name)
    if place is None:
        return x
    x = place.edited(x)
    if place.read is not None:
        module.sow("taps", name, place.read(x), reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return x


def watches_pattern(module: nn.Module, prefix: str) -> list[bool]:
    """Whether attention's logits are watched, and whether its pattern is."""
    return [module.has_variable("watch", f"{prefix}attn_{name}") for name in ("logits", "pattern")]


def tap_pattern(
    module: nn.Module,
    prefix: str,
    y: jax.Array,
    arrays: tuple[jax.Array, jax.Array, jax.Array],
    scoring: Scoring,
    compute: Compute,
) -> jax.Array:
    """What queries read of values, y [B, T, N, Hv] from any kernel, plus what edits of logits and pattern change in it.

    The logits and the pattern, which no kernel keeps, are computed beside it where they are watched: one that is left
    as it is, or replaced by itself, adds exact zeros.

    Args:
      module: the layer.
      prefix: what the names of its places begin with.
      y: the kernel's result.
      arrays: q [B, T, N, H] (scaled already), k [B, S, K, H] and v [B, S, K, Hv] that it read.
      scoring: what shapes the logits.
      compute: how it is computed.

    Raises ValueError where a row's tokens are split over devices, of which none has a pattern."""
    watched = watches_pattern(module, prefix)
    if not any(watched):
        return y
    if scoring.mask.zigzag:
        raise ValueError("a row's tokens are on several devices, and no one has its pattern: set mesh.context=1")
    q, k, v = heads_first(*arrays, compute)
    (B, K, G, T, _), S = q.shape, k.shape[2]
    rows, columns = Span(0, T), Span(0, S)
    logits = scoring(q, k, rows, columns, T).reshape(B, K * G, T, S)
    before = after = _probabilities(logits, scoring.sinks)
    edited, allowed = tap(module, f"{prefix}attn_logits", logits), scoring.mask.allowed(rows, columns)
    if edited is not logits:  # what is hidden from a query stays so
        edited = edited if allowed is None else jnp.where(allowed[:, None], edited, MINUS_INFINITY)
        after = _probabilities(edited, scoring.sinks)
    after = tap(module, f"{prefix}attn_pattern", after)
    change = (after - before).reshape(B, K, G, T, S).astype(v.dtype)
    return y + heads_last(product("bkgts,bksh->bkgth", change, v), compute).astype(y.dtype)


def _probabilities(logits: jax.Array, sinks: jax.Array | None) -> jax.Array:
    """The softmax of logits [B, N, T, S], of which `sinks` [N] take their part."""
    most = logits.max(-1, keepdims=True)
    sink = None if sinks is None else sinks.astype(jnp.float32)[:, None, None]
    most = most if sink is None else jnp.maximum(most, sink)
    weights = jnp.exp(logits - most)
    total = weights.sum(-1, keepdims=True)
    return weights / (total if sink is None else total + jnp.exp(sink - most))
