"""The work of benchmarks/rl.py, of every side. Standard library only: the peers' interpreters run it too."""

import random

SIZES = {"groups": 2, "group": 8, "new": 64}  # prompts a step, completions of each, and tokens of every one
WORDS, WIDTH = 46, 48  # of a prompt, and the tokens that it fits in
RANK, LEARNING_RATE = 16, 1e-5
PARTS = ("rollout", "reward", "score", "update")
COMMON = "the of and to in is that for it was on are as with his they at be this from have or by one had not but what"


def prompts(count: int = 64) -> list[str]:
    """Random common words, of one token each."""
    drawn, words = random.Random(0), COMMON.split()
    return [" ".join(drawn.choice(words) for _ in range(WORDS)) for _ in range(count)]


def worth(completion: str) -> float:
    """The reward: the share of letters that are vowels."""
    letters = [c for c in completion.lower() if c.isalpha()]
    return sum(c in "aeiou" for c in letters) / max(len(letters), 1)
