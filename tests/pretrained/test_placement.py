"""Placing: on a mesh the same parameters, each device with its share alone, and never more than a chunk on the way."""

import re
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates.cases import inputs
from lm.model.compute import Compute
from lm.model.families import llama
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, gguf, load, open_model, placement
from lm.pretrained.mapped import PAGE, MappedFile
from lm.pretrained.placement import chunks, copy_by_rows
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
    monkeypatch.setattr(placement, "HOSTS", ())  # as to an accelerator
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


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 130), min_size=1, max_size=3),
    order=st.permutations(range(3)),
    backwards=st.booleans(),
)
def test_a_copy_by_rows_is_a_copy(shape: list[int], order: list[int], backwards: bool) -> None:
    source = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    source = source.transpose([axis for axis in order if axis < len(shape)])
    source = source[::-1] if backwards else source
    out = np.full(source.shape, -1, np.float32)
    copy_by_rows(source, out)
    np.testing.assert_array_equal(out, source)


def held(path: Path) -> tuple[int, int, int]:
    """Bytes of a model's parameters, of a layer's largest tensor, and the most that NumPy held during the load."""
    tracemalloc.start()
    try:
        model = load(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    leaves = jax.tree.leaves(model.params)
    largest = max(leaf.nbytes // leaf.shape[0] for leaf in jax.tree.leaves(model.params["layers"]))
    return sum(leaf.nbytes for leaf in leaves), largest, most


WIDE = llama(vocab=3000, layers=4, width=256, heads=4, kv_heads=2, mlp=1024, context=64, tied=True)
SMALL = 400_000  # bytes of all else: the config, the table of tensors, a piece of a tensor


@pytest.mark.parametrize("kind", ["safetensors", "f32", "q8_0"])
def test_one_tensor_is_in_flight(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are written where they stay, and the embedding, as it is in the file, straight there. A file's tensors
    that are read where they are take nothing."""
    monkeypatch.setattr(gguf, "PIECE", 4096)
    model = Transformer(WIDE, Compute(unroll=1).resolve())
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), model.shapes())
    whole = Pretrained(WIDE, params, None, model)
    if kind == "safetensors":
        whole.save(tmp_path / "model", shard_bytes=4_000_000)
        assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    else:
        whole.save_gguf(tmp_path / "model", kind)
    held(tmp_path / "model")  # what is imported, and kept, at first
    size, largest, most = held(tmp_path / "model")
    assert size < most < size + (largest if kind == "q8_0" else 0) + SMALL


def test_what_was_read_of_a_file_is_given_back(tmp_path: Path) -> None:
    file = tmp_path / "file"
    np.arange(1 << 20, dtype=np.uint8).tofile(file)
    mapped = MappedFile(file)

    def resident() -> int:
        found = re.search(rf"{file}\n(?:.*\n)*?Rss: +(\d+) kB", Path("/proc/self/smaps").read_text())
        assert found
        return int(found[1]) * 1024

    assert mapped.bytes.sum(dtype=np.int64) > 0 and resident() == 1 << 20
    mapped.drop(1, (1 << 20) - 1)
    assert resident() == 2 * PAGE  # the first page and the last, of which others may read
    assert mapped.bytes[5000] == 5000 % 256


def test_parameters_to_train_can_be_donated(tmp_path: Path) -> None:
    """A step writes its results where they were; those of a loaded model are in memory that NumPy allocated."""
    checkpoint(BY_NAME[LLAMA], tmp_path)
    published = open_model(tmp_path)
    params = published.params()
    jax.tree.map(np.testing.assert_array_equal, params, load(tmp_path).params)
    before = params["layers"]["0"]["up"].unsafe_buffer_pointer()
    after = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)(params)
    assert after["layers"]["0"]["up"].unsafe_buffer_pointer() == before
