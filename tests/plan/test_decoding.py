"""Plans of decoding: what is sharded how, what is refused, and what the compiler makes of a step."""

import dataclasses
import importlib.util
import math
from typing import Any

import jax
import pytest

from experiments.llama import llama3_8b, llama3_70b
from experiments.mixtral import mixtral_8x7b
from lm.model.families import llama
from lm.plan import decoding
from lm.plan.decoding import Serving, default_mesh, device_bytes
from lm.plan.topology import parse_topology

SMALL = llama(vocab=512, layers=2, width=256, heads=4, kv_heads=2, mlp=512, context=512)
V5E = parse_topology("v5e:2x2")


@pytest.mark.parametrize(
    ("model", "devices", "slices", "mesh"),
    [
        (llama3_8b, 8, 1, dict(tensor=8)),
        (llama3_8b, 16, 1, dict(fsdp=2, tensor=8)),
        (llama3_70b, 16, 1, dict(fsdp=2, tensor=8)),
        (mixtral_8x7b, 32, 1, dict(expert=4, tensor=8)),
        (llama3_8b, 16, 2, dict(replica=2, tensor=8)),
        (dataclasses.replace(SMALL, width=255), 4, 1, dict(data=2, tensor=2)),
        (SMALL, 1, 1, dict(data=1)),
    ],
)
def test_the_mesh_splits_what_a_step_reads(model: Any, devices: int, slices: int, mesh: dict[str, int]) -> None:
    assert default_mesh(model, devices, slices) == mesh


@pytest.mark.parametrize("weights", ["bfloat16", "float32"])
def test_a_device_has_its_share(weights: str) -> None:
    """Of Llama 3 70B on 16 devices: a sixteenth of all matrices, and of the cache of 80 layers, 8 heads of 128, keys
    and values, in bfloat16."""
    serving = Serving("llama3_70b", llama3_70b, dict(fsdp=2, tensor=8), 32, 2048, weights)
    params, state = (f(serving.abstract_mesh) for f in (serving.parameters, serving.decoding))
    bytes_each = 2 if weights == "bfloat16" else 4
    total = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    norms = (2 * 80 + 1) * 8192  # on every device
    assert device_bytes(params) == ((total - norms) / 16 + norms) * bytes_each and total > 70e9
    assert device_bytes(state.cache) == 32 * 2048 * 80 * 8 * 128 * 2 * 2 / 16 + 32 / 2 * 4


def test_an_analytic_plan_is_bound_by_what_is_read() -> None:
    serving = Serving("llama3_8b", llama3_8b, dict(tensor=8), 32, 2048)
    decoding.check(serving)
    plan, program = decoding.plan(serving, parse_topology("v5e:2x4"), analytic=True)
    floor = (8.03e9 - 128256 * 4096) * 2 / 8 + 32 * 2048 * 32 * 8 * 128 * 2 * 2 / 8
    assert not program and plan.fits and plan.bottleneck == "memory bandwidth"
    assert plan.read == pytest.approx(floor, rel=0.01) and floor / 819e9 < plan.step.seconds[1] < 1.4 * floor / 819e9
    assert plan.tokens_per_second == 32 / plan.step.seconds[1] and 0.7 < plan.utilisation < 1
    assert plan.peak == plan.parameters + plan.cache * 33 / 32
    assert plan.as_data()["step"]["tokens"] == 32 and plan.as_data()["prefill"]["tokens"] == 2048


def test_a_prefill_is_of_as_many_rows_as_the_mesh_splits() -> None:
    assert Serving("small", SMALL, dict(data=2, tensor=2), 32, 128).prompts == 2
    assert Serving("small", SMALL, dict(data=2, tensor=2), 1, 128).prompts == 1
    assert Serving("small", SMALL, dict(fsdp=2, tensor=2), 32, 128).prompts == 1  # weights stay where they are
    assert Serving("small", SMALL, dict(fsdp=2, tensor=2), 32, 129).prompts == 2  # they are gathered


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install -e ".[tpu]"'
)
@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(tensor=2, fsdp=2), dict(data=4)], ids=str)
def test_a_compiled_step_copies_and_gathers_nothing_large(mesh: dict[str, int]) -> None:
    """The cache is donated and written in place, and no parameters are gathered."""
    long = llama(vocab=512, layers=2, width=512, heads=4, kv_heads=2, mlp=512, context=8192)
    serving = Serving("small", long, mesh, 64, 8192)  # a cache that is larger than a core's own memory
    plan, program = decoding.plan(serving, V5E, analytic=False)
    memory, _ = decoding.compile_program(decoding.lower_step, serving, mesh, V5E)
    assert memory.alias >= plan.cache and program and not plan.step.unknown
    matrices = [x for x in jax.tree.leaves(serving.parameters(serving.abstract_mesh)) if len(x.shape) > 1]
    least = min(math.prod(x.shape) * x.dtype.itemsize for x in matrices)
    assert all(c.bytes < least for c in plan.step.collectives if c.kind == "all-gather")
    assert (
        0.95 * plan.read < plan.moved < 1.5 * plan.read and plan.step.seconds[0] >= plan.moved / plan.bandwidth * 0.999
    )
