"""Completions of a batch of prompts in one compiled program, with what a method that learns from them needs to know.

The engine asks the host after every token, which for models of a few million parameters takes most of its time
(NOTES.md). Here prompts are read together and tokens drawn in one loop, which ends with the last row. The parameters
are those of training, as they are sharded, and are arguments: an update needs neither a copy of them nor a compilation.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.decode.filters import Counts
from lm.decode.layout import Decoder, for_one_cpu, unstack
from lm.decode.sampling import NONE, Sampling, row_keys
from lm.model.adapted import Adapted, merged
from lm.model.cache import Cache
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.sharding.rules import MESH_AXES
from lm.sharding.tracing import axis_size


class Completions(NamedTuple):
    """The tokens of each row, [B, N], up to and with its stop token, and zeros after it.

    `logprobs` [B, N] are those of the distribution that they were drawn from, after the whole chain of the sampling;
    `policy_logprobs` [B, N] those of the model at its temperature, before anything was left out or penalised: they
    differ by the kept mass. `lengths` [B] in tokens, 0 where there was no prompt; `stopped` [B], whether by a stop
    token; `finite`, whether every token could be drawn."""

    tokens: jax.Array
    logprobs: jax.Array
    policy_logprobs: jax.Array
    lengths: jax.Array
    stopped: jax.Array
    finite: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Decoding:
    """A batch under way: `count` tokens are drawn, the newest `last` [B] is not yet in the cache. `done`, `lengths` [B]
    and `arrays`, each [B, N], are what Completions is made of, `counts` what the sampling reads."""

    count: jax.Array
    cache: Cache
    last: jax.Array
    done: jax.Array
    lengths: jax.Array
    arrays: tuple[jax.Array, jax.Array, jax.Array]
    counts: Counts | None
    finite: jax.Array

    def add(self, sampling: Sampling, stop: tuple[int, ...], keys: jax.Array, logits: jax.Array) -> "_Decoding":
        """With one token more of each row that is not done, from logits [B, V]."""
        raw, live = logits.astype(jnp.float32), ~self.done
        chain = sampling.process(raw, self.counts)
        token = sampling.choose(chain, jax.vmap(jax.random.fold_in)(keys, jnp.asarray(self.cache.length)))
        policy = raw if sampling.greedy else raw / sampling.temperature
        chosen = jnp.maximum(token, 0)[:, None]
        logprobs = [jnp.take_along_axis(jax.nn.log_softmax(x), chosen, axis=1) for x in (chain, policy)]
        new = (chosen, *logprobs)
        at = (0, self.count)
        arrays = tuple(
            jax.lax.dynamic_update_slice(old, jnp.where(live[:, None], a, 0), at)
            for old, a in zip(self.arrays, new, strict=True)
        )
        return replace(
            self,
            count=self.count + 1,
            last=chosen[:, 0],
            done=self.done | jnp.isin(token, jnp.asarray(stop, jnp.int32)),
            lengths=self.lengths + live,
            arrays=arrays,  # type: ignore[arg-type]
            counts=self.counts and self.counts.add(token),
            finite=self.finite & jnp.where(live, token != NONE, True).all(),
        )


@partial(jax.jit, static_argnums=(0, 5, 6, 7))
def complete(
    model: Transformer,
    params: Params,
    tokens: jax.Array,
    segments: jax.Array,
    key: jax.Array,
    max_new_tokens: int,
    sampling: Sampling,
    stop: tuple[int, ...],
) -> Completions:
    """Continue each row by up to `max_new_tokens`, to one of `stop`.

    Args:
      model, params: of the model; adapters are merged once.
      tokens, segments: prompts [B, P], padding of segment 0 on the right; a row of padding alone is not continued.
      key: of the draws; each row's own follows from it and its index.
      max_new_tokens, sampling, stop: how long, how to draw, and the ids that end a row."""
    (B, P), (model, params) = tokens.shape, _laid_out(model, params)
    x, cache, *_ = model.hidden(params, Inputs(tokens, segments=segments), model.empty_cache(B, P + max_new_tokens))
    assert cache is not None
    last = jnp.maximum(jnp.asarray(cache.length) - 1, 0)
    logits = model.logits(params, jnp.take_along_axis(x, last[:, None, None], axis=1))[:, 0]
    counts = Counts.of(tokens, segments, logits.shape[-1]) if sampling.counts else None
    begun, zeros = (segments > 0).any(1), jnp.zeros((B, max_new_tokens))
    arrays = zeros.astype(jnp.int32), zeros, zeros
    state = _Decoding(
        jnp.int32(0), cache, tokens[:, 0], ~begun, jnp.zeros(B, jnp.int32), arrays, counts, jnp.bool_(True)
    )
    keys = row_keys(key, B)

    def body(state: _Decoding) -> _Decoding:
        x, cache, *_ = model.hidden(params, Inputs(state.last[:, None]), state.cache)
        assert cache is not None
        return replace(state, cache=cache).add(sampling, stop, keys, model.logits(params, x)[:, 0])

    under_way = lambda state: (state.count < max_new_tokens) & ~state.done.all()  # noqa: E731
    end = jax.lax.while_loop(under_way, body, state.add(sampling, stop, keys, logits))
    return Completions(*end.arrays, end.lengths, end.done & begun, end.finite)


def _laid_out(model: Transformer, params: Params) -> Decoder:
    """The model as it is read token by token: adapters merged; on one CPU laid out for that, before the loop, and
    elsewhere, where layers are unrolled, each layer's parameters apart."""
    params = jax.tree.map(merged, params, is_leaf=lambda x: isinstance(x, Adapted))
    if model.compute.backend == "cpu" and axis_size(*MESH_AXES) == 1:
        return for_one_cpu(model, params)
    return Decoder(model, unstack(params) if model.compute.unroll == 0 else params)
