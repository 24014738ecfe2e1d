"""Speculative decoding (2211.17192): tokens are drafted cheaply, and the model reads several at once to verify them.

What is drawn has exactly the distribution of plain decoding, whatever drafted it: a drafted token is kept with
probability min(1, p / q), p the model's processed probability of it and q the draft's, and the first that is not is
replaced by one from max(0, p - q). So a greedy text is that of plain decoding. Caches are rolled back by their length.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Count, Seed, check, require
from lm.decode.filters import Counts
from lm.decode.generate import NonFiniteLogits, pad_prompts
from lm.decode.sampling import NONE, Sampling, draw, row_keys
from lm.model.cache import Cache, TokenCache
from lm.model.config import ModelConfig
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer

ROUNDS = 4  # between two looks of the host


class Draft(NamedTuple):
    """Drafted `tokens` [B, n], the distributions `probs` [B, n, V] that they were drawn from, and which rows have a
    draft at all, `offered` [B]."""

    tokens: jax.Array
    probs: jax.Array
    offered: jax.Array


class Text(NamedTuple):
    """The texts so far: `tokens` [B, S], of which `length` [B] are there, the newest of them `last` [B]; the `keys` [B]
    of what follows; and `counts` of the tokens where the sampling reads them."""

    tokens: jax.Array
    length: jax.Array
    last: jax.Array
    keys: jax.Array
    counts: Counts | None


class Drafter(Protocol):
    """What proposes the next `tokens` tokens; `state` is its own."""

    @property
    def tokens(self) -> int: ...

    def check(self, cfg: ModelConfig, length: int) -> None:
        """Raise ValueError where it cannot draft for a model, in texts of `length` tokens."""

    def begin(self, params: Params, inputs: Inputs, max_length: int, x: jax.Array) -> Any:
        """The state after the prompts, of which the model says x [B, T, D], the residual stream after its last
        layer."""

    def draft(self, params: Params, state: Any, text: Text, sampling: Sampling, vocab: int) -> tuple[Draft, Any]:
        """What follows `text`, and a state that is right once it is rolled back."""

    def roll_back(self, state: Any, length: jax.Array, x: jax.Array) -> Any:
        """The state of texts with `length` [B] tokens that it has read, where the model says x [B, n + 1, D] of the
        token before the draft and of those drafted."""


@dataclasses.dataclass(frozen=True)
class DraftModel:
    """Drafts by a smaller `model` of the same tokenizer."""

    model: Transformer
    tokens: Count = 4

    def __post_init__(self) -> None:
        check(self)

    def check(self, cfg: ModelConfig, length: int) -> None:
        check_rollback(self.model, "the draft model")
        if length > self.model.cfg.context:
            raise ValueError(f"texts of {length} tokens: the draft model has a context of {self.model.cfg.context}")

    def begin(self, params: Params, inputs: Inputs, max_length: int, x: jax.Array) -> Any:
        empty = self.model.empty_cache(inputs.tokens.shape[0], max_length, rings=False)
        return self.model.hidden(params, inputs, empty).cache

    def draft(self, params: Params, state: Any, text: Text, sampling: Sampling, vocab: int) -> tuple[Draft, Any]:
        def body(carry: Any, i: jax.Array) -> Any:
            cache, last, counts = carry
            x, cache, _losses, _taps = self.model.hidden(params, Inputs(last[:, None]), cache)
            logits = _with_vocab(self.model.logits(params, x)[:, 0], vocab)
            probs = jnp.nan_to_num(distribution(logits, sampling, counts))  # zeros are never kept
            token = jnp.maximum(pick(probs, fold(text.keys, i)), 0)
            return (cache, token, counts and counts.add(token)), (token, probs)

        # one more than is drafted, so that all of it is in the cache
        begin = state, text.last, text.counts
        (cache, *_), (tokens, probs) = jax.lax.scan(body, begin, jnp.arange(self.tokens + 1))
        every = jnp.ones(len(text.last), bool)
        return Draft(tokens[:-1].T, probs[:-1].swapaxes(0, 1), every), cache

    def roll_back(self, state: Any, length: jax.Array, x: jax.Array) -> Any:
        return dataclasses.replace(state, length=length)


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """Drafts what followed the last tokens where they stood before, in the prompt or the text: at the longest match of
    up to `ngram` tokens, of several the newest (Saxena's prompt lookup decoding)."""

    tokens: Count = 4
    ngram: Count = 3

    def __post_init__(self) -> None:
        check(self)

    def check(self, cfg: ModelConfig, length: int) -> None:
        pass

    def begin(self, params: Params, inputs: Inputs, max_length: int, x: jax.Array) -> Any:
        return None

    def draft(self, params: Params, state: Any, text: Text, sampling: Sampling, vocab: int) -> tuple[Draft, Any]:
        tokens, found = self.look_up(text.tokens, text.length)
        return Draft(tokens, jax.nn.one_hot(tokens, vocab), found), state

    def look_up(self, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What follows the first `length` [B] of tokens [B, S] by the match, [B, n], and whether there is one, [B]. A
        draft that comes to the text's end goes on from its own beginning."""
        places, last = jnp.arange(tokens.shape[1]), length[:, None] - 1
        same = jnp.broadcast_to(places < last, tokens.shape)
        matched = jnp.zeros_like(tokens)
        for i in range(self.ngram):
            wanted = jnp.take_along_axis(tokens, jnp.maximum(last - i, 0), axis=1)
            same &= (jnp.roll(tokens, i, axis=1) == wanted) & (places >= i)
            matched += same
        best = jnp.argmax(matched * tokens.shape[1] + places, axis=1)[:, None]
        found = jnp.take_along_axis(matched, best, axis=1)[:, 0] > 0
        following = best + 1 + jnp.arange(self.tokens) % jnp.maximum(last - best, 1)
        return jnp.take_along_axis(tokens, jnp.minimum(following, tokens.shape[1] - 1), axis=1), found

    def roll_back(self, state: Any, length: jax.Array, x: jax.Array) -> Any:
        return state


@dataclasses.dataclass
class Acceptance:
    """How many tokens were `drafted` and how many of them `accepted`; `tokens` is all that were decoded, in `calls`
    of the model for a row."""

    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    calls: int = 0

    @property
    def rate(self) -> float:
        return self.accepted / max(self.drafted, 1)

    def __str__(self) -> str:
        per_call = self.tokens / max(self.calls, 1)
        return f"{self.accepted} of {self.drafted} drafted tokens accepted ({self.rate:.0%}), {per_call:.2f} a call"


class _State(NamedTuple):
    cache: Cache
    drafter: Any
    text: Text


class _Round(NamedTuple):
    """New tokens [B, n + 1] of each row, NONE behind them and in place of what could not be drawn; how many there are,
    and how many were offered and accepted, [B] each."""

    tokens: jax.Array
    size: jax.Array
    offered: jax.Array
    accepted: jax.Array


def stream(
    model: Transformer,
    params: Params,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    drafter: Drafter,
    draft_params: Params | None = None,
    sampling: Sampling = Sampling(),
    stop: Sequence[int] = (),
    seed: int = 0,
    acceptance: Acceptance | None = None,
    prefix: bool = False,
) -> Iterator[list[list[int]]]:
    """Decode prompts: at each yield the new ids of every row, without the stop token, until all stopped.

    Args:
      model, params: of the model.
      prompts: token ids, a list a row.
      max_new_tokens: the most new tokens of a row.
      drafter: what drafts.
      draft_params: its parameters, where it has some of its own; None: those of the model.
      sampling: how to draw a token from the logits.
      stop: ids that end a row.
      seed: of the draws, which are others than plain decoding's, of the same distribution.
      acceptance: counts, added to.
      prefix: whether prompts are read in both directions.

    Raises:
      ValueError: as `generate.stream`, and for a model whose cache cannot be rolled back.
      NonFiniteLogits: naming the first token that could not be drawn."""
    check_rollback(model, "the model")
    inputs, max_length = pad_prompts(prompts, max_new_tokens, model.cfg, prefix=prefix)
    drafter.check(model.cfg, max(map(len, prompts)) + max_new_tokens)
    require(Seed, seed=seed)
    acceptance = Acceptance() if acceptance is None else acceptance
    if max_new_tokens == 0:
        return
    state = _begin(model, drafter, params, draft_params, inputs, jax.random.key(seed), max_length, sampling)
    rows = [_Row(max_new_tokens, tuple(stop)) for _ in prompts]
    yield [row.take([token]) for row, token in zip(rows, np.asarray(state.text.last).tolist(), strict=True)]
    while not all(row.ended for row in rows):
        state, rounds = _rounds(model, drafter, params, draft_params, state, sampling)
        new: list[list[int]] = [[] for _ in rows]
        for tokens, size, offered, accepted in zip(*jax.device_get(rounds), strict=True):
            for i, row in enumerate(rows):
                if not row.ended:
                    new[i] += row.take(tokens[i, : size[i]].tolist())
                    acceptance.drafted += int(offered[i])
                    acceptance.accepted += int(accepted[i])
                    acceptance.tokens += int(size[i])
                    acceptance.calls += 1
        yield new


@dataclasses.dataclass
class _Row:
    """A row with `given` tokens, of which `left` may still come."""

    left: int
    stop: tuple[int, ...]
    given: int = 0
    ended: bool = False

    def take(self, tokens: list[int]) -> list[int]:
        """Those of new `tokens` that belong to the text."""
        tokens = tokens[: self.left]
        end = next((i for i, token in enumerate(tokens) if token in self.stop), len(tokens))
        if NONE in tokens[:end]:
            raise NonFiniteLogits(self.given + tokens.index(NONE) + 1)
        self.left, self.given = self.left - len(tokens), self.given + len(tokens)
        self.ended = end < len(tokens) or self.left == 0
        return tokens[:end]


def check_rollback(model: Transformer, what: str) -> None:
    """Raise ValueError for a model that cannot take tokens back: one with an encoder, a recurrent state, or angles that
    depend on how far a call reads."""
    cfg = model.cfg
    if cfg.has_encoder or not cfg.causal:
        raise ValueError(f"speculative decoding is for decoders: {what} has an encoder")
    cfg.check_generates()
    shapes = jax.eval_shape(partial(model.empty_cache, 1, 1))
    caches = jax.tree.leaves(shapes.layers, is_leaf=lambda a: isinstance(a, TokenCache))
    if not all(isinstance(cache, TokenCache) for cache in caches):
        raise ValueError(f"{what} has a recurrent state, from which drafted tokens cannot be taken back")
    if any(slot.positions.by_call for slot in cfg.slots.values()):
        raise ValueError(f"{what} has dynamic positions, whose angles depend on the tokens read at once")


@partial(jax.jit, static_argnums=(0, 1, 6, 7))
def _begin(
    model: Transformer,
    drafter: Drafter,
    params: Params,
    draft_params: Params | None,
    inputs: Inputs,
    key: jax.Array,
    max_length: int,
    sampling: Sampling,
) -> _State:
    """The prompts read, and the first token drawn as plain decoding draws it; arguments as in `generate.prefill`."""
    B, T = inputs.tokens.shape
    x, cache, _losses, _taps = model.hidden(params, inputs, model.empty_cache(B, max_length, rings=False))
    assert cache is not None and not isinstance(cache.length, int)
    logits = model.logits(params, jnp.take_along_axis(x, cache.length[:, None, None] - 1, axis=1))[:, 0]
    keys, length = row_keys(key, B), cache.length
    counts = Counts.of(inputs.tokens, inputs.segments, logits.shape[-1]) if sampling.counts else None
    last = sampling(logits, jax.vmap(jax.random.fold_in)(keys, length), counts)
    room = max_length + drafter.tokens + 1 - T
    tokens = jnp.pad(inputs.tokens, [(0, 0), (0, max(room, 1))]).at[jnp.arange(B), length].set(last)
    text = Text(tokens, length + 1, last, keys, counts and counts.add(last))
    return _State(cache, drafter.begin(draft_params or params, inputs, max_length, x), text)


@partial(jax.jit, static_argnums=(0, 1, 5), donate_argnums=4)
def _rounds(
    model: Transformer,
    drafter: Drafter,
    params: Params,
    draft_params: Params | None,
    state: _State,
    sampling: Sampling,
) -> tuple[_State, _Round]:
    """ROUNDS rounds of drafting and verifying; arguments as in `stream`."""

    def body(state: _State, _: None) -> tuple[_State, _Round]:
        text = state.text._replace(keys=jax.vmap(jax.random.fold_in)(state.text.keys, state.text.length))
        draft, own = drafter.draft(draft_params or params, state.drafter, text, sampling, model.cfg.vocab)
        read = jnp.concatenate([text.last[:, None], draft.tokens], axis=1)
        x, cache, _losses, _taps = model.hidden(params, Inputs(read), state.cache)
        assert cache is not None
        target = _distributions(model.logits(params, x), draft.tokens, sampling, text.counts)
        accepted, last = verify(target, draft, text.keys)
        after, tokens = _append(text, draft.tokens, accepted, last)
        cache = dataclasses.replace(cache, length=after.length - 1)  # the newest is not in it
        own = drafter.roll_back(own, after.length - 1, x)
        count = jnp.where(draft.offered, drafter.tokens, 0), jnp.where(draft.offered, accepted, 0)
        return _State(cache, own, after._replace(keys=state.text.keys)), _Round(tokens, accepted + 1, *count)

    return jax.lax.scan(body, state, None, length=ROUNDS)


def _append(text: Text, drafted: jax.Array, accepted: jax.Array, last: jax.Array) -> tuple[Text, jax.Array]:
    """The text with the first `accepted` [B] of the drafted [B, n] and then `last` [B]; and these tokens [B, n + 1]."""
    B, n = drafted.shape
    at, rows = jnp.arange(n + 1), jnp.arange(B)[:, None]
    real = at <= accepted[:, None]
    tokens = jnp.where(at < accepted[:, None], jnp.pad(drafted, [(0, 0), (0, 1)]), last[:, None])
    places = jnp.where(real, text.length[:, None] + at, text.tokens.shape[1])  # beyond the end they are dropped
    counts = text.counts and text.counts._replace(new=text.counts.new.at[rows, tokens].add(real))
    written, length = text.tokens.at[rows, places].set(tokens), text.length + accepted + 1
    return Text(written, length, last, text.keys, counts), jnp.where(real, tokens, NONE)


def _distributions(logits: jax.Array, drafted: jax.Array, sampling: Sampling, counts: Counts | None) -> jax.Array:
    """The distributions [B, n + 1, V] of the tokens after logits [B, n + 1, V], each counting those drafted before."""

    def body(counts: Counts | None, at: tuple[jax.Array, jax.Array]) -> tuple[Counts | None, jax.Array]:
        logits, token = at
        return counts and counts.add(token), distribution(logits, sampling, counts)

    tokens = jnp.pad(drafted, [(0, 0), (0, 1)]).T
    return jax.lax.scan(body, counts, (logits.swapaxes(0, 1), tokens))[1].swapaxes(0, 1)


def distribution(logits: jax.Array, sampling: Sampling, counts: Counts | None) -> jax.Array:
    """The probabilities [B, V] with which `sampling` draws after logits [B, V]: NaN where it draws nothing."""
    logits = sampling.process(logits, counts)
    most = jnp.max(logits, axis=-1, keepdims=True)
    largest = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    return jnp.where(jnp.isfinite(most), largest if sampling.greedy else jax.nn.softmax(logits), jnp.nan)


def verify(target: jax.Array, draft: Draft, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How many of the drafted tokens are accepted, [B], and the token after them, [B] (NONE where there is none):
    algorithm 1 of 2211.17192, with the model's distributions `target` [B, n + 1, V] and a key a row."""
    n = draft.tokens.shape[1]
    p, q = (jnp.take_along_axis(a[:, :n], draft.tokens[..., None], axis=2)[..., 0] for a in (target, draft.probs))
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (n,)))(fold(keys, n + 1))
    accepted = jnp.cumprod(uniform * q < p, axis=1).sum(1)
    probs = jnp.pad(draft.probs, [(0, 0), (0, 1), (0, 0)])
    p, q = (jnp.take_along_axis(a, accepted[:, None, None], axis=1)[:, 0] for a in (target, probs))
    rest = jnp.maximum(p - q, 0)
    rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, p)  # the two are alike but for rounding
    return accepted, pick(rest, fold(keys, n + 2))


def pick(weights: jax.Array, keys: jax.Array) -> jax.Array:
    """A token of each row [B] in proportion to weights [B, V], with a key a row; NONE where they are NaN or zeros."""
    most = jnp.max(weights, axis=-1)
    return jnp.where(most > 0, draw(jnp.log(weights), keys), NONE)


def fold(keys: jax.Array, i: jax.Array | int) -> jax.Array:
    """The keys [B] of the i-th draw."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)


def _with_vocab(logits: jax.Array, vocab: int) -> jax.Array:
    """Logits [B, V'] for `vocab` ids, of which those from V' on have no probability."""
    more = max(0, vocab - logits.shape[-1])
    return jnp.pad(logits, [(0, 0), (0, more)], constant_values=-jnp.inf)[:, :vocab]
