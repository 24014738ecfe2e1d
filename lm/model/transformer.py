"""The transformer: embedding, a scan over layers, final norm, head. Training, prefill and decoding are this one path.

`Transformer` is a value with pure methods; its parameters are a plain dict:

    {"stem": {"tokens": [V, D], ...}, "layers": {name: [L, ...]}, "head": {"norm_scale": [D], "kernel": [D, V]}}

Layers are stacked on a leading axis, so that one layer is traced and compiled, whatever the depth.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.attention import Cache, Mask
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.parts import dropout, fan_in, linear, normal, param
from lm.sharding import constrain

Params = dict[str, Any]
POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stem(nn.Module):
    """Tokens [B, T] -> the residual stream [B, T, D]."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        cfg = self.cfg
        table = param(self, "tokens", (cfg.vocab, cfg.width), ("vocab", "embed"), normal(cfg.init_scale))
        x = table[tokens].astype(self.compute.dtype)
        x = dropout(self, cfg.positions.embed(self, x, positions, cfg.context), cfg.dropout)
        return constrain(x, "batch", "seq", "act_embed")


class Layer(nn.Module):
    """One layer: attention and feed-forward, joined as `cfg.wiring` says."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: Mask, table: tuple[jax.Array, ...], bias: jax.Array | None, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        cfg, compute = self.cfg, self.compute
        updated = cache

        def attend(h: jax.Array) -> jax.Array:
            nonlocal updated
            y, updated = cfg.attention(self, h, mask, cfg.positions, table, bias, cache, compute, cfg.layers)
            return dropout(self, y, cfg.dropout)

        def feed(h: jax.Array) -> jax.Array:
            return dropout(self, cfg.ffn(self, h, compute, cfg.layers), cfg.dropout)

        x = cfg.wiring(self, cfg.norm, x, attend, feed)
        return constrain(x, "batch", "seq", "act_embed"), updated


class Head(nn.Module):
    """The residual stream [B, T, D] -> float32 logits [B, T, V]; `table` [V, D] is the embedding, for tied models."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        D, V = self.cfg.width, self.cfg.vocab
        x = self.cfg.norm(self, "norm", x)
        kernel = table.T if self.cfg.tied else param(self, "kernel", (D, V), ("embed", "vocab"), fan_in(D))
        return constrain(linear(x, kernel, self.compute).astype(jnp.float32), "batch", "seq", "vocab")


@dataclass(frozen=True)
class Transformer:
    """`cfg`, computed as `compute` says (resolved: no "auto")."""

    cfg: ModelConfig
    compute: Compute

    def _boxed(self, key: jax.Array) -> Params:
        cfg, one = self.cfg, jnp.zeros((1, 1), jnp.int32)
        stem_key, layer_key, head_key = jax.random.split(key, 3)
        stem = Stem(cfg, self.compute).init(stem_key, one, one)["params"]
        x = jnp.zeros((1, 1, cfg.width), self.compute.dtype)
        table = cfg.positions.table(one, cfg.attention.head_dim)
        # a key a layer, by its index: a deeper model starts with the same first layers
        keys = jax.vmap(partial(jax.random.fold_in, layer_key))(jnp.arange(cfg.layers))
        layers = jax.vmap(lambda k: Layer(cfg, self.compute).init(k, x, Mask(), table, None, None)["params"])(keys)
        head = Head(cfg, self.compute).init(head_key, x, jnp.zeros((cfg.vocab, cfg.width)))["params"]
        return {"stem": stem, "layers": layers, "head": head}

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters, each drawn from a key of its own path: models that share a part start it alike."""
        return nn.meta.unbox(self._boxed(key))

    def shapes(self) -> Params:
        """The tree of parameters as ShapeDtypeStructs; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def axes(self) -> Params:
        """The tree of logical axes, a tuple of names a parameter."""
        is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)  # noqa: E731
        boxed = jax.eval_shape(self._boxed, jax.random.key(0))
        names = jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=is_box)
        is_names = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
        return names | {"layers": jax.tree.map(lambda n: ("layers", *n), names["layers"], is_leaf=is_names)}

    def hidden(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        mask: Mask | None = None,
        cache: Cache | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """The residual stream after the last layer, [B, T, D], and the cache with this call's keys and values.

        `positions` [B, T] default to the index among the keys, `mask` to causal; `cache` is what `empty_cache` makes; a
        `key` switches dropout on."""
        cfg, compute = self.cfg, self.compute
        mask = mask or Mask()
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]) + mask.offset, tokens.shape)
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        rngs = lambda k: {} if k is None else {"dropout": k}  # noqa: E731
        x: Any = Stem(cfg, compute).apply({"params": params["stem"]}, tokens, positions, rngs=rngs(keys[0]))
        table = cfg.positions.table(positions, cfg.attention.head_dim)
        seen = positions if cache is None else jnp.arange(cache.k.shape[2])[None]
        bias = cfg.positions.bias(positions, seen, cfg.attention.heads)
        layer = Layer(cfg, compute)

        def body(x: jax.Array, xs: Any) -> Any:
            p, c, k = xs
            return layer.apply({"params": p}, x, mask, table, bias, c, rngs=rngs(k))

        if compute.remat != "nothing":
            body = jax.checkpoint(body, policy=POLICIES[compute.remat], prevent_cse=compute.unroll != 1)
        layer_keys = None if keys[1] is None else jax.random.split(keys[1], cfg.layers)
        return jax.lax.scan(body, x, (params["layers"], cache, layer_keys), unroll=compute.unroll or cfg.layers)

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Float32 logits [B, T, V] of the residual stream x [B, T, D]; reads `head` and the embedding alone."""
        head = Head(self.cfg, self.compute)
        return cast(jax.Array, head.apply({"params": params["head"]}, x, params["stem"]["tokens"]))

    def __call__(self, params: Params, tokens: jax.Array, **kwargs: Any) -> jax.Array:
        """Float32 logits [B, T, V] of tokens [B, T]; keywords as in `hidden`."""
        return self.logits(params, self.hidden(params, tokens, **kwargs)[0])

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Room for `length` tokens a sequence in every layer: [L, B, S, K, H] twice, in the activations' dtype."""
        a = self.cfg.attention
        zeros = jnp.zeros((self.cfg.layers, batch, length, a.kv, a.head_dim), self.compute.dtype)
        return Cache(zeros, zeros)
