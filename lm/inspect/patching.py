"""Activation patching: how much of what a model says follows from one place, by giving it that place's value from
another text (causal tracing, 2202.05262; 2309.16042).

A metric is a function of logits [B, T, V] to one number, as the logit of one answer less that of another. Denoising
gives a corrupted text the clean text's values: what restores the answer. Noising is the other way round.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from lm.inspect.edits import Add, Edit, Replace
from lm.inspect.look import look
from lm.model.taps import axes
from lm.model.transformer import Params, Transformer

Metric = Callable[[jax.Array], jax.Array]
EDITS = 8  # that are computed at a time


def logit_difference(right: jax.Array, wrong: jax.Array, position: int = -1) -> Metric:
    """The mean over rows of the logit of `right` [B] less that of `wrong` [B] at a position."""

    def metric(logits: jax.Array) -> jax.Array:
        at, rows = logits[:, position], jnp.arange(logits.shape[0])
        return (at[rows, right] - at[rows, wrong]).mean()

    return metric


def patch(
    model: Transformer,
    params: Params,
    tokens: jax.Array,
    other: jax.Array,
    place: str,
    metric: Metric,
    by: str = "",
) -> jax.Array:
    """The metric on `tokens` [B, T], with the values at `place` of one layer after the other those of `other` [B, T]:
    [L], and with `by` one head ("N") or position ("T") at a time too, [L, N], [L, T] or, by "NT", [L, N, T].

    Denoising where `tokens` are the corrupted text; noising where they are the clean one.

    Args:
      model, params: the model.
      tokens, other: [B, T] both.
      place: a tap that all layers have (lm/model/taps.py).
      metric: logits [B, T, V] -> a number.
      by: axes of the place that are told apart: N or K, heads; T or S, positions.

    Raises ValueError for texts of two shapes, and an axis that the place has not."""
    values = _values(model, params, tokens, other, place, by)
    sizes = (values.shape[0], *(values.shape[1 + axes(place).index(letter)] for letter in by))

    def one(index: jax.Array) -> jax.Array:
        at: dict[str, Any] = {_FIELDS[letter]: index[1 + i][None] for i, letter in enumerate(by)}
        edit = Replace(place, layers=index[:1], values=values, **at)
        return metric(_edited(model, params, tokens, [edit]))

    grid = jnp.array(list(product(*map(range, sizes))))
    return jax.lax.map(one, grid, batch_size=EDITS).reshape(sizes)


_FIELDS = {"N": "heads", "K": "heads", "T": "positions", "S": "positions"}


def _edited(model: Transformer, params: Params, tokens: jax.Array, edits: Sequence[Edit]) -> jax.Array:
    return look(model, params, tokens, edits=edits).logits


def _values(model: Transformer, params: Params, tokens: jax.Array, other: jax.Array, place: str, by: str) -> jax.Array:
    """The place's values on the `other` text, [L, B, ...]."""
    if tokens.shape != other.shape:
        raise ValueError(f"patching needs texts of one shape: {tokens.shape} and {other.shape} tokens")
    for letter in by:
        if letter not in axes(place) or letter not in _FIELDS:
            raise ValueError(f"{place} has axes {axes(place)}: expected by= of those among {', '.join(_FIELDS)}")
    return look(model, params, other, taps=[place]).taps[place]


def attribution(
    model: Transformer,
    params: Params,
    tokens: jax.Array,
    other: jax.Array,
    place: str,
    metric: Metric,
    by: str = "",
) -> jax.Array:
    """`patch` less the metric on `tokens` alone, to first order: the gradient times the difference of the values, of
    all layers, heads and positions by one backward pass (attribution patching, Nanda 2023; 2310.10348). Arguments and
    errors are those of `patch`."""
    values = _values(model, params, tokens, other, place, by)
    here = look(model, params, tokens, taps=[place]).taps[place]

    def of(added: jax.Array) -> jax.Array:
        return metric(_edited(model, params, tokens, [Add(place, values=added)]))

    effect = jax.grad(of)(jnp.zeros_like(here)) * (values - here)
    kept = [0, *(1 + axes(place).index(letter) for letter in by)]
    summed = effect.sum([i for i in range(effect.ndim) if i not in kept])
    return summed.transpose([sorted(kept).index(axis) for axis in kept])
