"""Placing: on a mesh the same parameters, each device with its share alone, and never more than a chunk on the way."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates.cases import inputs
from lm.pretrained import load, placement
from lm.pretrained.placement import chunks
from lm.sharding.mesh import make_mesh
from lm.sharding.shardings import shardings
from tests.pretrained.small import BY_NAME, LLAMA, checkpoint

CASE = BY_NAME["MixtralForCausalLM-4-experts"]
MESHES: list[dict[str, int]] = [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"expert": 4, "data": 2}]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_on_a_mesh_it_is_the_same(mesh: dict[str, int], tmp_path: Path) -> None:
    checkpoint(CASE, tmp_path)
    alone, spread = load(tmp_path), load(tmp_path, make_mesh(mesh))
    wanted = shardings(alone.model.shapes(), alone.model.axes(), make_mesh(mesh))
    jax.tree.map(np.testing.assert_array_equal, spread.params, alone.params)
    for leaf, home in zip(jax.tree.leaves(spread.params), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(home, leaf.ndim)
    largest = max(jax.tree.leaves(spread.params), key=lambda leaf: leaf.size)
    assert {shard.data.size * 8 for shard in largest.addressable_shards} == {largest.size * (mesh.get("data", 1))}


def test_no_more_than_a_chunk_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read for a device at a time is at most CHUNK_BYTES, and gives the same parameters."""
    checkpoint(BY_NAME[LLAMA], tmp_path)
    whole = load(tmp_path)
    monkeypatch.setattr(placement, "CHUNK_BYTES", 1000)
    sent: list[int] = []
    put = jax.device_put

    def counted(x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, np.ndarray):
            sent.append(x.nbytes)
        return put(x, *args, **kwargs)

    monkeypatch.setattr(placement.jax, "device_put", counted)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params, whole.params)
    assert len(sent) > 50 and max(sent) <= 1000
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(whole.params))
    assert sum(sent) == total
    assert whole.logits(inputs(BY_NAME[LLAMA])["input_ids"]).shape == (3, 40, 96)


@settings(max_examples=100, deadline=None)
@given(
    bounds=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=4), most=st.integers(1, 60)
)
def test_pieces_cover_all_once(bounds: list[tuple[int, int]], most: int) -> None:
    limits = tuple((start, start + length) for start, length in bounds)
    seen = np.zeros([stop for _, stop in limits], int)
    for chunk in chunks(limits, most):
        assert np.prod([b - a for a, b in chunk]) <= most
        seen[tuple(slice(a, b) for a, b in chunk)] += 1
    inside = tuple(slice(a, b) for a, b in limits)
    assert (seen[inside] == 1).all() and seen.sum() == seen[inside].size
