"""Beam search: the texts and scores of transformers, each prompt as if it were alone."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from certificates.beams import SEARCHED, STOP, Search, prompts, recorded, searches
from certificates.cases import NEW, Case
from lm.decode.beam import BeamSearch, search
from lm.decode.generate import NonFiniteLogits, generate
from lm.decode.sampling import Sampling
from lm.model.transformer import Transformer
from lm.pretrained import load
from tests.decode.test_generate import COMPUTE, LLAMA
from tests.model.reference import lively
from tests.pretrained.small import checkpoint

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7]]


def how(one: Search) -> BeamSearch:
    return BeamSearch(one.num_beams, one.num_beams, one.length_penalty, one.early_stopping)  # type: ignore[arg-type]


THREE = BeamSearch(3, 3)


def found(prompts: Any = PROMPTS, new: int = 5, beams: BeamSearch = THREE, **options: Any) -> Any:
    return search(Transformer(LLAMA, COMPUTE), lively(LLAMA), prompts, new, beams, **options)


@pytest.mark.parametrize("case", SEARCHED, ids=lambda case: case.architecture)
def test_texts_and_scores_are_the_recorded_ones(case: Case, tmp_path: Any) -> None:
    """Also with a ring for a window, latent keys, and an encoder, all beside another prompt."""
    model = replace(load(checkpoint(case, tmp_path)), ids={"eos_token_id": STOP, "decoder_start_token_id": 0})
    for one, wanted in zip(searches(case), recorded()[case.name], strict=True):
        given = model.beam_search_ids(prompts(case).tolist(), NEW, how(one))
        for beams, known in zip(given, wanted, strict=True):
            assert [beam.ids for beam in beams] == [ids for ids, _ in known], one
            np.testing.assert_allclose([beam.score for beam in beams], [score for _, score in known], rtol=2e-5)


def test_a_prompt_is_searched_as_if_it_were_alone() -> None:
    stop = [found()[0][0].ids[2]]
    both = found(stop=stop)
    assert both == [found([prompt], stop=stop)[0] for prompt in PROMPTS]
    assert len({len(beam.ids) for beams in both for beam in beams}) > 1


def test_all_beams_that_there_are_find_the_best_of_all_texts() -> None:
    """With as many beams as extensions nothing is lost: the likeliest of 31 * 31 texts of two tokens."""
    cfg = replace(LLAMA, vocab=62)  # 31 ids are used
    model, params = Transformer(cfg, COMPUTE), lively(cfg)
    first, second = np.divmod(np.arange(31 * 31), 31)
    rows = np.stack([np.full(31 * 31, 7), first, second], axis=1).astype(np.int32)
    logprobs = np.asarray(jax.jit(lambda rows: jax.nn.log_softmax(model(params, rows)))(rows))
    of_each = logprobs[np.arange(len(rows)), 0, first] + logprobs[np.arange(len(rows)), 1, second]
    best = np.argsort(-of_each)[:6]
    given = search(model, params, [[7]], 2, BeamSearch(31 // 2, 6, 0.0), vocab_size=31)[0]
    assert [beam.ids for beam in given] == rows[best, 1:].tolist()
    np.testing.assert_allclose([beam.score for beam in given], of_each[best], rtol=1e-5)


def test_one_beam_is_greedy() -> None:
    model = Transformer(LLAMA, COMPUTE)
    greedy = generate(model, lively(LLAMA), PROMPTS, 9, sampling=Sampling(0))
    assert [beams[0].ids for beams in found(new=9, beams=BeamSearch(1))] == greedy


def test_scanned_layers_search_as_unrolled_ones() -> None:
    unrolled = Transformer(LLAMA, replace(COMPUTE, unroll=0))
    given = search(unrolled, lively(LLAMA), PROMPTS, 5, THREE)
    assert [[beam.ids for beam in beams] for beams in given] == [[beam.ids for beam in beams] for beams in found()]


def test_parameters_that_are_not_finite_are_told() -> None:
    broken = jax.tree.map(lambda a: a * jnp.nan, lively(LLAMA))
    with pytest.raises(NonFiniteLogits, match="^the logits are NaN or infinite"):
        search(Transformer(LLAMA, COMPUTE), broken, PROMPTS, 5, THREE)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: BeamSearch(0), "beams=0"),
        (lambda: BeamSearch(2, 3), "n=3 texts of beams=2: expected at most as many as beams"),
        (lambda: BeamSearch(early_stopping="always"), "early_stopping='always': expected True, False or 'never'"),  # type: ignore[arg-type]
        (lambda: BeamSearch(length_penalty=float("nan")), "length_penalty=nan"),
        (lambda: found(beams=BeamSearch(16)), "beams=16: expected at most 15 with this vocabulary"),
        (lambda: found(new=0), "max_new_tokens=0: expected at least 1"),
        (lambda: found([[]]), "the prompt has no tokens"),
        (lambda: found(new=99), "do not fit the context of 48"),
    ],
)
def test_what_cannot_be_searched(ask: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask()
