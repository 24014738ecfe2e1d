"""word2vec: skip-gram with negative sampling (1310.4546), on the token stream that language models read.

Each token has a vector; it is moved towards those of the tokens that stand near it and away from random ones. The
vectors say which tokens are alike (`neighbours`), and can start a model's embedding table (`started`).
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
    """Tokens and their neighbours [B], random tokens [B, K], and 1 where a pair lies in one document, else 0, [B]."""

    center: np.ndarray
    context: np.ndarray
    random: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Word2Vec:
    """How vectors of `width` are learned: from pairs up to `window` tokens apart, nearer ones more often, against
    `negatives` random tokens each; tokens of a larger share than `subsample` of the text are dropped now and then."""

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


class Stream:
    """The pairs of a text: tokens [M] and the document of each [M], from a vocabulary of `vocab` ids."""

    def __init__(self, tokens: np.ndarray, documents: np.ndarray, vocab: int, how: Word2Vec):
        counts = np.bincount(tokens, minlength=vocab)
        share = counts / max(counts.sum(), 1)
        with np.errstate(divide="ignore"):
            keep = np.minimum(1.0, np.sqrt(how.subsample / share))  # 1310.4546, section 2.3
        kept = generator(how.seed, "subsample").random(len(tokens)) < keep[tokens]
        self._tokens, self._documents, self._how = tokens[kept], documents[kept], how
        if len(self._tokens) < 2:
            raise ValueError(f"{len(self._tokens)} tokens are left for word2vec: give it more text")
        self._noise = np.cumsum(counts**0.75) / (counts**0.75).sum()  # section 2.2

    def pairs(self, step: int) -> Pairs:
        """Those of `step`: a pure function of the seed and the step. A pair d apart is as likely as one of the windows
        of 1 to `window` tokens is at least d wide."""
        how, random = self._how, generator(self._how.seed, "pairs", step)
        size = how.batch_pairs
        center = random.integers(len(self._tokens), size=size)
        distance = random.integers(1, random.integers(1, how.window + 1, size), endpoint=True)
        other = center + np.where(random.random(size) < 0.5, distance, -distance)
        near = np.clip(other, 0, len(self._tokens) - 1)
        weights = (near == other) & (self._documents[near] == self._documents[center])
        noise = np.searchsorted(self._noise, random.random((size, how.negatives)), side="right")
        return Pairs(
            self._tokens[center].astype(np.int32),
            self._tokens[near].astype(np.int32),
            np.minimum(noise, len(self._noise) - 1).astype(np.int32),
            weights.astype(np.float32),
        )


def loss(vectors: Vectors, pairs: Pairs) -> jax.Array:
    """The mean over pairs of -log s(u.v) - sum over random tokens of log s(-r.v), s the logistic function (1310.4546,
    formula 4)."""
    v = vectors["center"][pairs.center]
    near = jnp.einsum("bd,bd->b", v, vectors["context"][pairs.context])
    far = jnp.einsum("bd,bkd->bk", v, vectors["context"][pairs.random])
    each = -jax.nn.log_sigmoid(near) - jax.nn.log_sigmoid(-far).sum(-1)
    return (each * pairs.weights).sum() / jnp.maximum(pairs.weights.sum(), 1.0)


def train(stream: Stream, vocab: int, how: Word2Vec, tell: Callable[[int, float], None]) -> np.ndarray:
    """The vectors [V, D] after all steps; `tell(step, loss)` hears of some of them."""
    optimizer = optax.adam(optax.linear_schedule(how.learning_rate, 0.0, how.steps))
    first = jax.random.normal(jax.random.key(how.seed), (vocab, how.width)) / how.width
    vectors: Vectors = {"center": first, "context": jnp.zeros((vocab, how.width))}

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(vectors: Vectors, state: Any, pairs: Pairs) -> tuple[Vectors, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(vectors, pairs)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(vectors, updates), state, value

    state = optimizer.init(vectors)
    for n in range(how.steps):
        vectors, state, value = step(vectors, state, stream.pairs(n))
        if n == 0 or (n + 1) % max(how.steps // 10, 1) == 0:
            tell(n + 1, float(value))
    return np.asarray(vectors["center"])


def neighbours(vectors: np.ndarray, token: int, count: int, among: np.ndarray) -> list[tuple[int, float]]:
    """The `count` tokens of `among` whose vectors are nearest in direction to that of `token`, and the cosines."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    others = among[among != token]
    cosine = unit[others] @ unit[token]
    return [(int(others[i]), float(cosine[i])) for i in np.argsort(-cosine, kind="stable")[:count]]


def started(params: dict[str, Any], vectors: np.ndarray) -> dict[str, Any]:
    """`params` with `vectors` as the first rows of the embedding, at the scale of those that were drawn. Raises
    ValueError where they do not fit."""
    table = params["stem"]["tokens"]
    if vectors.ndim != 2 or vectors.shape[0] > table.shape[0] or vectors.shape[1] != table.shape[1]:
        raise ValueError(
            f"vectors of shape {vectors.shape} do not fit an embedding of {table.shape}: expected up to "
            f"{table.shape[0]} of width {table.shape[1]}"
        )
    scaled = (vectors - vectors.mean(0)) / max(float(vectors.std()), 1e-9) * jnp.std(table)
    return {**params, "stem": {**params["stem"], "tokens": table.at[: len(vectors)].set(scaled.astype(table.dtype))}}
