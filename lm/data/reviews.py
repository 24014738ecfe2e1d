"""Short reviews in a made-up language, and what one is worth by a rule: data for learning from preferences that are
known exactly.

Made, not downloaded, as sums.py's are: Reviews("texts") to pretrain on, Conversations(Reviews("answers")) and
Prompts(Reviews("answers")), Preferences(Reviews("pairs")). A review says what some things were like, and its writer is
of one mood: "cafe in Oslo, June:" may be answered by " the staff was kind and the music was loud.".
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from lm.bounds import Natural, Sentinel, check
from lm.data.random import generator
from lm.data.source import SPLITS, Documents, Source, digest, is_train, not_empty

PLACES, TOWNS, MONTHS = (
    text.split()
    for text in (
        "bakery beach cafe cinema gallery garden hotel library market museum park pool shop stadium theatre zoo",
        "Athens Basel Berlin Bern Bonn Cairo Cork Dakar Delhi Dublin Geneva Genoa Ghent Hanoi Havana Kyiv Leeds Lima "
        "Lisbon London Lyon Madrid Milan Minsk Nice Oslo Paris Porto Prague Riga Rome Seoul Sofia Split Tokyo Tunis "
        "Turin Vienna Vilnius Verona",
        "January February March April May June July August September October November December",
    )
)
THINGS, GOOD, BAD, PLAIN = (
    text.split()
    for text in (
        "air bread coffee crowd food light music price room service soup staff tea view wait wine",
        "bright charming clean fine fresh great kind lovely",
        "awful broken cold dirty dull loud rude stale",
        "large local modern new old plain small usual",
    )
)
PROMPTS = tuple(f"{place} in {town}, {month}:" for place in PLACES for town in TOWNS for month in MONTHS)
PARTS = ("texts", "answers", "pairs")
HELDOUT = 512  # prompts
MOST_CLAUSES = 5  # of a review; the rule likes no more than LIKED
LIKED = 4
REPEATS, NEUTRAL = 0.1, 0.2  # of the clauses: those of a thing that may have been named, those without a judgement
IN_A_TEXT = 5
CLAUSE = re.compile(r"the (\w+) was (\w+)")
WHOLE = re.compile(r" ?the \w+ was \w+( and the \w+ was \w+)*\.")


@dataclass(frozen=True)
class Reviews(Source):
    """The `part` of them: "texts", of five prompts and reviews a line each, "answers", records with a prompt and its
    completion, or "pairs", with a prompt and two answers, of which the rule finds the `chosen` one worth more than the
    `rejected`. At most `most` documents are for training (0: all); 512 prompts are held out."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"part": PARTS}

    part: str = "texts"
    most: Annotated[Natural, Sentinel(0, "all")] = 0

    def __post_init__(self) -> None:
        check(self)
        if self.part not in PARTS:
            raise ValueError(f"Reviews part={self.part!r}: expected {', '.join(PARTS)}")

    def documents(self, split: str) -> Documents:
        found = _documents(self.part, SPLITS[not is_train(split)])
        count = min(self.most or len(found), len(found)) if is_train(split) else len(found)
        return not_empty(Documents(count, lambda i: found[i]), self, split)

    def fingerprint(self) -> str:
        return digest(self, "reviews 1")


def worth(review: str) -> float:
    """What a review is worth, by the rule: 1 for each thing that is praised and -1 for each that is blamed, by what is
    said of it first; -1 for each clause on a thing that was named before, for each word of praise used again, for
    each clause beyond four, and where it is not written as reviews are."""
    clauses = CLAUSE.findall(review)
    first = dict(reversed(clauses))
    said = sum((word in GOOD) - (word in BAD) for word in first.values())
    praise = [word for _, word in clauses if word in GOOD]
    again = len(clauses) - len(first) + len(praise) - len(set(praise))
    return float(said - again - max(len(clauses) - LIKED, 0) - (WHOLE.fullmatch(review) is None))


@functools.lru_cache(maxsize=6)
def _documents(part: str, split: str) -> tuple[str, ...]:
    order = generator(0, "reviews").permutation(len(PROMPTS))
    prompts = [PROMPTS[i] for i in (order[HELDOUT:] if is_train(split) else order[:HELDOUT])]
    rng = generator(0, "reviews", part, split)
    if part == "texts":
        answered = [
            [p + r for p, r in zip(rng.permutation(prompts), _reviews(rng, len(prompts)), strict=True)]
            for _ in range(IN_A_TEXT)
        ]
        return tuple("\n".join(several) for several in zip(*answered, strict=True))
    if part == "answers":
        answers = zip(prompts, _reviews(rng, len(prompts)), strict=True)
        return tuple(json.dumps({"prompt": prompt, "completion": review}) for prompt, review in answers)
    return tuple(
        json.dumps({"prompt": prompt, "chosen": max(pair, key=worth), "rejected": min(pair, key=worth)})
        for prompt, pair in zip(prompts, _pairs(rng, len(prompts)), strict=True)
    )


def _pairs(rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    """Pairs of reviews that are not worth the same."""
    found: list[tuple[str, str]] = []
    while len(found) < n:
        drawn = zip(_reviews(rng, n), _reviews(rng, n), strict=True)
        found += [pair for pair in drawn if worth(pair[0]) != worth(pair[1])]
    return found[:n]


def _reviews(rng: np.random.Generator, n: int) -> list[str]:
    """Reviews by writers who praise with a chance that is each one's own."""
    counts, moods = rng.integers(1, MOST_CLAUSES + 1, n), rng.random((n, 1))
    shape = n, MOST_CLAUSES
    things = rng.permuted(np.tile(THINGS, (n, 1)), axis=1)[:, :MOST_CLAUSES]
    things = np.where(rng.random(shape) < REPEATS, rng.choice(THINGS, shape), things)
    good, bad, plain = (rng.choice(words, shape) for words in (GOOD, BAD, PLAIN))
    words = np.where(rng.random(shape) < NEUTRAL, plain, np.where(rng.random(shape) < moods, good, bad))
    return [
        f" {' and '.join(f'the {thing} was {word}' for thing, word in zip(*row, strict=True))}."
        for row in ((things[i, :k], words[i, :k]) for i, k in enumerate(counts))
    ]
