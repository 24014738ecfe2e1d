"""What a model computes on the way, place by place.

Its layers run one after the other, and since its parts are values, those that are watched are replaced by ones that
also leave what they give in a collection of flax's, "seen". The model itself has no hooks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp

from lm.model.inputs import EncoderOutput, Inputs
from lm.model.scoring import Mask
from lm.model.stack import Layer, Shared
from lm.model.transformer import Params, Transformer


def activations(model: Transformer, params: Params, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What `model` computes for a batch, by place: the embedding, of each layer the attention's logits (before
    positions), what its sublayers give and the residual stream after it, and the logits."""
    inputs, encoder = Inputs.of(batch), None
    seen: dict[str, jax.Array] = {}
    if inputs.encoder is not None:
        seen["encoder"] = model.encode(params, inputs.encoder)
        queries = jnp.ones_like(inputs.tokens) if inputs.segments is None else inputs.segments
        encoder = EncoderOutput(seen["encoder"], Mask(queries, inputs.encoder.segments, causal=False))
    x, shared = model.begin(params, inputs, encoder=encoder)
    seen["embedding"] = x
    seen |= dict(_layers(model, params["layers"], x, shared))
    return seen | {"logits": model.logits(params, seen[f"layer {model.cfg.layers}"])}


def _layers(model: Transformer, params: Params, x: jax.Array, shared: Shared) -> Iterator[tuple[str, jax.Array]]:
    """The places of one layer after the other, the residual stream last."""
    cfg = model.cfg.scaled
    cfg = replace(cfg, wiring=cast(Any, _WatchedWiring(cfg.wiring)))
    slots = {i: (name, slot) for name, slot in cfg.slots.items() for i in slot.layers}
    for i in range(cfg.layers):
        name, slot = slots[i]
        mixer: Any = slot.mixer
        watched = hasattr(mixer, "qk_norm")
        if watched:
            mixer = replace(mixer, qk_norm=cast(Any, _Watched(mixer.qk_norm)))
        layer = Layer(cfg, slot._replace(mixer=mixer), model.compute)
        nth = slot.layers.index(i)
        own = jax.tree.map(lambda a, nth=nth: a[nth], params[name])
        (x, _), told = layer.apply({"params": own}, x, shared.of(name, slot), None, mutable=["seen"])
        places = {place: value for place, (value,) in told["seen"].items()}
        if watched:
            q, k = places.pop("query_norm"), places.pop("key_norm")
            yield f"layer {i + 1} attention logits", _pairs(q, k) * (mixer.scale or mixer.head_dim**-0.5)
        for place, value in places.items():
            yield f"layer {i + 1} {place}", value
        yield f"layer {i + 1}", x


def _pairs(q: jax.Array, k: jax.Array) -> jax.Array:
    """q k [B, K, G, T, S] of q [B, T, N, H] and k [B, S, K, H]."""
    B, T, N, H = q.shape
    return jnp.einsum("btkgh,bskh->bkgts", q.reshape(B, T, k.shape[2], -1, H), k)


class _Watched:
    """A norm that leaves what it gives in the collection "seen"."""

    def __init__(self, norm: Any):
        self.norm = norm

    def __call__(self, module: Any, name: str, x: jax.Array) -> jax.Array:
        y = self.norm(module, name, x)
        module.sow("seen", name, y)
        return cast(jax.Array, y)


class _WatchedWiring:
    """A wiring that leaves there what each sublayer gives."""

    def __init__(self, wiring: Any):
        self.wiring = wiring

    def __call__(self, module: Any, norm: Any, x: jax.Array, sublayers: Mapping[str, Any]) -> jax.Array:
        def watched(name: str, sublayer: Any) -> Any:
            def call(h: jax.Array) -> jax.Array:
                y = sublayer(h)
                module.sow("seen", name, y)
                return cast(jax.Array, y)

            return call

        wrapped = {name: watched(name, sublayer) for name, sublayer in sublayers.items()}
        return cast(jax.Array, self.wiring(module, norm, x, wrapped))
