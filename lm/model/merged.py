"""Attention that reads a row's own tokens and the encoder's output at once, in one softmax (T5Gemma 2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.attention import Attention, KVCache
from lm.model.compute import Compute
from lm.model.inputs import EncoderOutput
from lm.model.mixer import LayerInputs, Mixer
from lm.model.positions import Positions
from lm.model.scoring import MINUS_INFINITY, Part, Scoring, Span, cached_before, heads_last, product
from lm.model.taps import CROSS, tap, watches_pattern


@dataclass(frozen=True)
class MergedAttention(Attention):
    """`Attention` of a decoder whose queries read the encoder's output beside their own tokens, in one softmax. Keys
    and values of it are made by the weights and norms of the row's own, without positions and in no window.
    In a model without an encoder it is `Attention`. All logits are held at once."""

    cross = Mixer.cross

    @property
    def merges_encoder(self) -> bool:
        return True

    def _read(
        self,
        module: nn.Module,
        x: jax.Array,
        inputs: LayerInputs,
        positions: Positions,
        cache: KVCache | None,
        compute: Compute,
    ) -> tuple[jax.Array, KVCache | None]:
        if inputs.encoder is None:
            return super()._read(module, x, inputs, positions, cache, compute)
        T, seen = x.shape[1], inputs.encoder
        (q,) = self._project(module, ("query",), x, compute)
        read = x if seen.x is None else jnp.concatenate([x, seen.x.astype(x.dtype)], axis=1)
        k, v = self._project(module, ("key", "value"), read, compute)
        q, k = self.qk_norm(module, "query_norm", q), self.qk_norm(module, "key_norm", k)
        q, own = positions.rotate(q, inputs.table, compute), positions.rotate(k[:, :T], inputs.table, compute)
        theirs, cache = _of_encoder((k[:, T:], v[:, T:]), seen, cache)
        q = tap(module, "attn_query", q) * (self.scale or self.head_dim**-0.5)
        names = ("attn_key", "attn_value", f"{CROSS}attn_key", f"{CROSS}attn_value")
        arrays = [tap(module, n, a) for n, a in zip(names, (own, v[:, :T], *theirs), strict=True)]
        scoring = Scoring(inputs.mask, inputs.bias, self.softcap)
        mine, scoring, cache = _own((arrays[0], arrays[1]), scoring, cache)
        scorings = scoring, Scoring(seen.mask, softcap=self.softcap)
        parts = mine, _heads_first((arrays[2], arrays[3]))
        y = cached_before(q, *parts, scorings, compute)
        return tap(module, "attn_head", _patterns(module, y, q, parts, scorings, compute)), cache


def _of_encoder(made: Part, seen: EncoderOutput, cache: KVCache | None) -> tuple[Part, KVCache | None]:
    """Keys and values of the encoder's output, those `made` in this call or of an earlier one, and the cache with
    them."""
    if seen.x is None:
        assert cache is not None and cache.cross_k is not None and cache.cross_v is not None
        return (cache.cross_k, cache.cross_v), cache
    return made, None if cache is None else replace(cache, cross_k=made[0], cross_v=made[1])


def _own(new: Part, scoring: Scoring, cache: KVCache | None) -> tuple[Part, Scoring, KVCache | None]:
    """Keys and values of the row's own tokens, heads first, behind those in the cache; the first tokens of all rows
    read no cache."""
    if cache is None or isinstance(scoring.mask.offset, int):
        return _heads_first(new), scoring, None if cache is None else cache.write(new, scoring.mask)
    arrays, scoring, cache = cache.read(new, scoring)
    return (arrays[0], arrays[1]), scoring, cache


def _heads_first(part: Part) -> Part:
    return part[0].transpose(0, 2, 1, 3), part[1].transpose(0, 2, 1, 3)


def _patterns(
    module: nn.Module,
    y: jax.Array,
    q: jax.Array,
    parts: Sequence[Part],
    scorings: Sequence[Scoring],
    compute: Compute,
) -> jax.Array:
    """What queries read, y [B, T, N, H], plus what edits of logits and pattern change in it, those of the row's own
    tokens and of the encoder's; the two patterns of a query sum to one. As lm.model.taps.tap_pattern otherwise."""
    prefixes = ("", CROSS)
    if not any(watched for prefix in prefixes for watched in watches_pattern(module, prefix)):
        return y
    (B, T, N, H), K = q.shape, parts[0][0].shape[1]
    grouped = q.astype(compute.matmul).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    before, after = [], []
    for prefix, (k, _), scoring in zip(prefixes, parts, scorings, strict=True):
        rows, columns = Span(0, T), Span(0, k.shape[2])
        logits = scoring(grouped, k.astype(compute.matmul), rows, columns, T).reshape(B, N, T, -1)
        allowed = scoring.mask.allowed(rows, columns)
        edited = tap(module, f"{prefix}attn_logits", logits)
        before.append(logits)
        after.append(edited if allowed is None else jnp.where(allowed[:, None], edited, MINUS_INFINITY))
    for prefix, old, new, (_, v) in zip(prefixes, _softmax(before), _softmax(after), parts, strict=True):
        change = (tap(module, f"{prefix}attn_pattern", new) - old).reshape(B, K, N // K, T, -1).astype(v.dtype)
        y = y + heads_last(product("bkgts,bksh->bkgth", change, v), compute).astype(y.dtype)
    return y


def _softmax(logits: Sequence[jax.Array]) -> list[jax.Array]:
    """The softmax of several arrays [B, N, T, S] side by side, apart again."""
    every = jax.nn.softmax(jnp.concatenate(logits, axis=-1), axis=-1)
    return jnp.split(every, [logits[0].shape[-1]], axis=-1)
