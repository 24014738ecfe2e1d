"""What an assistant answers is a function of prompt, seed and index; what it chooses, of its own probabilities."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lm.decode.generate import generate
from lm.decode.sampling import Sampling
from tests.tune.answering import assistant, model

ENDS = Sampling(logit_bias=((257, 4.5),))
QUESTION = [{"role": "user", "content": "which?"}]


def test_an_answer_is_the_same_in_any_company() -> None:
    """Draw `index` of the seed: what `generate` draws in that row."""
    one, ids = assistant(sampling=ENDS, seed=3), [5, 6, 7]
    together = one.write([ids, [9], ids, [8] * 40, ids], range(5))
    alone = one.write([ids], [2])
    assert alone[0] == together[2] and alone[0].tokens == together[2].tokens
    own = model()
    rows = generate(own.model, own.params, [ids] * 5, 6, sampling=ENDS, stop=own.stop_ids, seed=3)
    for i in (0, 2, 4):
        assert together[i] == one.tokenizer.decode(rows[i])
        assert (together[i].stopped, together[i].tokens) == (len(rows[i]) < 6, min(len(rows[i]) + 1, 6))
    assert any(text.stopped for text in together) and len(set(together)) > 2


def test_a_choice_has_the_probabilities_of_its_labels_among_one_another() -> None:
    one, own = assistant(), model()
    other = [{"role": "user", "content": "and now, which one?"}]
    found = one.choose([QUESTION, other], "it is ", ["A", "B", "C"])
    for row, conversation in zip(found, (QUESTION, other), strict=True):
        ids = one.encode(conversation, "it is ")
        logits = np.asarray(own.logits([ids]))[0, -1, [ord("A"), ord("B"), ord("C")]]
        np.testing.assert_allclose(row, jax.nn.softmax(logits), atol=1e-4)
    assert one.encode(QUESTION, "it is ") == [256, *b"u:which?|a:it is "] and one.encode(QUESTION)[-2:] == [*b"a:"]
    assert one.choose([], "", ["A", "B"]).shape == (0, 2)


@pytest.mark.parametrize("labels", [["AB", "CD"], ["A", "A"], ["A", ""]])
def test_labels_that_one_token_does_not_tell_apart_are_refused(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="expected labels of one token each"):
        assistant().choose([QUESTION], "", labels)


def test_what_does_not_fit_or_has_no_template_is_refused() -> None:
    one = assistant(length=40)
    assert one.fits([0] * 34) and not one.fits([0] * 35)
    with pytest.raises(ValueError, match="do not fit the context of 40"):
        one.write([[0] * 35], [0])
    with pytest.raises(ValueError, match="no chat template"):
        replace(one, tokenizer=type(one.tokenizer)()).encode(QUESTION)
