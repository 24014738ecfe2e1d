"""Held-out batches: read and placed once for many evaluations, as far as they are small."""

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from lm.run import heldout
from lm.run.heldout import Kept
from lm.sharding.mesh import make_mesh

MESH = make_mesh({"data": 1}, jax.devices()[:1])
SIZES = (2, 2, 4, 1, 2)


def batches(made: list[int], first: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of their number, as many times as SIZES says; those that are made are noted."""
    for number in range(first, len(SIZES)):
        made.append(number)
        yield {"tokens": np.full((SIZES[number], 1), number, np.int32)}


@pytest.mark.parametrize(("most", "again"), [(44, []), (16, [2, 3, 4]), (20, [2, 3, 4]), (0, [0, 1, 2, 3, 4])])
def test_what_one_evaluation_placed_the_next_one_finds(
    most: int, again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch behind one that was too large is not kept: their order stays."""
    monkeypatch.setattr(heldout, "KEPT_BYTES", most)
    placed: list[object] = []

    def place(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, np.ndarray]:
        placed.append(int(batch["tokens"][0, 0]))
        return batch

    monkeypatch.setattr(heldout, "place_batch", place)
    kept = Kept()
    made: list[int] = []
    for _ in range(2):
        read = list(kept.placed("a", partial(batches, made), MESH))
        assert [int(b["tokens"][0, 0]) for b in read] == [0, 1, 2, 3, 4]
    assert placed == made == [0, 1, 2, 3, 4, *again]
    assert len(list(kept.placed("b", partial(batches, []), MESH))) == len(SIZES)  # another source has its own


def test_an_evaluation_of_some_tokens_keeps_what_it_read() -> None:
    kept = Kept()
    made: list[int] = []
    some = kept.placed("a", partial(batches, made), MESH)
    assert [int(next(some)["tokens"][0, 0]) for _ in range(2)] == [0, 1] and made == [0, 1]
    some.close()
    assert [int(b["tokens"][0, 0]) for b in kept.placed("a", partial(batches, []), MESH)] == [0, 1, 2, 3, 4]
