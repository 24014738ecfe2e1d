"""Sharding: the table decides where every array lives, and a name that is not in it is an error."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.sharding.batches import place_batch
from lm.sharding.mesh import make_mesh
from lm.sharding.rules import MESH_AXES, RULES, Layout, check_axes, spec
from lm.sharding.shardings import batch_sharding, shardings, shardings_like
from lm.sharding.tracing import constrain, use_mesh

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
ZERO = ("fsdp", "expert", "context")


def test_the_rules_name_axes_of_the_mesh() -> None:
    for axis, rule in RULES.items():
        assert set((rule,) if isinstance(rule, str) else rule or ()) <= set(MESH_AXES), axis


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("batch", "seq", "act_embed"), P(("replica", "data", "fsdp", "expert"), "context", None)),
        (("layers", "embed", "heads", "head_dim"), P(None, ZERO, "tensor", None)),
        (("layers", "experts", "embed", "mlp"), P(None, "expert", ("fsdp", "context"), "tensor")),
        (("vocab", "embed"), P("tensor", ZERO)),
        (("embed", "rank"), P(ZERO, None)),
        (("rank", "heads", "head_dim"), P(ZERO, "tensor", None)),
        (("batch", "embed"), P(("replica", "data", "fsdp", "expert"), "context")),  # a mesh axis serves one dimension
        (("mlp", "vocab"), P("tensor", None)),
        ((None, "norm"), P(None, None)),
    ],
)
def test_logical_axes_become_mesh_axes(axes: tuple[str | None, ...], expected: P) -> None:
    assert spec(axes) == expected


# ---------------------------------------------------------------- the mesh


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (None, (1, 8, 1, 1, 1, 1)),
        ({}, (1, 8, 1, 1, 1, 1)),
        ({"fsdp": 8}, (1, 1, 8, 1, 1, 1)),
        ({"tensor": 2, "data": 4}, (1, 4, 1, 1, 1, 2)),
        (MESH, (1, 2, 2, 1, 1, 2)),
        ({"context": 2, "expert": 2, "replica": 2}, (2, 1, 1, 2, 2, 1)),
    ],
)
def test_a_mesh_has_every_axis_and_every_device_once(shape: dict[str, int] | None, sizes: tuple[int, ...]) -> None:
    mesh = make_mesh(shape)
    assert mesh.axis_names == MESH_AXES and mesh.devices.shape == sizes
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


def test_a_mesh_of_some_devices() -> None:
    assert make_mesh({"fsdp": 2}, jax.devices()[2:4]).devices.ravel().tolist() == jax.devices()[2:4]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            {"dat": 8},
            r"mesh has no axis 'dat': did you mean data\? known: replica, data, fsdp, expert, context, tensor",
        ),
        ({"data": 3}, "mesh data 3 needs 3 devices, 8 are here: .* multiply to 8, for instance data=8"),
        (
            {"data": 4, "tensor": 4},
            "mesh data 4 x tensor 4 needs 16 devices, 8 are here: .*for instance data=2 tensor=4",
        ),
        ({"data": 0}, "mesh axis data=0: expected a whole number of devices, at least 1"),
        ({"data": -8}, "mesh axis data=-8"),
        ({"data": 2.0}, "mesh axis data=2.0"),
    ],
)
def test_a_mesh_that_cannot_be_says_why(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mesh(shape)


# ---------------------------------------------------------------- constraints


def lowered(*axes: str | None) -> str:
    """The StableHLO of a program that constrains a product."""
    x = jax.ShapeDtypeStruct((4, 6, 8), jnp.float32)
    return jax.jit(lambda x: constrain(x * 2, *axes) + 1).lower(x).as_text()


def test_constrain_is_in_the_program() -> None:
    with use_mesh(make_mesh(MESH)):
        text = lowered("batch", "seq", "vocab")
    constraint = re.search(r"sharding_constraint.*", text)
    assert constraint is not None
    assert '[{"replica", "data", "fsdp", "expert"}, {"context"}, {"tensor"}]' in constraint.group(0)


def test_constrain_moves_the_array() -> None:
    mesh = make_mesh(MESH)
    with use_mesh(mesh):
        y = jax.jit(lambda x: constrain(x * 2, "batch", "vocab"))(jnp.ones((8, 8)))
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), "tensor")), 2)
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 4)}


def test_constrain_does_nothing_without_a_mesh() -> None:
    assert "sharding_constraint" not in lowered("batch", "seq", "vocab")


def test_a_mistyped_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown logical axis 'head': did you mean heads"):
        lowered("batch", "seq", "head")
    with pytest.raises(ValueError, match=r"2 axes \('batch', 'seq'\) for an array of shape \(4, 6, 8\)"):
        lowered("batch", "seq")
    check_axes(("batch", None), (1, 2))


# ---------------------------------------------------------------- trees


PARAMS = {
    "layers": {
        "query": jax.ShapeDtypeStruct((3, 8, 4, 2), jnp.float32),
        "scale": jax.ShapeDtypeStruct((3, 8), jnp.float32),
    },
    "tokens": jax.ShapeDtypeStruct((6, 8), jnp.float32),
}
AXES = {
    "layers": {"query": ("layers", "embed", "heads", "head_dim"), "scale": ("layers", "norm")},
    "tokens": ("vocab", "embed"),
}


def test_a_dimension_that_does_not_divide_is_refused() -> None:
    odd = {"tokens": jax.ShapeDtypeStruct((5, 8), jnp.float32)}
    with pytest.raises(ValueError, match=r"'tokens'.* \(5, 8\): vocab 5 .* mesh tensor=2: .*replicated=\('vocab',\)"):
        shardings(odd, {"tokens": ("vocab", "embed")}, make_mesh(MESH))
    kept = shardings(odd, {"tokens": ("vocab", "embed")}, make_mesh(MESH), Layout(replicated=("vocab",)).rules)
    assert kept["tokens"].spec == P(None, ZERO)


def test_fewer_kv_heads_than_devices_are_whole_on_each() -> None:
    key = {"key": jax.ShapeDtypeStruct((8, 2, 4), jnp.float32)}
    mesh = make_mesh({"tensor": 8})
    assert shardings(key, {"key": ("embed", "kv_heads", "head_dim")}, mesh)["key"].spec == P(ZERO, None, None)


def test_like_places_moments_as_their_parameters() -> None:
    mesh = make_mesh(MESH)
    placed = shardings(PARAMS, AXES, mesh)
    state = jax.eval_shape(optax.chain(optax.clip(1.0), optax.adam(1e-3)).init, PARAMS)
    found = shardings_like({"opt": state, "ema": PARAMS}, PARAMS, placed, mesh)
    adam = found["opt"][1][0]
    assert adam.mu == placed and adam.nu == placed and found["ema"] == placed
    assert adam.count.spec == P()


def test_like_replicates_what_has_another_shape() -> None:
    mesh = make_mesh(MESH)
    factored = {"row": {"tokens": jax.ShapeDtypeStruct((8,), jnp.float32)}}
    assert shardings_like(factored, PARAMS, shardings(PARAMS, AXES, mesh), mesh)["row"]["tokens"].spec == P()


def test_a_batch_lies_over_data_and_fsdp() -> None:
    assert batch_sharding(make_mesh(MESH)).shard_shape((8, 6)) == (2, 6)


def test_a_batch_is_there_when_a_cpu_has_it() -> None:
    """A step that is called with what is still copied would be put behind others, each with its temporaries."""
    images = np.zeros((2**25 + 1,), np.uint8)[1:].reshape(8, -1)  # no array that JAX takes as it lies
    placed = place_batch({"images": images}, make_mesh())
    assert placed["images"].is_ready()
