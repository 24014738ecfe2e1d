"""The work of benchmarks/tune.py, of every side. Standard library only: the peers' interpreters run it too."""

import random

ROWS, LENGTH, BATCHES = 8, 256, 4
RANK, LEARNING_RATE, BETA = 16, 1e-4, 0.1


def batches(vocab: int) -> list[list[list[int]]]:
    """BATCHES batches of ROWS rows of LENGTH + 1 random tokens: all but the first have loss. Of
    pairs each two rows are one, the first the chosen side."""
    drawn = random.Random(0)
    return [[[drawn.randrange(vocab) for _ in range(LENGTH + 1)] for _ in range(ROWS)] for _ in range(BATCHES)]
