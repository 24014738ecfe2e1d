"""The transformer: embedding, layers, final norm, output. Training, prefill and decoding are this one path.

`Transformer` is a value with pure methods; its parameters are a plain dict:

    {"stem": {"tokens": [V, D], ...}, "layers": {slot: {name: [L, ...]}}, "head": {"norm_scale": [D], "kernel": [D, V]}}

and "encoder", its layers and norm, and a stem where it is a model of its own, "vision" (lm/model/vision.py) and
"multi_token" (lm/model/multi_token.py). A model whose layers are all of one kind has the slot "0" alone.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.cache import Cache
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.inputs import EncoderOutput, Inputs
from lm.model.multi_token import Predicted, boxed_modules, predict_ahead
from lm.model.parts import dropout, normal, param
from lm.model.products import look_up
from lm.model.scoring import CACHE_BLOCK, Mask
from lm.model.stack import Final, Losses, Params, Shared, Stack, Taps
from lm.model.taps import ENCODER, Watch
from lm.model.vision import boxed_vision, placed, runs, soft_tokens
from lm.sharding.tracing import constrain

__all__ = ["Hidden", "Params", "Transformer"]


class Hidden(NamedTuple):
    """The residual stream x [B, T, D] after the last layer; the cache with this call's tokens; the layers' own losses,
    weighted already (those of experts' routers); what the model's `watch` reads: a layer's places stacked on a first
    axis, of the layers that have them."""

    x: jax.Array
    cache: Cache | None
    losses: Losses
    taps: Taps


class Stem(nn.Module):
    """Tokens [B, T] -> the residual stream [B, T, D]."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array, token_types: jax.Array | None, soft: jax.Array | None = None
    ) -> jax.Array:
        cfg = self.cfg
        table = param(self, "tokens", (cfg.vocab, cfg.width), ("vocab", "embed"), normal(cfg.init_scale))
        x = look_up(table, tokens, self.compute.dtype)
        if cfg.embed_scale != 1:
            x = x * jnp.asarray(cfg.embed_scale, x.dtype)
        if soft is not None:
            assert cfg.vision is not None
            x = placed(x, soft, tokens == cfg.vision.image_token)
        if cfg.token_types:
            kinds = param(self, "token_types", (cfg.token_types, cfg.width), (None, "embed"), normal(cfg.init_scale))
            x = x + look_up(kinds, jnp.zeros_like(tokens) if token_types is None else token_types, x.dtype)
        x = cfg.positions.embed(self, x, positions, cfg.context)
        x = dropout(self, cfg.embed_norm(self, "norm", x), cfg.dropout)
        return constrain(x, "batch", "residual_seq", "act_embed")


class TokenInputs(nn.Module):
    """Tokens [B, T] and their embedding x [B, T, D] -> what each layer is given of them, [L, B, T, P], or None."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, tokens: jax.Array, x: jax.Array) -> jax.Array | None:
        cfg = self.cfg
        return cfg.wiring.token_inputs(self, tokens, x, cfg.vocab, cfg.layers, cfg.norm, self.compute)


class Distances(nn.Module):
    """Distances [M], key less query, -> what the positions add to attention's logits there, [N, M] or None."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, distances: jax.Array) -> jax.Array | None:
        return self.cfg.positions.bias(self, distances, self.cfg.attention.query_heads, self.cfg.causal)


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
        return self.cfg.output.next_sentence_logits(self, self.cfg.wiring.final(self, self.cfg.norm, x), self.compute)


class Scores(nn.Module):
    """The residual stream [..., D] of some tokens -> their float32 scores [..., n]; with `is_token` [B, T], that of
    texts [B, T, D] -> theirs. Its norm is the head's."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, is_token: jax.Array | None = None) -> jax.Array:
        x = self.cfg.wiring.final(self, self.cfg.norm, x)
        x = x if is_token is None else self.cfg.output.pool(x, is_token)
        return self.cfg.output.token_scores(self, x, self.cfg.norm)


@dataclass(frozen=True)
class Transformer:
    """`cfg`, computed as `compute` says (resolved: no "auto"); `watch` reads and edits values inside it."""

    cfg: ModelConfig
    compute: Compute
    watch: Watch | None = None

    def _boxed(self, key: jax.Array) -> Params:
        cfg, one = self.cfg, jnp.zeros((1, 1), jnp.int32)
        compute = replace(self.compute, attention="plain")  # of what is computed here nothing is read
        stem_key, layer_key, head_key = jax.random.split(key, 3)
        encoder_key, bias_key = jax.random.split(jax.random.fold_in(key, 3))
        x = jnp.zeros((1, 1, cfg.width), compute.dtype)
        stem = Stem(cfg, compute).init(stem_key, one, one, None)["params"]
        distances = Distances(cfg).init(bias_key, one[0]).get("params", {})
        distances |= TokenInputs(cfg, compute).init(stem_key, one, x).get("params", {})
        params = {
            "stem": stem | distances,
            "layers": Stack(cfg, compute).boxed(layer_key, compute.dtype),
            "head": Head(cfg, compute).init(head_key, x, jnp.zeros((cfg.vocab, cfg.width))).get("params", {}),
        }
        if cfg.output.next_sentence:
            params["head"] |= NextSentence(cfg, compute).init(head_key, x)["params"]
        if cfg.output.scores:
            params["head"] |= Scores(cfg).init(head_key, x)["params"]
        if cfg.vision:
            params["vision"] = boxed_vision(cfg.vision, cfg.width, compute, jax.random.fold_in(key, 4))
        if cfg.multi_token:
            params["multi_token"] = boxed_modules(cfg, compute, jax.random.fold_in(key, 5))
        return params | ({"encoder": self._boxed_encoder(encoder_key)} if cfg.has_encoder else {})

    def _boxed_encoder(self, key: jax.Array) -> Params:
        cfg, one = self.cfg.encoder_config, jnp.zeros((1, 1), jnp.int32)
        compute = replace(self.compute, attention="plain")
        k1, k2, k3 = jax.random.split(key, 3)
        x = jnp.zeros((1, 1, cfg.width), compute.dtype)
        distances = Distances(cfg).init(k2, one[0]).get("params", {})
        encoder = {"layers": Stack(cfg, compute).boxed(k1, compute.dtype), **Final(cfg).init(k3, x).get("params", {})}
        if not self.cfg.encoder or self.cfg.one_embedding:
            return encoder | distances
        stem = Stem(cfg, compute).init(jax.random.fold_in(key, 3), one, one, None)["params"]
        return encoder | {"stem": stem | distances}

    @property
    def _unwatched(self) -> "Transformer":
        return Transformer(self.cfg, self.compute)

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters, each drawn from a key of its own path: models that share a part start it alike."""
        return _init(self._unwatched, key)

    def _scaled(self, boxed: Params) -> Params:
        return jax.tree.map(self.cfg.parametrisation.scale_init, nn.meta.unbox(boxed), self._axes(boxed))

    def with_scores(self, params: Params, key: jax.Array) -> Params:
        """`params`, with what may be added to a finished model as `init` draws it, where they have none and the model
        has some: an output of scores, modules of multi-token prediction. Traced."""
        fresh = self.init(key) if self.cfg.output.scores or self.cfg.multi_token else {}
        head = fresh["head"] if self.cfg.output.scores else {}
        params = {**params, "head": {**head, **params["head"]}}
        if self.cfg.multi_token:
            params["multi_token"] = {**fresh["multi_token"], **params.get("multi_token", {})}
        return params

    def shapes(self) -> Params:
        """The tree of parameters as ShapeDtypeStructs; nothing is allocated."""
        return jax.eval_shape(self._scaled, _abstract_boxes(self._unwatched))

    def axes(self) -> Params:
        """The tree of logical axes, a tuple of names a parameter, with what the parametrisation has to say of them."""
        return self._axes(_abstract_boxes(self._unwatched))

    def _axes(self, boxed: Params) -> Params:
        def names(path: Any, box: Any) -> tuple[str | None, ...]:
            stacked = any(getattr(step, "key", None) == "layers" for step in path)
            axes = ("layers", *box.names) if stacked else tuple(box.names)
            return self.cfg.parametrisation.axes(axes, box.value.shape, self.cfg)

        is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
        return jax.tree_util.tree_map_with_path(names, boxed, is_leaf=is_box)

    def hidden(
        self, params: Params, inputs: Inputs | jax.Array, cache: Cache | None = None, key: jax.Array | None = None
    ) -> Hidden:
        """The residual stream after the last layer.

        Args:
          params: as `init` makes them.
          inputs: the tokens [B, T] and what belongs to them; tokens alone do. Causality is the model's own.
          cache: as `empty_cache` makes it, or an earlier call gave it. Its first call reads the encoder's inputs too.
          key: switches dropout on.

        Raises ValueError for a decoder that reads an encoder, without its inputs."""
        return self._hidden(params, inputs, cache, key)[0]

    def hidden_ahead(
        self, params: Params, inputs: Inputs | jax.Array, key: jax.Array | None = None
    ) -> tuple[Hidden, list[Predicted]]:
        """`hidden` without a cache, and what the modules of multi-token prediction say of the same rows: none where the
        model has none."""
        if not self.cfg.multi_token:
            return self.hidden(params, inputs, key=key), []
        found, embedded, shared = self._hidden(params, inputs, None, key)
        own = None if key is None else jax.random.fold_in(key, 2)
        return found, list(predict_ahead(self.cfg, self.compute, params, found.x, embedded, shared, own))

    def _hidden(
        self, params: Params, inputs: Inputs | jax.Array, cache: Cache | None, key: jax.Array | None
    ) -> tuple[Hidden, jax.Array, Shared]:
        """`hidden`, the residual stream before the first layer, and what the layers share."""
        inputs = Inputs.of(inputs)
        seen: EncoderOutput | None = None
        taps: Taps = {}
        if inputs.encoder is not None:
            encoder_key, key = (None, None) if key is None else jax.random.split(key)
            encoded, taps = self._encode(params, inputs.encoder, encoder_key)
            seen = EncoderOutput(encoded, self._cross_mask(inputs))
        own, layers = (None, None) if key is None else jax.random.split(key)
        x, shared = self.begin(params, inputs, cache, own, seen)
        embedded, taps = self._embedded(x, taps)
        caches = None if cache is None else cache.layers
        stack = Stack(self.cfg.scaled, self.compute, self.watch)
        x, caches, losses, own_taps = stack(params["layers"], embedded, shared, caches, layers)
        after = None if cache is None else _continued(cache, caches, inputs)
        return Hidden(x, after, losses, taps | own_taps), embedded, shared

    def _embedded(self, x: jax.Array, taps: Taps) -> tuple[jax.Array, Taps]:
        """The embedding x, read and edited, and `taps` with it."""
        place = None if self.watch is None else self.watch.places(0).get("embedding")
        if place is None:
            return x, taps
        x = place.edited(x)
        return x, taps | jax.tree.map(lambda a: a[None], place.kept("embedding", x))  # as those of one layer

    def begin(
        self,
        params: Params,
        inputs: Inputs | jax.Array,
        cache: Cache | None = None,
        key: jax.Array | None = None,
        encoder: EncoderOutput | None = None,
    ) -> tuple[jax.Array, Shared]:
        """The residual stream [B, T, D] before the first layer, and what the layers share; arguments as in `hidden`,
        and the encoder's output."""
        inputs, soft = Inputs.of(inputs), None
        if inputs.images is not None:
            inputs, soft = self._see(params, inputs, key)
        x, shared = self._begin(self.cfg, params["stem"], params["stem"], inputs, cache, key, soft)
        if not self.cfg.has_encoder:
            return x, shared
        if encoder is None and cache is None:
            raise ValueError("this decoder reads an encoder: give the encoder's tokens too")
        if encoder is None:
            assert cache is not None
            encoder = EncoderOutput(None, self._cross_mask(inputs, cache.encoder_segments))
        return x, shared._replace(encoder=encoder)

    def _see(self, params: Params, inputs: Inputs, key: jax.Array | None) -> tuple[Inputs, jax.Array]:
        """The inputs with each image's places as a block, unless they have blocks, and its soft tokens."""
        cfg, images = self.cfg, inputs.images
        if cfg.vision is None or images is None:
            raise ValueError("this model has no vision tower: give it text alone, or set model.vision")
        key = None if key is None else jax.random.fold_in(key, 1)
        soft = soft_tokens(cfg.vision, cfg.width, self.compute, params["vision"], images, key)
        if inputs.blocks is None and cfg.vision.blocks:
            inputs = replace(inputs, blocks=runs(inputs.tokens == cfg.vision.image_token))
        return inputs, soft

    def _cross_mask(self, inputs: Inputs, segments: jax.Array | None = None) -> Mask:
        """Who may look at the encoder's output: tokens of the same segment."""
        queries = jnp.ones_like(inputs.tokens) if inputs.segments is None else inputs.segments
        return Mask(queries, inputs.encoder.segments if inputs.encoder else segments, causal=False)

    def encode(self, params: Params, inputs: Inputs | jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The encoder's output [B, S, D] of its inputs [B, S], which see each other within their segments."""
        return self._encode(params, Inputs.of(inputs), key)[0]

    def _encode(self, params: Params, inputs: Inputs, key: jax.Array | None) -> tuple[jax.Array, Taps]:
        """The same, and what is read inside of it."""
        cfg, encoder = self.cfg.encoder_config, params["encoder"]
        inside = Transformer(cfg, self.compute, None if self.watch is None else self.watch.of_encoder())
        own, layers = (None, None) if key is None else jax.random.split(key)
        stem = encoder.get("stem", params["stem"])
        x, shared = self._begin(cfg, stem, encoder.get("stem", encoder), inputs, None, own)
        x, taps = inside._embedded(x, {})
        x, _, _, own_taps = Stack(cfg.scaled, self.compute, inside.watch)(encoder["layers"], x, shared, None, layers)
        final = {name: value for name, value in encoder.items() if name.startswith("norm")}
        x = cast(jax.Array, Final(cfg).apply({"params": final}, x))
        return x, {ENCODER + name: value for name, value in (taps | own_taps).items()}

    def _begin(
        self,
        cfg: ModelConfig,
        stem: Params,
        distances: Params,
        inputs: Inputs,
        cache: Cache | None,
        key: jax.Array | None,
        soft: jax.Array | None = None,
    ) -> tuple[jax.Array, Shared]:
        """The embedding of the inputs, and what the layers share.

        Args:
          cfg: of the decoder, or of the encoder.
          stem: parameters of the embedding.
          distances: a tree with those of the bias by distance.
          inputs, cache, key: as in `hidden`.
          soft: the tokens of its images, [B, n, D]."""
        (B, T), offset = inputs.tokens.shape, 0 if cache is None else cache.length
        fresh = isinstance(offset, int)
        positions = inputs.positions
        if positions is None:
            start = offset if fresh else jnp.broadcast_to(offset, (B,))[:, None]
            positions = jnp.broadcast_to(jnp.arange(T) + start, inputs.tokens.shape)
            if inputs.segments is not None:  # what reads the last position (Dynamic) is not to see padding
                positions = jnp.where(inputs.segments > 0, positions, 0)
        rngs = {} if key is None else {"dropout": key}
        embedding = Stem(cfg, self.compute)
        x = embedding.apply({"params": stem}, inputs.tokens, positions, inputs.token_types, soft, rngs=rngs)
        table = {name: distances[name] for name in distances if name != "layers"}

        def keys_away(offset: jax.Array | int) -> jax.Array:
            return jnp.arange(1 - T, T if cache is None or fresh else cache.size) - offset

        away = by_distance = None
        if cfg.positions.biased:
            away = keys_away(offset) if fresh else jax.vmap(keys_away)(jnp.broadcast_to(offset, (B,)))
            bias = partial(Distances(cfg).apply, {"params": table})
            by_distance = cast(Any, bias(away) if fresh else jax.vmap(bias)(away))
        tables = Stack(cfg, self.compute).tables(positions)
        given = None
        if cfg.wiring.token_size:
            given = cast(jax.Array, TokenInputs(cfg, self.compute).apply({"params": stem}, inputs.tokens, x))
        return cast(jax.Array, x), Shared(inputs.mask(cfg.causal, offset), tables, by_distance, None, away, given)

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Float32 logits [B, T, V] of the residual stream x [B, T, D]; reads `head` and the embedding alone."""
        head = Head(self.cfg.scaled, self.compute)
        table = params.get("table", params["stem"]["tokens"])  # the embedding as a decoder's output has it
        return cast(jax.Array, head.apply({"params": params["head"]}, x, table))

    def next_sentence(self, params: Params, x: jax.Array) -> jax.Array:
        """Float32 logits [B, 2] of the residual stream x [B, T, D]: the second text follows the first (0), or not (1).
        Raises ValueError where the output has none."""
        if not self.cfg.output.next_sentence:
            raise ValueError("this model has no output for the next sentence: set model.output.next_sentence=True")
        return cast(jax.Array, NextSentence(self.cfg, self.compute).apply({"params": params["head"]}, x[:, :1]))

    def scores(self, params: Params, x: jax.Array, is_token: jax.Array | None = None) -> jax.Array:
        """Float32 scores [..., n] of the residual stream x [..., D] of some tokens; with `is_token` [B, T], those of
        texts x [B, T, D] as the output pools them (lm/model/output.py). Reads `head` alone. Raises ValueError where the
        output has none."""
        if not self.cfg.output.scores:
            raise ValueError("this model has no output of scores: set model.output.scores=1")
        return cast(jax.Array, Scores(self.cfg).apply({"params": params["head"]}, x, is_token))

    def __call__(self, params: Params, inputs: Inputs | jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Float32 logits [B, T, V] of inputs [B, T]; arguments as in `hidden`."""
        return self.logits(params, self.hidden(params, inputs, key=key).x)

    def empty_cache(self, rows: int, length: int, encoder_length: int = 0, rings: bool = True) -> Cache:
        """Room for `length` tokens a row in every layer, and with an encoder for `encoder_length` of its tokens, in the
        activations' dtype; in whole CACHE_BLOCKs where it is more than one. Without `rings` a windowed layer keeps all
        tokens, so that the last ones can be taken back."""
        if length > CACHE_BLOCK:
            length += -length % CACHE_BLOCK
        return Cache(Stack(self.cfg, self.compute).empty_caches(rows, length, encoder_length, rings), size=length)


def key_shape() -> Any:
    """The shape of a random key. To make one would start JAX's devices, when several processes have yet to connect."""
    return jax.eval_shape(jax.random.key, 0)


def _continued(cache: Cache, layers: Any, inputs: Inputs) -> Cache:
    """The cache after these inputs: padding adds nothing to a row's length."""
    B, T = inputs.tokens.shape
    more = jnp.full((B,), T) if inputs.segments is None else (inputs.segments > 0).sum(1)
    segments = cache.encoder_segments
    if inputs.encoder is not None:
        segments = inputs.encoder.segments
        segments = jnp.ones_like(inputs.encoder.tokens) if segments is None else segments
    return Cache(layers, (cache.length + more).astype(jnp.int32), segments, cache.size)


@partial(jax.jit, static_argnums=0, inline=True)  # traced once, and part of whatever program it is called in
def _init(model: Transformer, key: jax.Array) -> Params:
    return model._scaled(_boxes(model, key))


@partial(jax.jit, static_argnums=0, inline=True)  # for shapes and axes and for first values
def _boxes(model: Transformer, key: jax.Array) -> Params:
    return model._boxed(key)


@lru_cache(maxsize=64)  # a run asks for shapes and axes a dozen times, of equal models
def _abstract_boxes(model: Transformer) -> Params:
    return cast(Params, jax.eval_shape(partial(_boxes, model), key_shape()))
