"""MXFP4: the numbers of the specification, in each format's order; gpt-oss as published is what they say, and what does
not belong together is refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from certificates.mxfp4 import CASE, SAID, packed, write
from lm.pretrained import load
from lm.pretrained.files import Safetensors
from lm.pretrained.mxfp4 import MXFP4, unpack
from tests.pretrained.small import recorded


def number(code: int) -> float:
    """Four bits: sign, two of the exponent, one of the fraction (OCP Microscaling 1.0, section 5.3.3)."""
    sign, exponent, fraction = code >> 3, code >> 1 & 3, code & 1
    return (-1) ** sign * (0.5 * fraction if exponent == 0 else (1 + fraction / 2) * 2.0 ** (exponent - 1))


def test_every_number_with_its_scale() -> None:
    blocks = np.arange(16, dtype=np.uint8)[None] | (np.arange(16, dtype=np.uint8)[::-1] << 4)[None]
    for scale in (0, 100, 127, 128, 254):
        out = np.zeros((1, 32), np.float32)
        unpack(blocks, np.array([scale], np.uint8), out)
        pairs = [[number(i), number(15 - i)] for i in range(16)]  # the lower half first
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(out[0], np.float32(np.array(pairs).ravel() * 2.0 ** (scale - 127)))


def test_a_gguf_s_block_has_its_lower_halves_first() -> None:
    values = np.array([number(i % 16) for i in range(32)], np.float32)[None]
    stored = gguf.quants.quantize(values, GGMLQuantizationType.MXFP4)
    assert stored[0, 0] == 127
    np.testing.assert_array_equal(gguf.quants.dequantize(stored, GGMLQuantizationType.MXFP4), values)
    ours = np.zeros((1, 32), np.float32)
    unpack(stored[:, 1:], stored[:, 0], ours)
    np.testing.assert_array_equal(ours[0, ::2], values[0, :16])


def checkpoint(folder: Path, change: dict[str, np.ndarray | None] | None = None, **fields: Any) -> Path:
    """The certificate's packed checkpoint, with `change` of its tensors and other `fields` in its config."""
    known = recorded()["GptOssForCausalLM-5-experts--window-of-7"]
    wide = {"gate_up_proj": (5, 32, 128), "gate_up_proj_bias": (5, 128), "down_proj": (5, 64, 32)}
    shapes = {n: wide.get(n.rpartition(".")[2], tuple(shape)) for n, shape in known["tensors"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    config = {**known["config"], **CASE.fields, "quantization_config": SAID, **fields}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {**packed(shapes), **(change or {})}
    write(folder / "model.safetensors", {name: values for name, values in tensors.items() if values is not None})
    return folder


def test_a_packed_model_is_the_one_that_its_numbers_say(tmp_path: Path) -> None:
    """And saved again it is that of float32, with the bits of what was unpacked."""
    folder = checkpoint(tmp_path / "packed")
    model, source = load(folder), Safetensors(folder)
    assert model.summary.startswith("GptOssForCausalLM: ") and "stored as MXFP4 and F32; computed in" in model.summary
    name = "model.layers.1.mlp.experts.gate_up_proj"
    blocks, scales = source.read(name + "_blocks"), source.read(name + "_scales")
    expert, output, value = 3, 7, 21  # of the gate and up interleaved, the fourth of up
    byte = int(blocks[expert, output, 0, value // 2])
    wanted = number(byte >> 4 if value % 2 else byte & 15) * 2.0 ** (int(scales[expert, output, 0]) - 127)
    layer = model.params["layers"]["1"]
    assert layer["up"][0, expert, value, 3] == wanted
    model.save(tmp_path / "float32")
    assert "quantization_config" not in json.loads((tmp_path / "float32" / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "float32").params, model.params)


SCALES = "model.layers.0.mlp.experts.down_proj_scales"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({SCALES: None}, f"down_proj_blocks has no scales: expected a tensor {SCALES}"),
        (
            {SCALES: np.zeros((5, 32, 3), np.uint8)},
            r"with scales \[5, 32, 3\] of U8: expected bytes, 16 for each",
        ),
        ({SCALES: np.full((5, 32, 2), 255, np.uint8)}, f"{SCALES} has the scale 255, which is no number"),
    ],
)
def test_what_does_not_belong_together(change: dict[str, np.ndarray | None], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load(checkpoint(tmp_path, change))


def test_other_packings_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, quantization_config={"quant_method": "awq"})
    with pytest.raises(ValueError, match=r"quantization_config=.*awq.* is not supported: expected quant_method mxfp4"):
        load(folder)


def test_a_source_says_how_its_tensors_are_stored(tmp_path: Path) -> None:
    source = MXFP4(Safetensors(checkpoint(tmp_path)))
    assert {source.kind(name) for name in source} == {"MXFP4", "F32"}
    assert not any(name.endswith(("_blocks", "_scales")) for name in source)
