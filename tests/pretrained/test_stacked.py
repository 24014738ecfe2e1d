"""Experts that a file has stacked are read as those of a file with a tensor for each."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.pretrained import load
from lm.pretrained.files import Safetensors, TensorToWrite, write
from lm.pretrained.stacked import apart
from tests.pretrained.small import BY_NAME, checkpoint

CASE = "Qwen3-5MoeForCausalLM-5-experts-and-a-shared-one"
E = 5


def stacked(folder: Path) -> Path:
    """The same model with its experts stacked, as the hub has it."""
    source = Safetensors(folder)
    out: dict[str, np.ndarray] = {name: source.read(name) for name in source if ".experts." not in name}
    for at in {name.split(".experts.")[0] for name in source if ".experts." in name}:
        own = [{n: source.read(f"{at}.experts.{e}.{n}_proj.weight") for n in ("gate", "up", "down")} for e in range(E)]
        out[f"{at}.experts.gate_up_proj"] = np.stack([np.concatenate([one["gate"], one["up"]]) for one in own])
        out[f"{at}.experts.down_proj"] = np.stack([one["down"] for one in own])
    new = folder.parent / "stacked"
    new.mkdir()
    (new / "config.json").write_text((folder / "config.json").read_text())
    write(new, [TensorToWrite(n, a.shape, partial(np.asarray, a)) for n, a in out.items()], 1 << 40)
    return new


def test_stacked_experts_are_the_same_model(tmp_path: Path) -> None:
    folder = checkpoint(BY_NAME[CASE], tmp_path / "apart")
    a, b = load(folder), load(stacked(folder))
    assert a.config == b.config
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_a_stack_of_another_shape_is_refused(tmp_path: Path) -> None:
    shape = (3, 5, 4)
    array_ = np.zeros(shape, np.float32)
    write(tmp_path, [TensorToWrite("a.experts.gate_up_proj", shape, lambda: array_)], 1 << 40)
    with pytest.raises(ValueError, match=r"gate_up_proj has shape \[3, 5, 4\]: expected matrices of several experts"):
        apart(Safetensors(tmp_path))
