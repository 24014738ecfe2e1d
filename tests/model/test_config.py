"""What a model or its computation cannot be, it says, with the cure."""

from dataclasses import replace
from typing import Any

import pytest

from lm.model.attention import Attention
from lm.model.compute import Compute
from lm.model.families import gpt, llama
from lm.model.positions import Learned
from tests.model.reference import GPT, LLAMA


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab": 0}, "model.vocab=0: expected at least 1"),
        ({"layers": 0}, "model.layers=0: expected at least 1"),
        ({"width": -4}, "model.width=-4: expected at least 1"),
        ({"context": 0}, "model.context=0: expected at least 1"),
        ({"dropout": 1.0}, "model.dropout=1.0: expected at least 0 and less than 1"),
        ({"dropout": -0.1}, "model.dropout=-0.1"),
        ({"attention": Attention(heads=4, head_dim=5)}, "attention.head_dim=5 is odd, try 6"),
    ],
)
def test_a_model_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LLAMA, **fields)


def test_the_families_choose_what_their_papers_say() -> None:
    assert (GPT.tied, LLAMA.tied) == (True, False)
    assert GPT.ffn.mlp == 4 * GPT.width and GPT.attention.bias and not LLAMA.attention.bias
    assert LLAMA.ffn.gated and LLAMA.attention.kv == 2 and GPT.attention.kv == 3
    assert llama(vocab=8, layers=1, width=8, heads=2, mlp=8, context=8, positions=Learned()).positions == Learned()


@pytest.mark.parametrize("heads", [5, 0])
def test_a_width_that_heads_do_not_divide(heads: int) -> None:
    with pytest.raises(ValueError, match=f"width=12 is not a multiple of heads={heads}: try heads=") as error:
        gpt(vocab=8, layers=1, width=12, heads=heads, context=8)
    proposed = str(error.value).rpartition("heads=")[2].split(" or ")
    assert all(12 % int(h) == 0 for h in proposed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float16"}, "compute.dtype='float16': expected auto, float32 or bfloat16"),
        ({"matmul": "tf32"}, "compute.matmul='tf32': expected auto, float32 or bfloat16"),
        ({"attention": "blockd"}, "compute.attention='blockd': did you mean blocked"),
        ({"remat": "dot"}, "compute.remat='dot': did you mean dots"),
        ({"flat": "maybe"}, "compute.flat='maybe': expected auto, yes or no"),
        ({"block": 0}, "compute.block=0: expected at least 1"),
        ({"unroll": -2}, "compute.unroll=-2: expected at least -1"),
        ({"loss_chunk": -1}, "compute.loss_chunk=-1: expected at least 0"),
        ({"devices": -1}, "compute.devices=-1: expected at least 0"),
    ],
)
def test_a_computation_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compute(**fields)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_resolve_leaves_no_auto_and_what_was_said(backend: str) -> None:
    resolved = Compute().resolve(backend)
    assert "auto" not in vars(replace(resolved, gradients="float32")).values() and resolved.unroll >= 0
    assert resolved.resolve(backend) == resolved
    said = Compute(dtype="bfloat16", matmul="float32", attention="plain", flat="no", unroll=3, backend="gpu")
    assert said.resolve(backend) == said
    assert resolved.dtype == ("float32" if backend == "cpu" else "bfloat16")
