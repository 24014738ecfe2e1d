"""A model drafts for itself, by its modules of multi-token prediction (lm/model/multi_token.py).

The first drafted token is that of the first module at the text's newest token, beside the state that the model had one
place before; the second that of the second module, at the first drafted token; and so on. Behind the last module it is
that one again, which then reads its own state. (DeepSeek-V3, 2412.19437, section 5.4.3: one module, one token.)

What verification computes is what the modules read next: the model itself is read no more often than under another
drafter. The cache of module k lacks the first k places of a text, which are in no module: place i of it is the text's
i + k. A round reads again what the round before had drafted, by then with the tokens that stayed.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.bounds import Count, check
from lm.decode.filters import Counts
from lm.decode.sampling import Sampling
from lm.decode.speculative import Draft, Text, distribution, fold, pick
from lm.model.cache import Cache
from lm.model.config import ModelConfig
from lm.model.inputs import Inputs
from lm.model.multi_token import final_state, layer_config, run_module
from lm.model.transformer import Params, Transformer


class _State(NamedTuple):
    """Texts of `length` [B] tokens that modules have read: the `caches` of the modules; the model's residual stream `x`
    [B, n + 1, D] from the place before that length on; and for each module but the first what the one before it says,
    [B, D], at the last place whose token was known."""

    caches: tuple[Cache, ...]
    length: jax.Array
    x: jax.Array
    kept: tuple[jax.Array, ...]


@dataclass
class _Drafted:
    """The `tokens` [B] drafted so far, and the distributions `probs` [B, V] of each; `counts` has them."""

    sampling: Sampling
    keys: jax.Array
    counts: Counts | None
    tokens: list[jax.Array] = field(default_factory=list)
    probs: list[jax.Array] = field(default_factory=list)

    def draw(self, logits: jax.Array) -> None:
        """Draft one more, after logits [B, V]."""
        probs = jnp.nan_to_num(distribution(logits, self.sampling, self.counts))  # zeros are never kept
        token = jnp.maximum(pick(probs, fold(self.keys, len(self.tokens))), 0)
        self.counts = self.counts and self.counts.add(token)
        self.tokens.append(token)
        self.probs.append(probs)


@dataclass(frozen=True)
class SelfDraft:
    """Drafts `tokens` tokens by the modules of `model`, which is the one that decodes."""

    model: Transformer
    tokens: Count = 1

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def of(cls, model: Transformer, tokens: int | None = None) -> "SelfDraft":
        """With `tokens`, or one a module of the model. Raises ValueError where it has none."""
        _check_modules(model.cfg)
        assert model.cfg.multi_token
        return cls(model, model.cfg.multi_token.depth if tokens is None else tokens)

    def check(self, cfg: ModelConfig, length: int) -> None:
        _check_modules(cfg)

    @property
    def modules(self) -> range:
        """The numbers of the modules that draft."""
        assert self.model.cfg.multi_token
        return range(1, min(self.tokens, self.model.cfg.multi_token.depth) + 1)

    def begin(self, params: Params, inputs: Inputs, max_length: int, x: jax.Array) -> _State:
        (B, T), rows = inputs.tokens.shape, jnp.arange(len(x))
        length = jnp.full(B, T) if inputs.segments is None else (inputs.segments > 0).sum(1)
        before, caches, kept = self._final(params, 0, x), [], []
        for k in self.modules:
            if k > 1:
                kept.append(before[rows, jnp.maximum(length - k, 0)])
            tokens = jnp.pad(inputs.tokens, [(0, 0), (0, k)])[:, k:]
            real = jnp.arange(T) < (length - k)[:, None]
            read = Inputs(tokens, jnp.broadcast_to(jnp.arange(T) + k, (B, T)), real.astype(jnp.int32))
            said, cache = self._module(params, k, read, before, self._empty_cache(B, max_length))
            before = self._final(params, k, said)
            caches.append(replace(cache, length=length - k))
        newest = jnp.zeros((B, self.tokens + 1, x.shape[-1]), x.dtype).at[:, 0].set(x[rows, length - 1])
        return _State(tuple(caches), length, newest, tuple(kept))

    def draft(self, params: Params, state: _State, text: Text, sampling: Sampling, vocab: int) -> tuple[Draft, _State]:
        rows, accepted = jnp.arange(len(text.last)), text.length - state.length - 1
        places = state.length[:, None] + jnp.arange(self.tokens + 1)  # of the tokens that are new since
        tokens = jnp.take_along_axis(text.tokens, jnp.minimum(places, text.tokens.shape[1] - 1), axis=1)
        before, drafted = self._final(params, 0, state.x), _Drafted(sampling, text.keys, text.counts)
        caches, kept = list[Cache](), list[jax.Array]()
        for k in self.modules:
            last = accepted + k - 1  # the place, among those read here, behind which this module drafts
            if k > 1:
                before = jnp.concatenate([state.kept[k - 2][:, None], before], axis=1)
                tokens = jnp.pad(tokens, [(0, 0), (0, 1)]).at[rows, last].set(drafted.tokens[-1])
            at = jnp.arange(tokens.shape[1])
            real = (at <= last[:, None]) & (state.length[:, None] - k + at >= 0)
            read = Inputs(tokens, state.length[:, None] + at, real.astype(jnp.int32))
            said, cache = self._module(params, k, read, before, state.caches[k - 1])
            before = self._final(params, k, said)
            kept.append(before[rows, accepted])
            caches.append(replace(cache, length=text.length - k))
            drafted.draw(self._logits(params, k, said[rows, last][:, None]))
        self._draft_again(params, drafted, before[rows, last][:, None], replace(caches[-1], length=text.length - 1))
        draft = Draft(jnp.stack(drafted.tokens, 1), jnp.stack(drafted.probs, 1), jnp.ones(len(rows), bool))
        return draft, _State(tuple(caches), text.length, state.x, tuple(kept[:-1]))

    def _draft_again(self, params: Params, drafted: "_Drafted", before: jax.Array, cache: Cache) -> None:
        """Add what the last module drafts behind its own draft, of its own state `before` [B, 1, D]; what it keeps in
        its `cache` is dropped."""
        k = self.modules[-1]
        for _ in range(k, self.tokens):
            read = Inputs(drafted.tokens[-1][:, None], jnp.asarray(cache.length)[:, None] + k)
            said, cache = self._module(params, k, read, before, cache)
            before = self._final(params, k, said)
            drafted.draw(self._logits(params, k, said))

    def roll_back(self, state: _State, length: jax.Array, x: jax.Array) -> _State:
        return state._replace(x=x)  # what was drafted is read again

    def _empty_cache(self, rows: int, length: int) -> Cache:
        return Transformer(layer_config(self.model.cfg), self.model.compute).empty_cache(rows, length, rings=False)

    def _module(
        self, params: Params, k: int, inputs: Inputs, before: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """What module k says of the inputs, [B, T, D], beside the states `before`; and its cache with them."""
        cfg, compute = self.model.cfg, self.model.compute
        layer = Transformer(layer_config(cfg), compute)
        embedded, shared = layer.begin({"stem": params["stem"]}, inputs, cache)
        module = params["multi_token"][str(k)]
        x, layers, _ = run_module(cfg, compute, module, embedded, before, shared, cache.layers)
        length = jnp.broadcast_to(jnp.asarray(cache.length, jnp.int32), inputs.tokens.shape[:1])
        return x, replace(cache, layers=layers, length=length + inputs.tokens.shape[1])

    def _head(self, params: Params, k: int) -> Params:
        return params["multi_token"][str(k)]["head"] if k else params["head"]

    def _final(self, params: Params, k: int, x: jax.Array) -> jax.Array:
        """x [B, T, D] of module k, or of the model (0), as the next one reads it."""
        return final_state(self.model.cfg, self._head(params, k), x)

    def _logits(self, params: Params, k: int, x: jax.Array) -> jax.Array:
        """The logits [B, V] by which module k drafts, of x [B, 1, D]."""
        heads = {**params, "head": {**params["head"], **self._head(params, k)}}
        return self.model.logits(heads, x)[:, 0]


def _check_modules(cfg: ModelConfig) -> None:
    if not cfg.multi_token:
        raise ValueError(
            "the model cannot draft for itself: it has no modules of multi-token prediction (model.multi_token)"
        )
