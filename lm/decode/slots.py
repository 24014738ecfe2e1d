"""The rows of a batch that requests come to and go from: what is on the device for each, and what changes it.

All arrays keep their shapes and every option is an array, so that each program is compiled once. A row's results are
the same bits whatever the other rows hold: no operation reads across rows, and at a fixed shape XLA's products give
each row the same bits (tests/decode/test_engine.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.decode import filters
from lm.decode.filters import Counts
from lm.decode.sampling import NONE, Sampling, draw
from lm.model.cache import Cache
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer

TOP = 20  # alternatives of a token whose log-probabilities are given
SCORED = 32  # tokens of a prompt whose logits are computed at a time
TOGETHER = 4  # rows that get their first tokens at a time
STRIDE = 8  # tokens of a row that are decoded at a time where nobody waits for each


class Options(NamedTuple):
    """The fields of a Sampling as arrays [S, 1], and what is given besides the token: the log-probabilities of `TOP`
    alternatives (`top`), before the logits are processed or after it (`processed`)."""

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    typical_p: Any
    repetition_penalty: Any
    presence_penalty: Any
    frequency_penalty: Any
    biased: Any
    top: Any
    processed: Any

    @classmethod
    def of(cls, sampling: Sampling, top: bool = False, processed: bool = False) -> "Options":
        """One row, [1, 1] each."""
        values = {name: getattr(sampling, name, False) for name in cls._fields}
        values |= dict(biased=bool(sampling.logit_bias or sampling.vocab_size), top=top, processed=processed)
        kinds = {"top_k": np.int32, "biased": np.bool_, "top": np.bool_, "processed": np.bool_}
        return cls(*(np.full((1, 1), value, kinds.get(name, np.float32)) for name, value in values.items()))


class Drawn(NamedTuple):
    """The newest token of each row [S], its log-probability, and the ids and log-probabilities [S, TOP] of the
    likeliest (zeros where no row asks for them)."""

    token: jax.Array
    logprob: jax.Array
    top: jax.Array
    top_logprobs: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """What each of S rows holds: its cache, its newest token `last` [S] (not yet in the cache), its key, the counts of
    its tokens [S, V], its options, and a `bias` [S, V] on its logits."""

    cache: Cache
    last: jax.Array
    keys: jax.Array
    counts: Counts
    options: Options
    bias: jax.Array

    def at_length(self, row: jax.Array, length: jax.Array | int, layers: Any) -> "Slots":
        """With other `layers` of the cache, in which a row has `length` tokens."""
        lengths = jnp.asarray(self.cache.length).at[row].set(length)
        return replace(self, cache=replace(self.cache, layers=layers, length=lengths))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))  # so that no two arrays are one: each is donated
def empty_slots(model: Transformer, slots: int, length: int, vocab: int) -> Slots:
    """S rows of nothing, with room for `length` tokens each."""
    cache = replace(model.empty_cache(slots, length), length=jnp.zeros(slots, jnp.int32))
    zeros = jnp.zeros((slots, vocab), jnp.int32)
    options = Options(*(jnp.broadcast_to(a, (slots, 1)) for a in Options.of(Sampling())))
    keys = jax.random.split(jax.random.key(0), slots)
    return Slots(cache, zeros[:, 0], keys, Counts(zeros, zeros), options, jnp.zeros((slots, vocab)))


@partial(jax.jit, donate_argnums=0)
def begin(
    slots: Slots,
    row: jax.Array,
    options: Options,
    bias: jax.Array,
    prompt: jax.Array,
    seed: jax.Array,
    index: jax.Array,
) -> Slots:
    """`slots` with an empty row for a request.

    Args:
      slots: donated.
      row: its index.
      options: of the request, [1, 1] each.
      bias: [1, V].
      prompt: how often each token occurs in its prompt, [1, V].
      seed, index: of its draws; texts of one prompt and seed have indices 0, 1, ..."""
    put = partial(_put, row=row)
    layers = jax.tree.map(lambda a: _put(a, jnp.zeros_like(_row(a, row)), row), slots.cache.layers)
    counts = Counts(put(slots.counts.prompt, prompt), put(slots.counts.new, jnp.zeros_like(prompt)))
    return replace(
        slots.at_length(row, 0, layers),
        keys=slots.keys.at[row].set(jax.random.fold_in(jax.random.key(seed), index)),
        counts=counts,
        options=Options(*map(put, slots.options, options)),
        bias=put(slots.bias, bias),
    )


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(
    model: Transformer,
    params: Params,
    slots: Slots,
    rows: jax.Array,
    tokens: jax.Array,
    count: jax.Array,
    scored: jax.Array,
    images: jax.Array | None = None,
) -> tuple[Slots, jax.Array, Drawn]:
    """`slots` with more of the prompts of R rows read, the hidden states [TOGETHER, D] of the last tokens that were
    (those of the rows, again and again), and the log-probabilities of the prompts' tokens that follow, [R * C].

    Args:
      model, params: of the model.
      slots: donated.
      rows: their indices [R]; one may come several times, as all that is of it then does.
      tokens: of each prompt behind what was read, and the one after them, [R, C + 1].
      count: how many of a row's first C are no padding, [R].
      scored: whether log-probabilities of the prompts are asked for; else they are zeros.
      images: whose soft tokens these are, [R, M, size, size, 3]; None for text."""
    following, tokens = tokens[:, 1:].reshape(-1), tokens[:, :-1]
    segments = (jnp.arange(tokens.shape[1]) < count[:, None]).astype(jnp.int32)
    inputs = Inputs(tokens, segments=segments, images=images)
    x, cache, *_ = model.hidden(params, inputs, _rows(slots.cache, rows))
    scores = _scores(model, params, x.reshape(-1, x.shape[-1]), following, scored)
    of = jnp.arange(TOGETHER) % len(rows)
    last = x[of, count[of] - 1]
    return replace(slots, cache=_put_rows(slots.cache, cache, rows)), last, scores


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def first_tokens(
    model: Transformer,
    params: Params,
    slots: Slots,
    rows: jax.Array,
    x: jax.Array,
    of: jax.Array,
    allowed: jax.Array,
) -> tuple[Slots, Drawn]:
    """`slots` with the first new token of rows whose prompts are read, always of as many: one program for whatever is
    read together, and so the same bits.

    Args:
      model, params: of the model.
      slots: donated.
      rows: their indices [TOGETHER], as in `prefill`.
      x: the hidden states of the prompts' last tokens, [TOGETHER, D].
      of: the row of x for each, [TOGETHER].
      allowed: what may follow, as in `choose`, [TOGETHER, ceil(V / 32)]."""
    others = replace(slots, cache=replace(slots.cache, layers={}))  # tokens stay where they are
    own = _rows(others, rows)
    after, drawn = _next(model, params, own, x[of, None], own.cache, allowed)
    after = _put_rows(others, after, rows)
    return replace(after, cache=replace(after.cache, layers=slots.cache.layers)), drawn


def _scores(model: Transformer, params: Params, x: jax.Array, following: jax.Array, scored: jax.Array) -> Drawn:
    """The model's own log-probabilities of the tokens `following` [N] after hidden states x [N, D], where `scored`."""

    def some(x: jax.Array, token: jax.Array) -> Drawn:
        logprobs = jax.nn.log_softmax(model.logits(params, x[None])[0].astype(jnp.float32))
        own = jnp.take_along_axis(logprobs, token[:, None], axis=1)[:, 0]
        return Drawn(token, own, *_likeliest(logprobs))

    def every() -> Drawn:
        blocks = [a.reshape(-1, SCORED, *a.shape[1:]) for a in (x, following)]
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.lax.map(lambda block: some(*block), blocks))

    return jax.lax.cond(scored, every, lambda: _zeros(every))


def _likeliest(logprobs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The ids and values [S, TOP] of the largest of logprobs [S, V]."""
    values, ids = jax.lax.top_k(logprobs, min(TOP, logprobs.shape[-1]))
    return ids.astype(jnp.int32), values


def _zeros(function: Callable[[], Any]) -> Any:
    """Zeros of what a function gives."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(function))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    model: Transformer, params: Params, slots: Slots, active: jax.Array, allowed: jax.Array, count: jax.Array
) -> tuple[Slots, Drawn]:
    """`count` more tokens of each row that is `active` [S], up to STRIDE, of those `allowed` as in `choose`; the others
    stay as they are. What was drawn is [STRIDE, S], of which the first `count` mean something: one program for any
    number, and so the same bits."""

    def one(slots: Slots) -> tuple[Slots, Drawn]:
        inputs = Inputs(slots.last[:, None], segments=active.astype(jnp.int32)[:, None])
        x, cache, *_ = model.hidden(params, inputs, slots.cache)
        after, drawn = _next(model, params, slots, x, cache, allowed)
        keep = lambda new, old: jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: E731
        counts = slots.counts._replace(new=keep(after.counts.new, slots.counts.new))
        return replace(after, last=keep(after.last, slots.last), counts=counts), drawn

    def more(i: jax.Array, state: tuple[Slots, Drawn]) -> tuple[Slots, Drawn]:
        slots, drawn = one(state[0])
        return slots, jax.tree.map(lambda every, new: every.at[i].set(new), state[1], drawn)

    room = jax.tree.map(lambda a: jnp.zeros((STRIDE, *a.shape), a.dtype), jax.eval_shape(one, slots)[1])
    return jax.lax.fori_loop(0, count, more, (slots, room))


def _next(
    model: Transformer, params: Params, slots: Slots, x: jax.Array, cache: Any, allowed: jax.Array
) -> tuple[Slots, Drawn]:
    """The slots with the token that follows from hidden states x [S, 1, D] and the cache after them."""
    raw = model.logits(params, x)[:, 0]
    token, processed = choose(raw, slots, jax.vmap(jax.random.fold_in)(slots.keys, cache.length), allowed)
    options = slots.options
    logprobs = jax.nn.log_softmax(jnp.where(options.processed, processed, raw))
    own = jnp.take_along_axis(logprobs, jnp.maximum(token, 0)[:, None], axis=1)[:, 0]
    best = partial(_likeliest, logprobs)
    drawn = Drawn(token, own, *jax.lax.cond(jnp.any(options.top), best, lambda: _zeros(best)))
    return replace(slots, cache=cache, last=token, counts=slots.counts.add(token)), drawn


def choose(logits: jax.Array, slots: Slots, keys: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(token [S], the logits [S, V] whose softmax it was drawn from) for logits [S, V]: what Sampling does, with
    options of each row's own, among the tokens `allowed`: a bit each, uint32 [S, ceil(V / 32)]. What no row asks for is
    not computed."""
    o, counts, biases = slots.options, slots.counts, slots.bias

    def where(asked: Any, change: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        return jax.lax.cond(jnp.any(asked), change, lambda x: x, x)

    x = where(o.repetition_penalty != 1, lambda x: filters.repetition_penalty(x, counts, o.repetition_penalty), logits)
    x = where(
        (o.presence_penalty != 0) | (o.frequency_penalty != 0),
        lambda x: filters.presence_and_frequency_penalty(x, counts, o.presence_penalty, o.frequency_penalty),
        x,
    )
    x = where(o.biased, lambda x: x + biases, x)
    x = where(~allowed != 0, lambda x: jnp.where(_bits(allowed, x.shape[-1]), x, -jnp.inf), x)
    most, greedy = jnp.max(x, axis=-1, keepdims=True), (o.temperature == 0) | (o.top_k == 1)
    largest = jnp.argmax(x, axis=-1).astype(jnp.int32)
    y = jnp.where(greedy, x, (x - most) / jnp.where(greedy, 1, o.temperature))
    y = where((o.top_k > 0) & ~greedy, lambda y: jnp.where(greedy, y, filters.top_k(y, o.top_k)), y)
    y = where((o.top_p < 1) & ~greedy, lambda y: jnp.where(greedy, y, filters.top_p(y, o.top_p)), y)
    y = where((o.min_p > 0) & ~greedy, lambda y: jnp.where(greedy, y, filters.min_p(y, o.min_p)), y)
    y = where((o.typical_p < 1) & ~greedy, lambda y: jnp.where(greedy, y, filters.typical_p(y, o.typical_p)), y)
    drawn = jax.lax.cond(jnp.all(greedy), lambda: largest, lambda: draw(y, keys))
    token = jnp.where(greedy[:, 0], largest, drawn)
    return jnp.where(jnp.isfinite(most[:, 0]), token, NONE), y


def _bits(words: jax.Array, count: int) -> jax.Array:
    """The first `count` bits [S, count] of words [S, W], the lowest of each word first."""
    bits = words[..., None] >> jnp.arange(32, dtype=jnp.uint32) & 1
    return bits.reshape(words.shape[0], -1)[:, :count] == 1


# ---------------------------------------------------------------- chunks of prompts that requests share


@partial(jax.jit, static_argnums=3)
def save(slots: Slots, row: jax.Array, start: jax.Array, count: int) -> Any:
    """The keys and values of `count` tokens of a row from `start` on."""
    return jax.tree.map(
        lambda a: jax.lax.dynamic_slice_in_dim(_row(a, row), start, count, a.ndim - 2), slots.cache.layers
    )


@partial(jax.jit, donate_argnums=0)
def restore(slots: Slots, row: jax.Array, start: jax.Array, saved: Any) -> Slots:
    """`slots` with saved keys and values at a row's tokens from `start` on, which is then its length."""

    def put(a: jax.Array, new: jax.Array) -> jax.Array:
        own = jax.lax.dynamic_update_slice_in_dim(_row(a, row), new, start, a.ndim - 2)
        return _put(a, own, row)

    layers = jax.tree.map(put, slots.cache.layers, saved)
    end = start + jax.tree.leaves(saved)[0].shape[-2]
    return slots.at_length(row, end, layers)


def _row(a: jax.Array, row: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(a, row, 1, 0)


def _put(a: jax.Array, new: jax.Array, row: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(a, new, row, 0)


def _rows(tree: Any, rows: jax.Array) -> Any:
    """The rows [R] of each array, put one by one: XLA's CPU compiler joins or gathers them number by number."""

    def take(a: jax.Array) -> jax.Array:
        own = jnp.zeros((len(rows), *a.shape[1:]), a.dtype)
        for i, row in enumerate(rows):
            own = _put(own, _row(a, row), jnp.int32(i))
        return own

    return jax.tree.map(take, tree)


def _put_rows(tree: Any, new: Any, rows: jax.Array) -> Any:
    def put(a: jax.Array, new: jax.Array) -> jax.Array:
        for i, row in enumerate(rows):
            a = _put(a, new[i : i + 1], row)
        return a

    return jax.tree.map(put, tree, new)
