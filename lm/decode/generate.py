"""Decoding: a prompt is read in one pass (prefill), then tokens are drawn one at a time, with a cache.

The cache is a value, and a chunk of tokens is drawn in one compiled loop, so that the host is asked once a chunk. Rows
are at lengths of their own: prompts of different lengths share a batch, padded on the right, and what a row gets does
not depend on its neighbours.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Seed, require
from lm.decode.filters import Counts
from lm.decode.layout import on_mesh
from lm.decode.sampling import NONE, Sampling, row_keys
from lm.model.cache import Cache
from lm.model.config import ModelConfig
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer

CHUNK = 16  # tokens drawn between two looks of the host


class NonFiniteLogits(ValueError):
    """The logits were NaN or infinite, so that no token could be drawn: the new token of this number, where known."""

    def __init__(self, token: int = 0):
        which = f" of new token {token}" if token else ""
        super().__init__(
            f"the logits{which} are NaN or infinite: the model's parameters are not finite, or too large for its "
            "activations' dtype (try compute.dtype=float32)"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """A batch of sequences under way.

    `last` [B] the newest token of each, not yet in the cache; `done` [B] whether a stop token was drawn; `keys` [B]
    for drawing; `counts` of the tokens of each, where the sampling reads them."""

    cache: Cache
    last: jax.Array
    done: jax.Array
    keys: jax.Array
    counts: Counts | None = None


@partial(jax.jit, static_argnums=(0, 4, 5))
def prefill(
    model: Transformer, params: Params, inputs: Inputs, key: jax.Array, max_length: int, sampling: Sampling
) -> Decoding:
    """Read prompts into a cache, and draw the next token of each.

    Args:
      model, params: of the model.
      inputs: prompts [B, T], padding of segment 0 on the right; and what an encoder reads, where there is one.
      key: for drawing; each row's own follows from it.
      max_length: tokens a row that the cache has room for.
      sampling: how to draw."""
    B = inputs.tokens.shape[0]
    encoder_length = 0 if inputs.encoder is None else inputs.encoder.tokens.shape[1]
    x, cache, _losses, _taps = model.hidden(params, inputs, model.empty_cache(B, max_length, encoder_length))
    assert cache is not None and not isinstance(cache.length, int)
    last = jnp.take_along_axis(x, cache.length[:, None, None] - 1, axis=1)
    keys = row_keys(key, B)
    logits = model.logits(params, last)[:, 0]
    counts = Counts.of(inputs.tokens, inputs.segments, logits.shape[-1]) if sampling.counts else None
    drawn = sampling(logits, _keys_at(keys, cache.length), counts)
    return Decoding(cache, drawn, jnp.zeros(B, bool), keys, counts.add(drawn) if counts else None)


def _keys_at(keys: jax.Array, length: jax.Array) -> jax.Array:
    """The keys that draw the token after `length` [B] tokens: what a row gets does not depend on its neighbours."""
    return jax.vmap(jax.random.fold_in)(keys, length)


@partial(jax.jit, static_argnums=(0, 3, 4, 5), donate_argnums=2)
def extend(
    model: Transformer,
    params: Params,
    state: Decoding,
    tokens: int,
    sampling: Sampling,
    stop: tuple[int, ...],
) -> tuple[Decoding, jax.Array]:
    """`tokens` more tokens of each row: [B, tokens], starting with `state.last`. After a stop token (an id of `stop`) a
    row repeats it."""

    def body(state: Decoding, _: None) -> tuple[Decoding, jax.Array]:
        done = state.done | jnp.isin(state.last, jnp.asarray(stop, jnp.int32)) if stop else state.done
        x, cache, _losses, _taps = model.hidden(params, Inputs(state.last[:, None]), state.cache)
        assert cache is not None and not isinstance(cache.length, int)
        drawn = sampling(model.logits(params, x)[:, 0], _keys_at(state.keys, cache.length), state.counts)
        drawn = jnp.where(done, state.last, drawn)
        counts = state.counts.add(drawn) if state.counts else None
        return Decoding(cache, drawn, done, state.keys, counts), state.last

    state, drawn = jax.lax.scan(body, state, None, length=tokens)
    return state, drawn.T


def stream(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop: Sequence[int] = (),
    seed: int = 0,
    encoder: Inputs | None = None,
    prefix: bool = False,
    images: np.ndarray | None = None,
) -> Iterator[list[list[int]]]:
    """Decode prompts: at each yield the new ids of every row, without the stop token, until all stopped.

    Args:
      model, params: of the model.
      prompts: token ids, a list a row.
      max_new_tokens: the most new tokens of a row.
      sampling: how to draw a token from the logits.
      stop: ids that end a row.
      seed: of the draws.
      encoder: what the encoder reads, a row a prompt, where the model has one.
      prefix: whether prompts are read in both directions (prefix-LM).
      images: the images of each prompt, uint8 [B, M, size, size, 3], where the model has a vision tower.

    Raises:
      ValueError: for an empty prompt, an id outside the vocabulary, or a prompt that leaves no room in the context.
      NonFiniteLogits: after the tokens before it, naming the first token that could not be drawn."""
    inputs, max_length = pad_prompts(prompts, max_new_tokens, model.cfg, encoder, prefix)
    inputs = replace(inputs, images=None if images is None else jnp.asarray(images))
    if max_new_tokens == 0:
        return
    require(Seed, seed=seed)
    with on_mesh(params, model.cfg.width, inputs.tokens.size):
        state = prefill(model, params, inputs, jax.random.key(seed), max_length, sampling)
    stopped, given = np.zeros(len(prompts), bool), 0
    for drawn in _chunks(model, params, state, max_new_tokens, sampling, tuple(stop)):
        rows = []
        for i, ids in enumerate(drawn.tolist()):
            end = next((j for j, t in enumerate(ids) if t in stop), len(ids))
            rows.append([] if stopped[i] else ids[:end])
            stopped[i] |= end < len(ids)
        if undrawn := [row.index(NONE) for row in rows if NONE in row]:
            raise NonFiniteLogits(given + min(undrawn) + 1)
        given += drawn.shape[1]
        yield rows
        if stopped.all():
            return


def _chunks(
    model: Transformer, params: Params, state: Decoding, count: int, sampling: Sampling, stop: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """`count` tokens of each row from `state.last` on, as arrays [B, some]: the first at once, the others CHUNK by
    CHUNK. Arguments as in `extend`."""
    yield np.asarray(state.last)[:, None]
    for start in range(0, count if count > 1 else 0, CHUNK):
        with on_mesh(params, model.cfg.width, len(state.done)):
            state, drawn = extend(model, params, state, min(CHUNK, count - start), sampling, stop)
        yield np.asarray(drawn)[:, start == 0 :]


def generate(
    model: Transformer, params: Params, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: Any
) -> list[list[int]]:
    """The new ids of every prompt; options as in `stream`."""
    out: list[list[int]] = [[] for _ in prompts]
    for rows in stream(model, params, prompts, max_new_tokens, **options):
        for all_ids, ids in zip(out, rows, strict=True):
            all_ids.extend(ids)
    return out


def pad_prompts(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    cfg: ModelConfig,
    encoder: Inputs | None = None,
    prefix: bool = False,
) -> tuple[Inputs, int]:
    """The inputs of prompts padded on the right, and the tokens a row that a cache has to hold for `max_new_tokens`
    more; both rounded up, so that prompts of like lengths share a compiled program. Arguments and errors as in
    `stream`."""
    check_prompts(prompts, cfg.vocab, cfg.context, max_new_tokens)
    width = min(-(-max(map(len, prompts)) // CHUNK) * CHUNK, cfg.context)
    max_length = min(width + -(-max_new_tokens // CHUNK) * CHUNK, cfg.context)
    segments = np.array([[1] * len(p) + [0] * (width - len(p)) for p in prompts], np.int32)
    tokens = np.array([[*p, *[0] * (width - len(p))] for p in prompts], np.int32)
    both_ways = jnp.asarray(segments) if prefix else None
    inputs = Inputs(jnp.asarray(tokens), segments=jnp.asarray(segments), blocks=both_ways, encoder=encoder)
    return inputs, max_length


def check_prompts(prompts: Sequence[Sequence[int]], vocab: int, context: int, max_new_tokens: int) -> None:
    """Raise ValueError for prompts that cannot be continued by `max_new_tokens`."""
    if not prompts or max_new_tokens < 0:
        raise ValueError(
            f"{len(prompts)} prompts and max_new_tokens={max_new_tokens}: expected at least one, and no negative number"
        )
    for prompt in prompts:
        if not len(prompt):
            raise ValueError(
                "the prompt has no tokens, and this tokenizer has none to begin a text with: "
                "give at least one character"
            )
        wrong = [t for t in prompt if not 0 <= t < vocab]
        if wrong:
            raise ValueError(f"token id {wrong[0]} is outside the vocabulary of {vocab}")
        if len(prompt) + max_new_tokens > context:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones do not fit the context of {context}: "
                f"shorten the prompt, or ask for at most {max(0, context - len(prompt))} new tokens"
            )
