"""What every side of benchmarks/decode.py is asked to do, a number of JOBS each. Standard library only."""

import random

JOBS = ("nothing", "batch 1", "batch 16", "first token", "requests")
NEW = {"batch 1": 128, "batch 16": 64, "first token": 1, "requests": 64}  # tokens of a row


def prompts(job: str, vocab: int) -> list[list[int]]:
    """Random token ids: the same for every side."""
    draw = random.Random(0)
    mixed = [draw.randrange(9, 32) for _ in range(16)]
    lengths = {"batch 1": [16], "batch 16": [16] * 16, "first token": [512], "requests": mixed}[job]
    return [[draw.randrange(vocab) for _ in range(length)] for length in lengths]
