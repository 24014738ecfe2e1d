"""The transformer: embedding, layers, final norm, output. Training, prefill and decoding are this one path.

`Transformer` is a value with pure methods; its parameters are a plain dict:

    {"stem": {"tokens": [V, D], ...}, "layers": {slot: {name: [L, ...]}}, "head": {"norm_scale": [D], "kernel": [D, V]}}

and "encoder", a stem without tables, layers and a norm, where there is one. A model whose layers are all of one kind
has the slot "0" alone.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.attention import Cache
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.parts import dropout, normal, param
from lm.model.products import look_up
from lm.model.scoring import Mask
from lm.model.stack import Context, Losses, Memory, Params, Stack
from lm.sharding.tracing import constrain

__all__ = ["Hidden", "Params", "Transformer"]


class Hidden(NamedTuple):
    """The residual stream x [B, T, D] after the last layer; the cache {slot: Cache} with this call's keys and values;
    the layers' own losses, weighted already (those of experts' routers)."""

    x: jax.Array
    cache: dict[str, Cache] | None
    losses: Losses


class Stem(nn.Module):
    """Tokens [B, T] -> the residual stream [B, T, D]."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array, token_types: jax.Array | None) -> jax.Array:
        cfg = self.cfg
        table = param(self, "tokens", (cfg.vocab, cfg.width), ("vocab", "embed"), normal(cfg.init_scale))
        x = look_up(table, tokens, self.compute.dtype)
        if cfg.embed_scale != 1:
            x = x * jnp.asarray(cfg.embed_scale, x.dtype)
        if cfg.token_types:
            kinds = param(self, "token_types", (cfg.token_types, cfg.width), (None, "embed"), normal(cfg.init_scale))
            x = x + look_up(kinds, jnp.zeros_like(tokens) if token_types is None else token_types, x.dtype)
        x = cfg.positions.embed(self, x, positions, cfg.context)
        x = dropout(self, cfg.embed_norm(self, "norm", x), cfg.dropout)
        return constrain(x, "batch", "stream", "act_embed")


class Distances(nn.Module):
    """Distances [M], key less query, -> what the positions add to attention's logits there, [N, M] or None."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, distances: jax.Array) -> jax.Array | None:
        return self.cfg.positions.bias(self, distances, self.cfg.attention.heads, self.cfg.causal)


class Head(nn.Module):
    """The residual stream [B, T, D] -> float32 logits [B, T, V]; `table` [V, D] is the embedding, for tied models."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        cfg = self.cfg
        x = cfg.wiring.final(self, cfg.norm, x)
        logits = cfg.output(self, x, cfg.vocab, table if cfg.tied else None, cfg.norm, self.compute)
        return constrain(logits, "batch", "seq", "vocab" if logits.shape[-1] == cfg.vocab else None)


class NextSentence(nn.Module):
    """The residual stream's first tokens [B, 1, D] -> float32 logits [B, 2]; its norm is the head's."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.cfg.output.sentences(self, self.cfg.wiring.final(self, self.cfg.norm, x), self.compute)


class Final(nn.Module):
    """The norm after the last layer of an encoder."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.cfg.wiring.final(self, self.cfg.norm, x)


@dataclass(frozen=True)
class Transformer:
    """`cfg`, computed as `compute` says (resolved: no "auto")."""

    cfg: ModelConfig
    compute: Compute

    def _boxed(self, key: jax.Array) -> Params:
        cfg, compute, one = self.cfg, self.compute, jnp.zeros((1, 1), jnp.int32)
        stem_key, layer_key, head_key = jax.random.split(key, 3)
        encoder_key, bias_key = jax.random.split(jax.random.fold_in(key, 3))
        x = jnp.zeros((1, 1, cfg.width), compute.dtype)
        stem = Stem(cfg, compute).init(stem_key, one, one, None)["params"]
        distances = Distances(cfg).init(bias_key, one[0]).get("params", {})
        params = {
            "stem": stem | distances,
            "layers": Stack(cfg, compute).boxed(layer_key, compute.dtype),
            "head": Head(cfg, compute).init(head_key, x, jnp.zeros((cfg.vocab, cfg.width))).get("params", {}),
        }
        if cfg.output.next_sentence:
            params["head"] |= NextSentence(cfg, compute).init(head_key, x)["params"]
        if not cfg.encoder_layers:
            return params
        k1, k2, k3 = jax.random.split(encoder_key, 3)
        encoder = {
            "layers": Stack(cfg.encoder, compute).boxed(k1, compute.dtype),
            **Distances(cfg.encoder).init(k2, one[0]).get("params", {}),
            **Final(cfg.encoder).init(k3, x).get("params", {}),
        }
        return params | {"encoder": encoder}

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters, each drawn from a key of its own path: models that share a part start it alike."""
        boxed = self._boxed(key)
        return jax.tree.map(self.cfg.parametrisation.first, nn.meta.unbox(boxed), self._axes(boxed))

    def shapes(self) -> Params:
        """The tree of parameters as ShapeDtypeStructs; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def axes(self) -> Params:
        """The tree of logical axes, a tuple of names a parameter, with what the parametrisation has to say of them."""
        return self._axes(jax.eval_shape(self._boxed, jax.random.key(0)))

    def _axes(self, boxed: Params) -> Params:
        def names(path: Any, box: Any) -> tuple[str | None, ...]:
            stacked = any(getattr(step, "key", None) == "layers" for step in path)
            axes = ("layers", *box.names) if stacked else tuple(box.names)
            return self.cfg.parametrisation.axes(axes, box.value.shape, self.cfg)

        is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
        return jax.tree_util.tree_map_with_path(names, boxed, is_leaf=is_box)

    def hidden(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: Mask | None = None,
        cache: dict[str, Cache] | None = None,
        key: jax.Array | None = None,
        token_types: jax.Array | None = None,
        memory: jax.Array | None = None,
        memory_segments: jax.Array | None = None,
    ) -> Hidden:
        """The residual stream after the last layer, of tokens [B, T].

        `positions` [B, T] default to the index among the keys, `mask` to all (causality is the model's own); `cache` is
        what `empty_cache` makes; a `key` switches dropout on. A decoder with an encoder reads `memory` [B, S, D], what
        `encode` gave, or what an earlier call left of it in the cache; its `memory_segments` [B, S] meet the mask's."""
        own, layers = (None, None) if key is None else jax.random.split(key)
        x, context = self.begin(params, tokens, positions, mask, cache, own, token_types, memory, memory_segments)
        return Hidden(*Stack(self.cfg.scaled, self.compute)(params["layers"], x, context, cache, layers))

    def begin(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: Mask | None = None,
        cache: dict[str, Cache] | None = None,
        key: jax.Array | None = None,
        token_types: jax.Array | None = None,
        memory: jax.Array | None = None,
        memory_segments: jax.Array | None = None,
    ) -> tuple[jax.Array, Context]:
        """The residual stream [B, T, D] before the first layer, and what the layers share; arguments as in `hidden`."""
        mask = replace(mask or Mask(), causal=self.cfg.causal)
        seen = tokens.shape[1] if cache is None else cache["0"].k.shape[2]
        stem = params["stem"]
        x, context = self._begin(self.cfg, stem, stem, tokens, positions, mask, seen, token_types, key)
        if not self.cfg.encoder_layers:
            return x, context
        if memory is None and cache is None:
            raise ValueError("this decoder reads an encoder: give the encoder's tokens too")
        segments = jnp.ones_like(tokens) if mask.query_segments is None else mask.query_segments
        return x, context._replace(memory=Memory(memory, Mask(segments, memory_segments, causal=False)))

    def encode(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The encoder's output [B, S, D] of its tokens [B, S], which see each other within their `segments` [B, S]."""
        cfg, encoder = self.cfg.encoder, params["encoder"]
        own, layers = (None, None) if key is None else jax.random.split(key)
        mask = Mask(segments, segments, causal=False)
        x, context = self._begin(cfg, params["stem"], encoder, tokens, positions, mask, tokens.shape[1], None, own)
        x, _, _ = Stack(cfg.scaled, self.compute)(encoder["layers"], x, context, None, layers)
        final = {name: value for name, value in encoder.items() if name.startswith("norm")}
        return cast(jax.Array, Final(cfg).apply({"params": final}, x))

    def _begin(
        self,
        cfg: ModelConfig,
        stem: Params,
        distances: Params,
        tokens: jax.Array,
        positions: jax.Array | None,
        mask: Mask,
        seen: int,
        token_types: jax.Array | None,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Context]:
        """The embedding of tokens [B, T], and what the layers share, of `seen` keys."""
        T = tokens.shape[1]
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(T) + mask.offset, tokens.shape)
        rngs = {} if key is None else {"dropout": key}
        x = Stem(cfg, self.compute).apply({"params": stem}, tokens, positions, token_types, rngs=rngs)
        away = jnp.arange(1 - T, seen) - mask.offset
        table = {name: distances[name] for name in distances if name != "layers"}
        bias = Distances(cfg).apply({"params": table}, away)
        return cast(jax.Array, x), Context(mask, Stack(cfg, self.compute).tables(positions), cast(Any, bias))

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Float32 logits [B, T, V] of the residual stream x [B, T, D]; reads `head` and the embedding alone."""
        head = Head(self.cfg.scaled, self.compute)
        return cast(jax.Array, head.apply({"params": params["head"]}, x, params["stem"]["tokens"]))

    def next_sentence(self, params: Params, x: jax.Array) -> jax.Array:
        """Float32 logits [B, 2] of the residual stream x [B, T, D]: the second text follows the first (0), or not (1).
        Raises ValueError where the output has none."""
        if not self.cfg.output.next_sentence:
            raise ValueError("this model has no output for the next sentence: set model.output.next_sentence=True")
        return cast(jax.Array, NextSentence(self.cfg, self.compute).apply({"params": params["head"]}, x[:, :1]))

    def __call__(self, params: Params, tokens: jax.Array, **kwargs: Any) -> jax.Array:
        """Float32 logits [B, T, V] of tokens [B, T]; keywords as in `hidden`."""
        return self.logits(params, self.hidden(params, tokens, **kwargs).x)

    def empty_cache(self, batch: int, length: int, memory: int = 0) -> dict[str, Cache]:
        """Room for `length` tokens a sequence in every layer, and with an encoder for `memory` of its tokens, in the
        activations' dtype."""
        return Stack(self.cfg, self.compute).empty_cache(batch, length, memory, self.compute.dtype)
