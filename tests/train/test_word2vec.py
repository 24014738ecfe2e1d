"""Pairs are what they should be, the loss is the formula, and tokens that stand alike become alike."""

import jax.numpy as jnp
import numpy as np
import pytest

from lm.train.word2vec import Pairs, PairSampler, Word2Vec, initialize_embedding, loss, nearest, train


def sampler(config: Word2Vec, count: int = 3000) -> PairSampler:
    """Documents of ten tokens: 0 or 1 among 4, 5, 6; or 2 or 3 among 7, 8, 9."""
    random = np.random.default_rng(0)
    kind = np.repeat(random.integers(2, size=count // 10), 10)
    frame = random.integers(3, size=count) + 4 + 3 * kind
    tokens = np.where(np.arange(count) % 2, random.integers(2, size=count) + 2 * kind, frame)
    return PairSampler(tokens, np.repeat(np.arange(count // 10), 10), 10, config)


def test_pairs_are_near_and_in_one_document() -> None:
    config = Word2Vec(window=3, batch_pairs=20_000, negatives=2, subsample=1.0)
    tokens = np.arange(1000)
    found = PairSampler(tokens, tokens // 50, 1000, config).pairs(0)
    good = found.weights > 0
    distance = np.abs(found.context - found.center)[good]
    assert (found.center // 50 == found.context // 50)[good].all() and set(distance) == {1, 2, 3}
    assert np.bincount(distance)[1:] / good.sum() == pytest.approx(np.array([11, 5, 2]) / 18, abs=0.02)
    assert found.negative.shape == (20_000, 2)


def test_pairs_are_a_function_of_seed_and_step() -> None:
    first, again, other = (sampler(Word2Vec(seed=s)).pairs(7) for s in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first.center != other.center).any() and (first.center != sampler(Word2Vec(seed=1)).pairs(8).center).any()


def test_noise_is_drawn_by_the_count_to_the_three_quarters() -> None:
    tokens = np.repeat([0, 1, 2], [8100, 1600, 300])
    found = PairSampler(tokens, np.zeros_like(tokens), 4, Word2Vec(batch_pairs=20_000, subsample=1.0)).pairs(0).negative
    expected = np.array([8100, 1600, 300]) ** 0.75
    assert np.bincount(found.ravel()) / found.size == pytest.approx(expected / expected.sum(), abs=0.01)


def test_frequent_tokens_are_dropped() -> None:
    tokens = np.concatenate([np.zeros(9000, int), np.arange(1, 1001)])
    kept = PairSampler(tokens, np.zeros_like(tokens), 1001, Word2Vec(subsample=1e-3))._tokens
    assert (kept > 0).sum() == 1000 and (kept == 0).sum() == pytest.approx(9000 * (1e-3 / 0.9) ** 0.5, rel=0.15)


def test_the_loss_is_the_formula() -> None:
    random = np.random.default_rng(0)
    vectors = {name: random.normal(size=(6, 4)).astype(np.float32) for name in ("center", "context")}
    pairs = Pairs(np.array([0, 1]), np.array([2, 3]), np.array([[4, 5], [1, 2]]), np.array([1.0, 0.0]))
    v, u = vectors["center"][0], vectors["context"]
    expected = np.log1p(np.exp(-v @ u[2])) + np.log1p(np.exp(v @ u[4])) + np.log1p(np.exp(v @ u[5]))
    assert float(loss(vectors, pairs)) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_tokens_that_stand_alike_become_alike() -> None:
    config = Word2Vec(width=8, window=2, batch_pairs=256, steps=150, subsample=1.0, learning_rate=0.05)
    told: list[float] = []
    vectors = train(sampler(config), 10, config, lambda n, value: told.append(value))
    assert told[-1] < told[0]
    for token, twin in ((0, 1), (1, 0), (2, 3), (3, 2)):
        others = nearest(vectors, token, 3, np.arange(4))
        assert others[0][0] == twin and others[0][1] > others[1][1] and len(others) == 3


def test_an_embedding_starts_from_them() -> None:
    table = np.random.default_rng(0).normal(0, 0.02, (12, 8)).astype(np.float32)
    params = {"stem": {"tokens": jnp.asarray(table)}, "head": {}}
    vectors = np.random.default_rng(1).normal(3, 5, (10, 8)).astype(np.float32)
    new = np.asarray(initialize_embedding(params, vectors)["stem"]["tokens"])
    np.testing.assert_array_equal(new[10:], table[10:])
    assert new[:10].std() == pytest.approx(table.std(), rel=0.2) and abs(new[:10].mean()) < 0.01
    flat = (new[:10] - new[:10].mean(0)).ravel() @ (vectors - vectors.mean(0)).ravel()
    norms = np.linalg.norm(new[:10] - new[:10].mean(0)) * np.linalg.norm(vectors - vectors.mean(0))
    assert flat / norms == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match=r"vectors of shape \(13, 8\) do not fit an embedding of \(12, 8\)"):
        initialize_embedding(params, np.zeros((13, 8)))
