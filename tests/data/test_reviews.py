"""Reviews: what the rule finds in one, and that prompts of training and held-out ones are apart."""

import json

import pytest

from lm.data.reviews import BAD, GOOD, HELDOUT, LIKED, PROMPTS, THINGS, WHOLE, Reviews, worth


def clauses(*said: tuple[str, str]) -> str:
    return f" {' and '.join(f'the {thing} was {word}' for thing, word in said)}."


@pytest.mark.parametrize(
    ("review", "expected"),
    [
        (clauses(("staff", "kind")), 1),
        (clauses(("staff", "rude")), -1),
        (clauses(("staff", "local")), 0),
        (clauses(("staff", "kind"), ("tea", "great"), ("room", "stale")), 1),
        (clauses(("staff", "kind"), ("staff", "great")), 0),  # what is said first counts, and the second is one again
        (clauses(("staff", "rude"), ("staff", "great")), -2),
        (clauses(("staff", "kind"), ("tea", "kind")), 1),  # a word of praise again
        (clauses(("staff", "rude"), ("tea", "rude")), -2),
        (clauses(*zip(THINGS[:LIKED], GOOD, strict=False)), LIKED),
        (clauses(*zip(THINGS[: LIKED + 2], GOOD, strict=False)), LIKED),
        (" the staff was kind", 0),  # no end
        (" the staff was kind and", 0),
        ("", -1),
    ],
)
def test_the_rule(review: str, expected: float) -> None:
    assert worth(review) == expected


def test_its_parts_are_of_prompts_that_are_apart() -> None:
    answers = {s: [json.loads(one) for one in Reviews("answers").documents(s)] for s in ("train", "heldout")}
    prompts = {split: {one["prompt"] for one in records} for split, records in answers.items()}
    assert len(prompts["heldout"]) == HELDOUT and prompts["train"] | prompts["heldout"] == set(PROMPTS)
    assert not prompts["train"] & prompts["heldout"]
    assert all(WHOLE.fullmatch(one["completion"]) for one in answers["train"])
    for split in prompts:
        pairs = [json.loads(one) for one in Reviews("pairs").documents(split)]
        assert {pair["prompt"] for pair in pairs} == prompts[split]
        assert all(worth(pair["chosen"]) > worth(pair["rejected"]) for pair in pairs)
    text = Reviews("texts").documents("train")[0].split("\n")
    assert len(text) == 5 and all(line.split(":")[0] + ":" in prompts["train"] for line in text)
    few, every = (Reviews("pairs", most) for most in (3, 0))
    assert list(few.documents("train")) == list(every.documents("train"))[:3]
    assert len(few.documents("heldout")) == HELDOUT and few.fingerprint() != every.fingerprint()
    assert not {*GOOD} & {*BAD}
    with pytest.raises(ValueError, match="part='words': expected texts, answers, pairs"):
        Reviews("words")
