"""The border where an experiment meets a mesh: what cannot be is told with the nearest that can."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data.mixture import Data, Mixture
from lm.data.source import TextFolder
from lm.experiment import Experiment
from lm.legal import check_mesh, divisors
from lm.model.families import deepseek_v2, llama, mixtral
from lm.sharding.mesh import make_mesh
from lm.sharding.rules import Layout
from lm.text.tokenizer import Bytes

DENSE = Experiment(
    name="dense",
    model=llama(vocab=258, layers=2, width=48, heads=12, kv_heads=4, mlp=96, context=32),
    data=Data(mixture=Mixture(sources={"a": TextFolder("a")}, weights={"a": 1.0}), tokenizer=Bytes()),
    steps=1,
    batch_tokens=24 * 32,
)
SPARSE = DENSE.replace(
    model=mixtral(vocab=256, layers=2, width=48, heads=12, kv_heads=4, mlp=96, context=32, experts=6, top_k=2)
)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (
            {"tensor": 8},
            r"vocab=258 .* mesh tensor=8: try tensor=1 or tensor=2 or .*=256 or .*=264, .*replicated=",
        ),
        (
            {"fsdp": 16},
            r"24 rows a micro-batch \(batch_tokens=768\) .* mesh fsdp=16: try fsdp=4 or fsdp=8 or .*=512 or .*=1024",
        ),
        (
            {"context": 3},
            r"rows of 32 tokens .* mesh context=3 in shares of a multiple of 2: try context=1",
        ),
        (
            {"context": 32},
            r"seq_len=32.* context=32 in shares .* of 2: try context=8 or context=16 or seq_len=64",
        ),
        ({"expert": 2}, "expert=2: this model has no experts"),
        ({"data": 3, "replica": 3}, r"24 rows .* over mesh replica=3 x data=3 = 9 devices"),
        (
            {"context": 8, "fsdp": 4},
            r"model.width=48 .* fsdp=4 x context=8 = 32 devices: try .* or model.width=32",
        ),
    ],
    ids=str,
)
def test_what_does_not_divide(mesh: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mesh(DENSE, mesh)


def test_heads_and_experts() -> None:
    with pytest.raises(ValueError, match=r"attention.heads=12 .* tensor=8: try tensor=2 or tensor=4 or .*=8 or"):
        check_mesh(DENSE.replace(model=dict(vocab=256)), {"tensor": 8})
    with pytest.raises(ValueError, match=r"ffn.experts=6 .* expert=4: try expert=1 or expert=2 or .*=4 or .*=8"):
        check_mesh(SPARSE, {"expert": 4})
    with pytest.raises(ValueError, match=r"attention.kv_heads=4 .* tensor=6: try tensor=1 or tensor=2 or"):
        check_mesh(SPARSE.replace(model=dict(vocab=258)), {"tensor": 6})


LATENT = DENSE.replace(
    model=deepseek_v2(
        vocab=256, layers=2, width=48, heads=12, mlp=96, context=32, kv_lora_rank=20, q_lora_rank=24, v_head_dim=8
    )
)


def test_ranks() -> None:
    with pytest.raises(ValueError, match=r"attention.heads=12 cannot be divided over mesh tensor=8"):
        check_mesh(LATENT, {"tensor": 8})
    said = r"attention.kv_lora_rank=20 .* fsdp=8: try fsdp=2 or fsdp=4 or .*=16 or .*=24, or .*replicated=\('rank',\)"
    with pytest.raises(ValueError, match=said):
        check_mesh(LATENT, {"fsdp": 8})
    with pytest.raises(ValueError, match=r"attention.q_lora_rank=24 .* data=16"):
        check_mesh(
            LATENT.replace(
                layout=Layout(zero_stage=1), batch_tokens=48 * 32, model=dict(attention=dict(kv_lora_rank=16))
            ),
            {"data": 16},
        )
    check_mesh(LATENT.replace(layout=Layout(replicated=("rank",))), {"fsdp": 8})
    check_mesh(LATENT, {"fsdp": 4, "tensor": 4})


@pytest.mark.parametrize(
    ("experiment", "mesh"),
    [
        (DENSE, {"tensor": 2, "fsdp": 4}),
        (DENSE.replace(layout=Layout(replicated=("vocab",))), {"tensor": 12}),  # three devices share a kv head
        (DENSE, {"context": 16}),
        (SPARSE, {"expert": 6, "tensor": 4}),
        (SPARSE, {"replica": 2, "data": 3, "fsdp": 4}),
    ],
    ids=str,
)
def test_what_divides(experiment: Experiment, mesh: dict[str, int]) -> None:
    check_mesh(experiment, mesh)


@pytest.mark.parametrize(
    ("layout", "mesh", "message"),
    [
        (dict(zero_stage=2), {}, r"layout.zero_stage=2: expected 3 .* or 1"),
        (dict(replicated=("vocabulary",)), {}, "layout.replicated: unknown logical axis 'vocabulary'"),
        (dict(sequence_parallel=True), {"fsdp": 8}, "layout.sequence_parallel=True .* tensor, which is 1"),
        (dict(zero_stage=1), {"data": 32}, r"24 rows"),
    ],
    ids=str,
)
def test_layouts(layout: dict[str, Any], mesh: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mesh(DENSE.replace(layout=layout), mesh)


class Chip:
    """A device of a slice."""

    platform = "tpu"

    def __init__(self, number: int, of_a_slice: int):
        self.id, self.process_index, self.slice_index = number, 0, number // of_a_slice
        self.device_kind, self.coords, self.core_on_chip = "TPU v5p", (number % of_a_slice, 0, 0), 0

    def __repr__(self) -> str:
        return f"{self.slice_index}.{self.id}"


def test_replicas_are_slices() -> None:
    chips: Any = [Chip(n, 4) for n in range(8)]
    mesh = make_mesh({"replica": 2, "fsdp": 4}, chips)
    assert [{d.slice_index for d in row.flat} for row in mesh.devices] == [{0}, {1}]
    assert make_mesh(None, chips).shape["replica"] == 2
    with pytest.raises(ValueError, match="replica=1: these 8 devices are in 2 slices.*set replica to 2 or a multiple"):
        make_mesh({"fsdp": 8}, chips)


@given(st.integers(1, 5000))
def test_divisors(number: int) -> None:
    assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]
