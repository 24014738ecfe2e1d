"""Beam search: the continuations of the highest probability that are found by keeping the best few at each length.

As `generate(num_beams=...)` of transformers has it: of the (1 + stop ids) * beams likeliest extensions of a prompt's
beams, those among the first `beams` that end with a stop id are finished, and the best others go on. A finished text's
score is its log-probability divided by (its tokens, stop id included) ** length_penalty (1609.08144, equation 14, has
this with another penalty). All prompts are searched in one compiled loop; each one as if it were alone.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Count, Finite, check
from lm.decode.generate import CHUNK, NonFiniteLogits, pad_prompts
from lm.model.cache import Cache
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer

NO = -1e9  # the score of what is not there
EMPTY = -1  # in place of a token behind a text's end


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """How to search; fields mean what they mean in transformers' `generate`.

    `beams` texts of a prompt are under way at a time, and the `n` best finished ones are returned. `length_penalty` is
    the power of the length that divides a log-probability: above 0 it favours long texts. `early_stopping` tells when a
    prompt is done: True where `beams` texts are finished; False where, besides, the best one under way would score less
    at its present length than the worst finished one; "never" where it would at any length."""

    beams: Count = 4
    n: Count = 1
    length_penalty: Finite = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        check(self)
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping={self.early_stopping!r}: expected True, False or 'never'")
        if self.n > self.beams:
            raise ValueError(f"n={self.n} texts of beams={self.beams}: expected at most as many as beams")


class Hypothesis(NamedTuple):
    """A text that was found: its new `ids` without the stop id, and its score."""

    ids: list[int]
    score: float


class _Lengths(NamedTuple):
    """What depends on how many tokens a text has, [L] for 1, 2, ...: what divides its log-probability once it is
    finished (`penalty`), and while it may be continued (`hope`); the most tokens, `limit`; and whether to stop at once
    when all are finished."""

    penalty: jax.Array
    hope: jax.Array
    limit: jax.Array
    when_full: jax.Array

    @classmethod
    def of(cls, search: BeamSearch, limit: int, size: int) -> "_Lengths":
        penalty = np.arange(1, size + 1) ** float(search.length_penalty)
        never = search.early_stopping == "never" and search.length_penalty > 0
        hope = np.full(size, penalty[limit - 1]) if never else penalty
        when_full = jnp.asarray(search.early_stopping is True)
        return cls(jnp.asarray(penalty, jnp.float32), jnp.asarray(hope, jnp.float32), jnp.int32(limit), when_full)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Beams:
    """The search of P prompts after `step` tokens.

    Under way are `tokens` [P, K, L] with log-probabilities `scores` [P, K], of which each continues `source` [P, K] of
    the step before. Finished are `texts` [P, K, L] of the scores `finished` [P, K], NO where there is none yet. A
    prompt is `open` [P] while its finished texts may still change."""

    tokens: jax.Array
    scores: jax.Array
    source: jax.Array
    texts: jax.Array
    finished: jax.Array
    open: jax.Array
    step: jax.Array

    @classmethod
    def begin(cls, prompts: int, beams: int, size: int) -> "_Beams":
        """A prompt's beams are alike at first: one counts."""
        tokens = jnp.full((prompts, beams, size), EMPTY, jnp.int32)
        scores = jnp.full((prompts, beams), NO).at[:, 0].set(0)
        source = jnp.zeros((prompts, beams), jnp.int32)
        every = jnp.ones(prompts, bool)
        return cls(tokens, scores, source, tokens, jnp.full((prompts, beams), NO), every, jnp.int32(0))


def search(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    how: BeamSearch = BeamSearch(),
    stop: Sequence[int] = (),
    encoder: Inputs | None = None,
    vocab_size: int = 0,
    prefix: bool = False,
) -> list[list[Hypothesis]]:
    """The `how.n` best continuations of each prompt, best first.

    Args:
      model, params: of the model.
      prompts: token ids, a list a row.
      max_new_tokens: the most new tokens of a text, which is finished there.
      how: beams, length penalty and when to stop.
      stop: ids that end a text.
      encoder: what the encoder reads, a row a prompt, where the model has one.
      vocab_size: ids from this one on are never in a text (0: no limit).
      prefix: whether prompts are read in both directions.

    Raises:
      ValueError: for prompts that `generate` refuses, or more beams than the vocabulary can continue.
      NonFiniteLogits: where logits are NaN or infinite."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: expected at least 1")
    most = (vocab_size or model.cfg.vocab) // (1 + max(1, len(stop)))
    if how.beams > most:
        raise ValueError(f"beams={how.beams}: expected at most {most} with this vocabulary")
    inputs, max_length = pad_prompts(prompts, max_new_tokens, model.cfg, encoder, prefix)
    size = -(-max_new_tokens // CHUNK) * CHUNK  # so that like lengths share a program
    lengths = _Lengths.of(how, max_new_tokens, size)
    stops = jnp.asarray(tuple(stop), jnp.int32)
    texts, scores = jax.device_get(
        _run(model, params, inputs, max_length, how.beams, stops, lengths, vocab_size or model.cfg.vocab)
    )
    if not np.isfinite(scores).all():
        raise NonFiniteLogits
    hypothesis = lambda ids, score: Hypothesis([i for i in ids if i not in (EMPTY, *stop)], score)  # noqa: E731
    return [
        [hypothesis(*one) for one in zip(ids.tolist(), row.tolist(), strict=True)]
        for ids, row in zip(texts[:, : how.n], scores[:, : how.n], strict=True)
    ]


@partial(jax.jit, static_argnums=(0, 3, 4, 7))
def _run(
    model: Transformer,
    params: Params,
    inputs: Inputs,
    max_length: int,
    beams: int,
    stop: jax.Array,
    lengths: _Lengths,
    vocab_size: int,
) -> tuple[jax.Array, jax.Array]:
    """The finished texts [P, K, L] of P prompts, best first, and their scores [P, K].

    Args:
      model, params: of the model.
      inputs: prompts [P, T], and what an encoder reads.
      max_length: tokens a row that the cache has room for.
      beams: K.
      stop: ids that end a text.
      lengths: what depends on the length.
      vocab_size: how many ids there are."""
    P = inputs.tokens.shape[0]
    encoder_length = 0 if inputs.encoder is None else inputs.encoder.tokens.shape[1]
    x, cache, *_ = model.hidden(params, inputs, model.empty_cache(P, max_length, encoder_length))
    assert cache is not None and not isinstance(cache.length, int)
    last = jnp.take_along_axis(x, cache.length[:, None, None] - 1, axis=1)
    rows = jnp.repeat(jnp.arange(P), beams)
    advance = partial(_advance, stop=stop, lengths=lengths, vocab_size=vocab_size)
    state = advance(_Beams.begin(P, beams, len(lengths.penalty)), model.logits(params, last)[rows, 0])

    def body(carry: tuple[_Beams, Cache]) -> tuple[_Beams, Cache]:
        state, cache = carry
        cache = cache.take((jnp.arange(P)[:, None] * beams + state.source).reshape(-1))
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, 2).reshape(-1, 1)
        x, after, *_ = model.hidden(params, Inputs(newest), cache)
        assert after is not None
        return advance(state, model.logits(params, x)[:, 0]), after

    state, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[0].open), body, (state, cache.take(rows)))
    return state.texts, state.finished


def _advance(state: _Beams, logits: jax.Array, stop: jax.Array, lengths: _Lengths, vocab_size: int) -> _Beams:
    """The search with one more token of each beam.

    Args:
      state: before it.
      logits: [P * K, V] after each beam.
      stop: ids that end a text.
      lengths: what depends on the length.
      vocab_size: how many ids there are."""
    P, K, _ = state.tokens.shape
    V = logits.shape[-1]
    logprobs = jnp.where(jnp.arange(V) < vocab_size, jax.nn.log_softmax(logits.astype(jnp.float32)), -jnp.inf)
    total = logprobs.reshape(P, K, V) + state.scores[..., None]
    scores, at = jax.lax.top_k(total.reshape(P, K * V), (1 + max(1, len(stop))) * K)
    token, source = at % V, at // V
    tokens = _take(state.tokens, source).at[:, :, state.step].set(token)
    ends = jnp.isin(token, stop) | (state.step + 1 >= lengths.limit)
    running, best = jax.lax.top_k(jnp.where(ends, scores + NO, scores), K)

    counts = ends & (jnp.arange(ends.shape[1]) < K)  # an end further down only makes room
    new = jnp.where(counts, scores / lengths.penalty[state.step], NO)
    finished, kept = jax.lax.top_k(jnp.concatenate([state.finished, new], axis=1), K)
    texts = _take(jnp.concatenate([state.texts, tokens], axis=1), kept)
    finished = jnp.where(state.open[:, None], finished, state.finished)
    texts = jnp.where(state.open[:, None, None], texts, state.texts)

    # NaN counts as finished: nothing better will come
    full = ~jnp.any(finished == NO, axis=1)
    hope = running[:, 0] / lengths.hope[state.step] > finished[:, -1]
    still = state.open & ~ends.all(axis=1) & (~full | hope & ~lengths.when_full)
    return _Beams(_take(tokens, best), running, _take(source, best), texts, finished, still, state.step + 1)


def _take(a: jax.Array, index: jax.Array) -> jax.Array:
    """Rows index [P, m] of a [P, n, ...]."""
    return jnp.take_along_axis(a, index.reshape(*index.shape, *[1] * (a.ndim - 2)), axis=1)
