"""word2vec: skip-gram with negative sampling (1310.4546), on the token stream that language models read.

Each token has a vector, which is moved towards those of tokens in its context and away from random ones. The vectors
show which tokens are similar (`nearest`), and can initialise a model's embedding table (`initialize_embedding`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.data.random import generator

Vectors = dict[str, jax.Array]  # "center" and "context", each [V, D]


class Pairs(NamedTuple):
    """Center and context tokens [B], negative tokens [B, K], and weights [B], 0 for pairs over two documents."""

    center: np.ndarray
    context: np.ndarray
    negative: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Word2Vec:
    """Vectors of `width` from pairs up to `window` tokens apart, nearer ones more often, against `negatives` random
    tokens each; tokens more frequent than `subsample` are subsampled."""

    width: int = 128
    window: int = 5
    negatives: int = 5
    subsample: float = 1e-3
    batch_pairs: int = 4096
    steps: int = 2000
    learning_rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "window", "negatives", "batch_pairs", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"word2vec {name}={getattr(self, name)}: expected at least 1")


class PairSampler:
    """Samples pairs from a text: `tokens` [M] of a vocabulary of `vocab` ids, and the document of each [M]."""

    def __init__(self, tokens: np.ndarray, documents: np.ndarray, vocab: int, config: Word2Vec):
        counts = np.bincount(tokens, minlength=vocab)
        share = counts / max(counts.sum(), 1)
        with np.errstate(divide="ignore"):
            keep = np.minimum(1.0, np.sqrt(config.subsample / share))  # 1310.4546, section 2.3
        kept = generator(config.seed, "subsample").random(len(tokens)) < keep[tokens]
        self._tokens, self._documents, self._config = tokens[kept], documents[kept], config
        if len(self._tokens) < 2:
            raise ValueError(f"{len(self._tokens)} tokens are left for word2vec: give it more text")
        self._noise = np.cumsum(counts**0.75) / (counts**0.75).sum()  # section 2.2

    def pairs(self, step: int) -> Pairs:
        """The pairs of `step`, a pure function of the seed and the step. As in the paper a window's width is drawn from
        1 to `window`, then a distance within it."""
        config, random = self._config, generator(self._config.seed, "pairs", step)
        size = config.batch_pairs
        center = random.integers(len(self._tokens), size=size)
        distance = random.integers(1, random.integers(1, config.window + 1, size), endpoint=True)
        context = center + np.where(random.random(size) < 0.5, distance, -distance)
        inside = np.clip(context, 0, len(self._tokens) - 1)
        weights = (inside == context) & (self._documents[inside] == self._documents[center])
        noise = np.searchsorted(self._noise, random.random((size, config.negatives)), side="right")
        return Pairs(
            self._tokens[center].astype(np.int32),
            self._tokens[inside].astype(np.int32),
            np.minimum(noise, len(self._noise) - 1).astype(np.int32),
            weights.astype(np.float32),
        )


def loss(vectors: Vectors, pairs: Pairs) -> jax.Array:
    """The mean over pairs of -log s(u.v) - sum over negative tokens of log s(-r.v), s the logistic function (1310.4546,
    formula 4)."""
    v = vectors["center"][pairs.center]
    positive = jnp.einsum("bd,bd->b", v, vectors["context"][pairs.context])
    negative = jnp.einsum("bd,bkd->bk", v, vectors["context"][pairs.negative])
    each = -jax.nn.log_sigmoid(positive) - jax.nn.log_sigmoid(-negative).sum(-1)
    return (each * pairs.weights).sum() / jnp.maximum(pairs.weights.sum(), 1.0)


def train(sampler: PairSampler, vocab: int, config: Word2Vec, log: Callable[[int, float], None]) -> np.ndarray:
    """The vectors [V, D] after all steps; `log(step, loss)` is called ten times."""
    optimizer = optax.adam(optax.linear_schedule(config.learning_rate, 0.0, config.steps))
    first = jax.random.normal(jax.random.key(config.seed), (vocab, config.width)) / config.width
    vectors: Vectors = {"center": first, "context": jnp.zeros((vocab, config.width))}

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(vectors: Vectors, state: Any, pairs: Pairs) -> tuple[Vectors, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(vectors, pairs)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(vectors, updates), state, value

    state = optimizer.init(vectors)
    for n in range(config.steps):
        vectors, state, value = step(vectors, state, sampler.pairs(n))
        if n == 0 or (n + 1) % max(config.steps // 10, 1) == 0:
            log(n + 1, float(value))
    return np.asarray(vectors["center"])


def nearest(vectors: np.ndarray, token: int, count: int, among: np.ndarray) -> list[tuple[int, float]]:
    """The `count` tokens of `among` whose vectors are nearest in direction to that of `token`, with their cosines."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    others = among[among != token]
    cosine = unit[others] @ unit[token]
    return [(int(others[i]), float(cosine[i])) for i in np.argsort(-cosine, kind="stable")[:count]]


def initialize_embedding(params: dict[str, Any], vectors: np.ndarray) -> dict[str, Any]:
    """`params` with `vectors` as the first rows of the embedding, at the scale of its initial values. Raises ValueError
    where the shapes do not fit."""
    table = params["stem"]["tokens"]
    if vectors.ndim != 2 or vectors.shape[0] > table.shape[0] or vectors.shape[1] != table.shape[1]:
        raise ValueError(
            f"vectors of shape {vectors.shape} do not fit an embedding of {table.shape}: expected up to "
            f"{table.shape[0]} of width {table.shape[1]}"
        )
    scaled = (vectors - vectors.mean(0)) / max(float(vectors.std()), 1e-9) * jnp.std(table)
    return {**params, "stem": {**params["stem"], "tokens": table.at[: len(vectors)].set(scaled.astype(table.dtype))}}
