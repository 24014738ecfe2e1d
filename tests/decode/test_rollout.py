"""Completions in one program: the tokens of `generate`, and the log-probabilities of a whole forward pass."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from lm.decode.generate import generate
from lm.decode.rollout import Completions, complete
from lm.decode.sampling import Sampling
from lm.model.transformer import Transformer
from lm.train.logprobs import READ, token_logprobs
from lm.tune.lora import LoRA
from lm.tune.on_policy import filled
from tests.model.reference import LLAMA, MODELS, SIMPLE, lively
from tests.tune.test_lora import disturbed, wrapped

PROMPTS = [[5, 3, 9], [7], [1, 2, 3, 4, 5]]
NEW, WIDTH, STOP = 8, 6, (4, 11)
FILTERED = Sampling(temperature=0.7, top_k=12, top_p=0.8)
QUICK = ("llama", "gemma 2")


def padded(prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    rows = [np.pad(prompt, (0, WIDTH - len(prompt))) for prompt in prompts]
    segments = [np.pad(np.ones(len(prompt)), (0, WIDTH - len(prompt))) for prompt in prompts]
    return np.array(rows, np.int32), np.array(segments, np.int32)


def completed(
    model: Transformer, params: Any, prompts: list[list[int]] = PROMPTS, sampling: Sampling = FILTERED, seed: int = 0
) -> Completions:
    drawn = complete(model, params, *padded(prompts), jax.random.key(seed), NEW, sampling, STOP)
    return Completions(*map(np.asarray, drawn))  # type: ignore[arg-type]


SLOW = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]


@pytest.mark.parametrize("name", SLOW)
def test_log_probabilities_are_those_of_the_forward_pass(name: str) -> None:
    """With padding, temperature and filters: the sampler's are further from training's by the mass that was kept."""
    model, params = Transformer(MODELS[name], SIMPLE), lively(MODELS[name])
    found, read = completed(model, params), np.zeros((len(PROMPTS), WIDTH + NEW), np.int32)
    for row, prompt in enumerate(PROMPTS):
        read[row, : len(prompt) + NEW] = [*prompt, *found.tokens[row]]

    @jax.jit
    def distributions(params: Any, read: jax.Array) -> Any:
        logits = model(params, read)
        kept = FILTERED.process(logits.reshape(-1, logits.shape[-1])).reshape(logits.shape)
        return jax.nn.log_softmax(kept), jax.nn.log_softmax(logits / 0.7)

    both = jax.device_get(distributions(params, read))
    for row, prompt in enumerate(PROMPTS):
        ids = found.tokens[row, : found.lengths[row]]
        expected = [a[row, len(prompt) - 1 + np.arange(len(ids)), ids] for a in both]
        for got, wanted in zip((found.logprobs, found.policy_logprobs), expected, strict=True):
            np.testing.assert_allclose(got[row, : len(ids)], wanted, atol=1e-4)
            assert not got[row, len(ids) :].any()
    mass = np.exp(found.policy_logprobs - found.logprobs)[found.logprobs != 0]
    assert mass.min() < 0.95 and mass.max() <= 1 + 1e-5


@pytest.mark.parametrize("name", SLOW)
def test_training_has_the_log_probabilities_of_sampling(name: str) -> None:
    """Of padded rows with a prompt and its completion each, and of several packed in one row."""
    model, params = Transformer(MODELS[name], SIMPLE), lively(MODELS[name])
    tokens, segments = (np.pad(a, ((0, 0), (0, NEW))) for a in padded(PROMPTS))
    prompts = {"tokens": tokens, "segment_ids": segments, "row_weights": np.ones(len(PROMPTS))}
    apart = filled(prompts, completed(model, params))
    lengths, T = apart["segment_ids"].sum(1), MODELS[name].context
    packed = {key: np.zeros((2, T), array.dtype) for key, array in apart.items() if array.ndim == 2}
    for row, at, document in ((0, 0, 1), (1, lengths[0], 2), (2, 0, 1)):
        for key, to in packed.items():
            to[row // 2, at : at + lengths[row]] = apart[key][row, : lengths[row]]
        packed["segment_ids"][row // 2, at : at + lengths[row]] = document

    @jax.jit
    def trained(params: Any, batch: Any) -> jax.Array:
        return token_logprobs(model, params, batch, FILTERED.temperature).logprobs

    for batch in (apart, packed):
        real = batch["weights"] > 0
        found = trained(params, {key: batch[key] for key in READ})
        np.testing.assert_allclose(found[real], batch["policy_logprobs"][real], atol=1e-4)
    assert packed["weights"].sum() == apart["weights"].sum() > len(PROMPTS)


@pytest.mark.parametrize("unroll", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_tokens_are_those_of_generate(unroll: int) -> None:
    model, params = Transformer(LLAMA, replace(SIMPLE, unroll=unroll)), lively(LLAMA)
    for sampling in (FILTERED, Sampling(temperature=0, repetition_penalty=1.5, vocab_size=30)):
        found = completed(model, params, sampling=sampling)
        expected = generate(model, params, PROMPTS, NEW, sampling=sampling, stop=STOP)
        for row, ids in enumerate(expected):
            length, stopped = int(found.lengths[row]), bool(found.stopped[row])
            assert found.tokens[row, : length - stopped].tolist() == ids and not found.tokens[row, length:].any()
            assert stopped == (len(ids) < NEW) and (not stopped or found.tokens[row, length - 1] in STOP)


def test_a_row_depends_on_neither_neighbours_nor_padding() -> None:
    model, params = Transformer(LLAMA, SIMPLE), lively(LLAMA)
    alone, among = completed(model, params, [[5, 3, 9], [7]]), completed(model, params, [[5, 3, 9], [], [1, 2]])
    assert alone.tokens[0].tolist() == among.tokens[0].tolist() and among.finite
    assert among.lengths[1] == 0 and not among.stopped[1] and not among.tokens[1].any()
    other = completed(model, params, seed=1)
    assert (completed(model, params).tokens != other.tokens).any()


def test_new_parameters_need_no_compilation_and_are_the_ones_that_draw() -> None:
    model, params = Transformer(LLAMA, SIMPLE), lively(LLAMA)
    first = completed(model, params)
    compiled = complete._cache_size()  # type: ignore[attr-defined]
    updated = jax.tree.map(lambda x: 1.3 * x, params)
    second = completed(model, updated)
    assert complete._cache_size() == compiled  # type: ignore[attr-defined]
    assert np.abs(first.policy_logprobs[:, 0] - second.policy_logprobs[:, 0]).max() > 0.01


def test_adapters_are_merged() -> None:
    learner = wrapped(LLAMA, LoRA(rank=2, where="layers/.*|stem/tokens"))
    params, frozen = jax.jit(learner.init)(jax.random.key(0), lively(LLAMA))
    params = disturbed(params)
    adapted, merged = jax.jit(lambda p, f: (learner.join(p, f["base"]), learner.model_params(p, f)))(params, frozen)
    model = Transformer(LLAMA, replace(SIMPLE, unroll=0))
    assert completed(model, adapted).tokens.tolist() == completed(model, merged).tokens.tolist()


def test_logits_that_are_not_finite_are_told() -> None:
    model = Transformer(LLAMA, SIMPLE)
    assert not completed(model, jax.tree.map(lambda x: np.full_like(x, np.nan), lively(LLAMA))).finite
