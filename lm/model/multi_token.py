"""Multi-token prediction: modules behind the last layer, each of which looks one token further (DeepSeek-V3,
2412.19437, section 2.2; after 2404.19737).

Module k joins the embedding of a token with what module k - 1 (for k = 1 the model itself) has said one place before,
and reads the row through one layer of the model's own kind: with h^0 the model's states, and all of them after the
final norm that is before the output head,

    h^k_j = Layer_k([norm(Emb(t_j)); norm(h^{k-1}_{j-1})] W_k)

so that at place j it has seen the tokens up to t_j, the last k by their embeddings alone, and predicts t_{j+1}: what
the model itself predicts there, of a state k places older. Embedding and output head are the model's; each module has
its own norm before the head. The first k places of a text have no such state, and are in no module.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.context import AXIS, zigzag_shard, zigzag_unshard
from lm.model.parts import fan_in, matrix
from lm.model.products import linear
from lm.model.stack import Final, Losses, Params, Shared, Stack, constrain_residual
from lm.sharding.tracing import axis_size, constrain


class Predicted(NamedTuple):
    """What module k says: the residual stream x [B, T, D] after its layer, whose logits predict what the model predicts
    at the same places; the `segments` [B, T] of the places that it has, 0 elsewhere; the layer's own losses, weighted
    already; the `head` by whose norm it goes to the model's output."""

    x: jax.Array
    segments: jax.Array
    losses: Losses
    head: Params


class Join(nn.Module):
    """A token's embedding [B, T, D] and the state [B, T, D] of one place before -> the residual stream."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, embedded: jax.Array, before: jax.Array) -> jax.Array:
        D, norm = self.cfg.width, self.cfg.norm
        both = jnp.concatenate([norm(self, "embedding_norm", embedded), norm(self, "hidden_norm", before)], -1)
        kernel = matrix(self, "projection", (2 * D, D), ("embed", "act_embed"), fan_in(2 * D))
        return constrain_residual(linear(both, kernel, self.compute), self.compute)


def layer_config(cfg: ModelConfig) -> ModelConfig:
    """A model of the one layer that a module has: of the kind of the last one."""
    last = (cfg.layers - 1 - len(cfg.first_layers)) % len(cfg.pattern)
    return replace(cfg, layers=1, first_layers=(), pattern=(cfg.pattern[last],), vision=None, multi_token=None)


def boxed_modules(cfg: ModelConfig, compute: Compute, key: jax.Array) -> Params:
    """Fresh parameters of all modules, with their logical axes: {"1": {"layers": .., "projection": .., ..}, ..}."""
    assert cfg.multi_token
    x, one = jnp.zeros((1, 1, cfg.width), compute.dtype), layer_config(cfg)

    def born(key: jax.Array) -> Params:
        join, layer, head = jax.random.split(key, 3)
        return {
            **Join(cfg, compute).init(join, x, x)["params"],
            "layers": Stack(one, compute).boxed(layer, compute.dtype),
            "head": Final(cfg).init(head, x).get("params", {}),
        }

    return {str(k): born(jax.random.fold_in(key, k)) for k in range(1, cfg.multi_token.depth + 1)}


def final_state(cfg: ModelConfig, head: Params, x: jax.Array) -> jax.Array:
    """x [B, T, D] after the norm that is before the output, of those that `head` has."""
    norms = {name: value for name, value in head.items() if name.startswith("norm_")}
    return cast(jax.Array, Final(cfg).apply({"params": norms}, x))


def run_module(
    cfg: ModelConfig,
    compute: Compute,
    module: Params,
    embedded: jax.Array,
    before: jax.Array,
    shared: Shared,
    caches: Any = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Any, Losses]:
    """One module's residual stream [B, T, D] after its layer, the caches with this call's tokens, the layer's losses.

    Args:
      cfg, compute: the model's.
      module: its parameters.
      embedded: the tokens' embeddings, [B, T, D].
      before: the states of one place before, [B, T, D], after their final norm.
      shared: what its layer reads, with the one slot "0".
      caches: of its layer; None while training.
      key: of dropout; None for none."""
    names = {name: value for name, value in module.items() if name not in ("layers", "head")}
    x = cast(jax.Array, Join(cfg, compute).apply({"params": names}, embedded, before))
    x, caches, losses, _ = Stack(layer_config(cfg).scaled, compute)(module["layers"], x, shared, caches, key)
    return x, caches, losses


def predict_ahead(
    cfg: ModelConfig,
    compute: Compute,
    params: Params,
    x: jax.Array,
    embedded: jax.Array,
    shared: Shared,
    key: jax.Array | None = None,
) -> Iterator[Predicted]:
    """What each module says in a pass over whole rows.

    Args:
      cfg, compute, params: of the model.
      x: its residual stream after the last layer, [B, T, D].
      embedded: and before the first one.
      shared: what its layers share. Modules read texts in their order: what a prefix or an image lets the model see is
        in its states.
      key: of dropout; None for none."""
    mask, head = shared.mask, params["head"]
    own = jnp.ones(x.shape[:2], jnp.int32) if mask.query_segments is None else mask.query_segments
    name = next(name for name, slot in cfg.slots.items() if cfg.layers - 1 in slot.layers)
    assert cfg.multi_token
    segments = own
    for k in range(1, cfg.multi_token.depth + 1):
        module = params["multi_token"][str(k)]
        segments = jnp.where(_shifted(segments, mask.zigzag) == own, own, 0)
        before = _shifted(final_state(cfg, head, x), mask.zigzag)
        order = replace(mask, query_segments=segments, key_segments=segments, query_blocks=None, key_blocks=None)
        seen = shared._replace(mask=order, tables={"0": shared.tables[name]})
        own_key = None if key is None else jax.random.fold_in(key, k)
        x, _, losses = run_module(cfg, compute, module, embedded, before, seen, None, own_key)
        head = module["head"]
        yield Predicted(x, segments, losses, head)


def _shifted(x: jax.Array, zigzag: bool) -> jax.Array:
    """x [B, T, ...] one place later in the row, zeros in the first."""
    x = zigzag_unshard(x, axis_size(AXIS)) if zigzag else x
    x = jnp.pad(x, [(0, 0), (1, 0), *[(0, 0)] * (x.ndim - 2)])[:, :-1]
    x = zigzag_shard(x, axis_size(AXIS)) if zigzag else x
    return constrain(x, *("batch", "residual_seq", "act_embed")[: x.ndim])
