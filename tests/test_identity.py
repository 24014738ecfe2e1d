"""A part of the matrix of tests/identity.py, and what the program says of it before it is compiled."""

import re
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from lm.sharding.batches import place_batch
from lm.sharding.mesh import make_mesh
from lm.train.step import init_state
from tests.identity import TOLERANCE, alone, batch, begun, families, matrix, run

PART: tuple[tuple[str, dict[str, int], dict[str, Any]], ...] = (
    ("gpt", {"replica": 2, "fsdp": 4}, {}),
    ("llama", {"context": 2, "tensor": 2, "data": 2}, dict(sequence_parallel=True)),
    ("llama", {"fsdp": 4, "data": 2}, dict(zero_stage=1, offload_optimizer=True)),
    ("mixtral", {"expert": 2, "tensor": 2, "context": 2}, {}),
    ("latent", {"fsdp": 4, "tensor": 2}, {}),
    ("latent", {"context": 2, "tensor": 2, "data": 2}, {}),
    ("t5", {"context": 2, "fsdp": 4}, {}),
    ("bert", {"context": 8}, {}),
    ("gated deltanet", {"tensor": 2, "fsdp": 4}, {}),
    ("multi-token", {"context": 2, "tensor": 2, "data": 2}, {}),
    ("multi-token", {"fsdp": 8}, {}),
    ("gemma4", {"expert": 2, "fsdp": 2, "tensor": 2}, {}),
)


SLOW = [("latent", {"context": 2, "tensor": 2, "data": 2}, {}), ("multi-token", {"fsdp": 8}, {})]  # of a family twice
CELLS = [pytest.param(*cell, marks=pytest.mark.slow) if cell in SLOW else cell for cell in PART]


@cache
def ran(cell: int) -> Any:
    """What `run` gives of a cell of PART."""
    family, mesh, layout = PART[cell]
    return run(family, mesh, **layout)


@pytest.mark.parametrize(("family", "mesh", "layout"), CELLS, ids=str)
def test_the_losses_are_those_of_one_device(family: str, mesh: dict[str, int], layout: dict[str, Any]) -> None:
    losses, _, state = ran(PART.index((family, mesh, layout)))
    np.testing.assert_allclose(losses, alone(family), rtol=TOLERANCE)
    split = [
        {axis for entry in a.sharding.spec if entry for axis in ((entry,) if isinstance(entry, str) else entry)}
        for a in (state.params["layers"]["0"]["query"], state.opt_state[1][0].mu["layers"]["0"]["query"])
    ]
    if layout.get("zero_stage") == 1:
        assert "fsdp" not in split[0] and {"fsdp", "data"} <= split[1]
    else:
        assert split[0] == split[1] and {"fsdp", "context", "tensor"} <= split[0]
    on_host = layout.get("offload_optimizer", False)
    assert {a.sharding.memory_kind == "pinned_host" for a in jax.tree.leaves(state.opt_state) if a.ndim} == {on_host}


# of the other families' parameters, those of these have every kind
DRAWN = ("latent", "t5", "bert", "gated deltanet", "multi-token", "gemma4")


@pytest.mark.parametrize("family", DRAWN)
def test_a_mesh_draws_the_state_of_one_device(family: str) -> None:
    """From which `run` begins on every mesh."""
    learner, chain, first = begun(family)
    drawn = init_state(learner, chain, make_mesh({"expert": 2, "fsdp": 2, "tensor": 2}), 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(drawn), first)


def test_the_part_is_of_the_matrix() -> None:
    assert all(cell in matrix(list(families())) for cell in PART)


def lowered(family: str, mesh: dict[str, int], **layout: Any) -> str:
    """The StableHLO of the step of a cell of PART."""
    _, step, state = ran(PART.index((family, mesh, layout)))
    return step.lower(state, place_batch(batch(families()[family][0], 0), make_mesh(mesh))).as_text()


def constraints(text: str) -> set[str]:
    """Less the axes that are not in the meshes here."""
    found = re.findall(r"sharding_constraint %\S+ <@mesh, (.*)", text)
    return {re.sub(r'"(replica|data|expert)"(, )?', "", one).replace(", }", "}") for one in found}


def test_the_program_has_its_constraints() -> None:
    text = lowered("llama", {"context": 2, "tensor": 2, "data": 2}, sequence_parallel=True)
    found = constraints(text)
    assert '[{"fsdp"}, {"context", "tensor"}, {}]> : tensor<8x32x16xf32>' in found  # the residual stream
    assert '[{"fsdp"}, {"context"}, {"tensor"}, {}]> : tensor<8x32x8x2xf32>' in found  # queries
    assert '[{}, {"fsdp", "context"}, {"tensor"}, {}]> : tensor<2x16x8x2xf32>' in found  # a gradient
    # the keys of the other half of the sequence, and their gradients' way back
    assert re.search(r"all_gather.*all_gather_dim = 1.*tensor<4x16x1x2xf32>\) -> tensor<4x32x1x2xf32>", text)
    assert re.search(r"reduce_scatter.*scatter_dimension = 1", text)


def test_tokens_go_to_experts_and_experts_stay() -> None:
    text = lowered("mixtral", {"expert": 2, "tensor": 2, "context": 2})
    assert re.search(r'manual_computation.*\[\{"expert"\}, \{"fsdp", "context"\}, \{"tensor"\}\]', text)
    assert re.search(r"all_gather.*all_gather_dim = 0.*tensor<4x16x16xf32>\) -> tensor<8x16x16xf32>", text)
    assert re.search(r"reduce_scatter.*scatter_dimension = 0", text)
    assert not re.search(r"all_gather.*-> tensor<4x\d+x\d+xf32>", text)  # the weights of all experts
