"""Views: what the places of a model say, as functions to arrays.

`pattern` is attention's, [..., T, S], of one text without padding; leading axes (layers, rows, heads) stay.
"""

from functools import partial

import jax
import jax.numpy as jnp

from lm.inspect.edits import Add
from lm.inspect.look import watched
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.model.wiring import Parallel, PreNorm

# ---------------------------------------------------------------- attention


def sink_mass(pattern: jax.Array) -> jax.Array:
    """The share of attention that goes to the first token, over the queries behind it (2309.17453), [...]."""
    return pattern[..., 1:, 0].mean(-1)


def entropy(pattern: jax.Array) -> jax.Array:
    """The entropy of attention in nats, [..., T]: 0 where one key has all."""
    return -jnp.where(pattern > 0, pattern * jnp.log(jnp.where(pattern > 0, pattern, 1)), 0).sum(-1)


def previous_token(pattern: jax.Array) -> jax.Array:
    """The mean attention to the token before, [...] (2209.11895)."""
    return jnp.diagonal(pattern, -1, -2, -1).mean(-1)


def duplicate_token(pattern: jax.Array, tokens: jax.Array) -> jax.Array:
    """The mean attention to earlier tokens that are the same, over the queries that have one (2211.00593), [...].
    `tokens` broadcasts to [..., T]."""
    return _mean_at(pattern, _same(tokens))


def induction(pattern: jax.Array, tokens: jax.Array) -> jax.Array:
    """The mean attention to the tokens behind earlier ones that are the same as the query's, over the queries that have
    such (2209.11895, prefix matching), [...]. `tokens` broadcasts to [..., T]."""
    return _mean_at(pattern, jnp.pad(_same(tokens), [(0, 0)] * (tokens.ndim) + [(1, 0)])[..., :-1])


def _same(tokens: jax.Array) -> jax.Array:
    """Whether key s is an earlier token, the same as query t: [..., T, T]."""
    T = tokens.shape[-1]
    return (tokens[..., :, None] == tokens[..., None, :]) & jnp.tri(T, k=-1, dtype=bool)


def _mean_at(pattern: jax.Array, wanted: jax.Array) -> jax.Array:
    """The mean over the queries that want any key of their attention to all that they want."""
    mass, asks = jnp.where(wanted, pattern, 0).sum(-1), wanted.any(-1)
    return mass.sum(-1) / jnp.maximum(asks.sum(-1), 1)


# ---------------------------------------------------------------- the residual stream


def effective_rank(x: jax.Array) -> jax.Array:
    """The exponential of the entropy of the singular values of x [..., T, D] (Roy and Vetterli, 2007), [...]: 1 where
    all tokens point one way."""
    values = jnp.linalg.svd(x.astype(jnp.float32), compute_uv=False)
    return jnp.exp(entropy(values / values.sum(-1, keepdims=True)))


def logit_lens(model: Transformer, params: Params, resid: jax.Array) -> jax.Array:
    """The logits [L, B, T, V] that the model's own norm and output read in the residual stream resid [L, B, T, D] of
    each layer (nostalgebraist, 2020)."""
    return jax.lax.map(partial(model.logits, params), resid)


def head_outputs(model: Transformer, params: Params, heads: jax.Array) -> jax.Array:
    """What each head adds to the residual stream, [L, N, B, T, D], of what it has read, heads [L, B, T, N, H] (the tap
    attn_head of all layers). Raises ValueError where a norm stands behind the sum of the heads."""
    if not isinstance(model.cfg.wiring, PreNorm | Parallel):
        wiring = type(model.cfg.wiring).__name__
        raise ValueError(f"{wiring} normalises the sum of the heads, so that no head adds a part of its own to it")
    slots = model.cfg.slots
    weights = {i: params["layers"][name]["out"][j] for name, slot in slots.items() for j, i in enumerate(slot.layers)}
    out = jnp.stack([weights[i] for i in range(model.cfg.layers)])
    return jnp.einsum("lbtnh,lnhd->lnbtd", heads, out * model.cfg.wiring.branch_scale)


def direct_effect(model: Transformer, params: Params, x: jax.Array, parts: jax.Array) -> jax.Array:
    """What the logits owe to each of the parts [P, B, T, D] of the residual stream x [B, T, D] behind the last layer:
    the logits less those without it, [P, B, T, V], through the model's own norm and output (direct logit attribution,
    2211.00593, without holding the norm's scale fixed)."""
    logits = model.logits(params, x)
    return jax.lax.map(lambda part: logits - model.logits(params, x - part), parts)


def jacobian_lens(model: Transformer, params: Params, tokens: jax.Array, position: int = -1) -> jax.Array:
    """How the residual stream behind the last layer follows that behind each layer, at one position: the mean over rows
    of the Jacobians d last / d layer, [L, D, D], by one reverse pass for each of the D numbers.

    `jacobian_read` reads a residual stream through it."""

    def last(added: jax.Array, row: jax.Array) -> jax.Array:
        edit = Add("resid_post", positions=int(position) % row.shape[0], values=added[:, None, None])
        return watched(model, edits=[edit]).hidden(params, Inputs(row[None])).x[0, position]

    def of_row(row: jax.Array) -> jax.Array:
        zero = jnp.zeros((model.cfg.layers, model.cfg.width))
        _, back = jax.vjp(partial(last, row=row), zero)
        return jnp.moveaxis(jax.lax.map(lambda g: back(g)[0], jnp.eye(model.cfg.width)), 0, 1)

    return jax.lax.map(of_row, tokens).mean(0)


def jacobian_read(model: Transformer, params: Params, jacobians: jax.Array, resid: jax.Array) -> jax.Array:
    """The logits [L, B, T, V] that the model's own norm and output read in what each layer's residual stream
    resid [L, B, T, D] becomes at the end to first order, by `jacobians` [L, D, D]."""
    through = jnp.einsum("lij,lbtj->lbti", jacobians.astype(resid.dtype), resid)
    return logit_lens(model, params, through)
