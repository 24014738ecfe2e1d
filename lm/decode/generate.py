"""Decoding: a prompt is read in one pass (prefill), then tokens are drawn one at a time, with a cache.

The cache is a value, and the tokens of a stretch are drawn in one compiled loop, so that the host is asked once a
stretch. Prompts of different lengths share a batch: they are padded on the left, and padding is a segment of its own
that nothing looks at.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.decode.sampling import Sampling, row_keys
from lm.model.attention import Cache
from lm.model.scoring import Mask
from lm.model.transformer import Params, Transformer

STRETCH = 16  # tokens drawn between two looks of the host


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """A batch of sequences under way.

    `last` [B] the newest token of each, not yet in the cache; `index` its place in the cache; `pad` [B] the padding on
    the left; `done` [B] whether a stop token was drawn; `keys` [B] for drawing; `segments` [B, S];
    `memory_segments` those of the encoder's tokens, if any."""

    cache: dict[str, Cache]
    last: jax.Array
    index: jax.Array
    pad: jax.Array
    done: jax.Array
    keys: jax.Array
    segments: jax.Array
    memory_segments: jax.Array | None = None


@partial(jax.jit, static_argnums=(0, 5, 6))
def prefill(
    model: Transformer,
    params: Params,
    tokens: jax.Array,
    pad: jax.Array,
    key: jax.Array,
    room: int,
    sampling: Sampling,
    memory: jax.Array | None = None,
    memory_segments: jax.Array | None = None,
) -> Decoding:
    """Read prompts [B, T], each after `pad` [B] tokens of padding, into a cache for `room` tokens; draw the next of
    each. A decoder with an encoder reads `memory` [B, S, D] as in `Transformer.hidden`."""
    B, T = tokens.shape
    place = jnp.arange(room)[None]
    segments = (place >= pad[:, None]).astype(jnp.int32)
    mask = Mask(query_segments=segments[:, :T], key_segments=segments)
    positions = jnp.maximum(jnp.arange(T)[None] - pad[:, None], 0)
    cache = model.empty_cache(B, room, 0 if memory is None else memory.shape[1])
    x, read, _ = model.hidden(
        params, tokens, positions, mask, cache=cache, memory=memory, memory_segments=memory_segments
    )
    assert read is not None
    keys = row_keys(key, B)
    last = sampling(model.logits(params, x[:, -1:])[:, 0], _at(keys, T - pad))
    index, done = jnp.asarray(T, jnp.int32), jnp.zeros(B, bool)
    return Decoding(read, last, index, pad, done, keys, segments, memory_segments)


def _at(keys: jax.Array, length: jax.Array) -> jax.Array:
    """The keys that draw the token after `length` [B] tokens: what a row gets does not depend on the rows beside it."""
    return jax.vmap(jax.random.fold_in)(keys, length)


@partial(jax.jit, static_argnums=(0, 3, 4, 5), donate_argnums=2)
def extend(
    model: Transformer, params: Params, now: Decoding, tokens: int, sampling: Sampling, stop: tuple[int, ...]
) -> tuple[Decoding, jax.Array]:
    """`tokens` more tokens of each row: [B, tokens], starting with `now.last`. After a stop token a row repeats it."""

    def body(now: Decoding, _: None) -> tuple[Decoding, jax.Array]:
        done = now.done | jnp.isin(now.last, jnp.asarray(stop, jnp.int32)) if stop else now.done
        mask = Mask(query_segments=jnp.ones_like(now.last)[:, None], key_segments=now.segments, offset=now.index)
        positions = (now.index - now.pad)[:, None]
        x, cache, _losses = model.hidden(
            params, now.last[:, None], positions, mask, cache=now.cache, memory_segments=now.memory_segments
        )
        assert cache is not None
        drawn = sampling(model.logits(params, x)[:, 0], _at(now.keys, now.index + 1 - now.pad))
        drawn = jnp.where(done, now.last, drawn)
        return dataclasses.replace(now, cache=cache, last=drawn, index=now.index + 1, done=done), now.last

    now, drawn = jax.lax.scan(body, now, None, length=tokens)
    return now, drawn.T


def stream(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop: Sequence[int] = (),
    seed: int = 0,
    memory: jax.Array | None = None,
    memory_segments: jax.Array | None = None,
) -> Iterator[list[list[int]]]:
    """Decode prompts of token ids: at each yield the new ids of every row, without the stop token, until all stopped.
    Where the model has an encoder, `memory` and `memory_segments` as in `Transformer.hidden`, a row a prompt.

    Raises ValueError for an empty prompt, an id outside the vocabulary, or a prompt that leaves no room in the
    context."""
    check_prompts(prompts, model.cfg.vocab, model.cfg.context, max_new_tokens)
    if max_new_tokens == 0:
        return
    longest = max(map(len, prompts))
    # rounded up, so that prompts of like lengths share a compiled program
    width = min(-(-longest // STRETCH) * STRETCH, model.cfg.context - max_new_tokens)
    room = min(width + -(-max_new_tokens // STRETCH) * STRETCH, model.cfg.context)
    pad = np.array([width - len(p) for p in prompts], np.int32)
    tokens = np.stack([np.pad(np.asarray(p, np.int32), (n, 0)) for p, n in zip(prompts, pad, strict=True)])
    now: Any = prefill(model, params, tokens, pad, jax.random.key(seed), room, sampling, memory, memory_segments)
    stopped = np.zeros(len(prompts), bool)
    left = max_new_tokens
    while left > 0 and not stopped.all():
        size = min(STRETCH, left)
        now, drawn = extend(model, params, now, size, sampling, tuple(stop))
        rows = []
        for i, ids in enumerate(np.asarray(drawn).tolist()):
            end = next((j for j, t in enumerate(ids) if t in stop), len(ids))
            rows.append([] if stopped[i] else ids[:end])
            stopped[i] |= end < len(ids)
        left -= size
        yield rows


def generate(
    model: Transformer, params: Params, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: Any
) -> list[list[int]]:
    """The new ids of every prompt; options as in `stream`."""
    out: list[list[int]] = [[] for _ in prompts]
    for rows in stream(model, params, prompts, max_new_tokens, **options):
        for all_ids, ids in zip(out, rows, strict=True):
            all_ids.extend(ids)
    return out


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
