"""FP8 in blocks with scales: the numbers of e4m3, also where a size is no multiple of a block; what does not belong
together is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from certificates.cases import array
from lm.pretrained import load
from lm.pretrained.files import Safetensors
from lm.pretrained.fp8 import FP8, block_of, unscale
from tests.pretrained.small import recorded

CASE = "DeepseekV3ForCausalLM-low-rank-queries--one-group--weights-as-they-are--YaRN"
BLOCK = (16, 8)  # of which the sizes 56, 28, 20, 14 and 10 are no multiples
SAID = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": list(BLOCK)}
QUERY, WHOLE = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight", ("norm.weight", "gate.weight", "_bias")
KINDS = {"float8_e4m3fn": "F8_E4M3", "float32": "F32", "float16": "F16"}


def number(code: int) -> float:
    """Eight bits: sign, four of the exponent, three of the fraction; no infinity (2209.05433, table 1)."""
    sign, exponent, fraction = code >> 7, code >> 3 & 15, code & 7
    if exponent == 15 and fraction == 7:
        return float("nan")
    return (-1) ** sign * (fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7))


def is_packed(name: str) -> bool:
    return name.endswith("_proj.weight") or "_proj_with_mqa" in name


def packed(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random numbers and scales in place of products' matrices, as the published model has them."""
    found = {}
    for name, shape in shapes.items():
        if not is_packed(name):
            found[name] = array(name, shape)
            continue
        rng = np.random.default_rng(len(name) + shape[0])
        found[name] = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
        blocks = [-(-size // n) for size, n in zip(shape, BLOCK, strict=True)]
        found[f"{name}_scale_inv"] = rng.uniform(0.1, 0.5, blocks).astype(np.float32)
    return found


def write(file: Path, tensors: dict[str, np.ndarray]) -> None:
    header, start = dict[str, Any](__metadata__={"format": "pt"}), 0
    for name, values in tensors.items():
        end = start + values.nbytes
        header[name] = {"dtype": KINDS[str(values.dtype)], "shape": list(values.shape), "data_offsets": [start, end]}
        start = end
    data = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data + b"".join(a.tobytes() for a in tensors.values()))


def checkpoint(folder: Path, change: dict[str, np.ndarray | None] | None = None, **said: Any) -> Path:
    """The certificate's model in FP8, with `change` of its tensors and `said` in its quantization_config."""
    known = recorded()[CASE]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**known["config"], "quantization_config": {**SAID, **said}}))
    tensors = {**packed({name: tuple(shape) for name, shape in known["tensors"].items()}), **(change or {})}
    write(folder / "model.safetensors", {name: values for name, values in tensors.items() if values is not None})
    return folder


def test_every_number_times_the_scale_of_its_block() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(values.astype(np.float32), np.float32([number(int(code)) for code in codes]))
    rng = np.random.default_rng(0)
    for shape in ((3, 5), (4, 6), (9, 13), (8, 12)):
        numbers = rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)
        scales = rng.standard_normal([-(-shape[0] // 4), -(-shape[1] // 6)]).astype(np.float32)
        out = np.full(shape, np.nan, np.float32)
        unscale(numbers, scales, (4, 6), out)
        wanted = [[float(numbers[i, j]) * scales[i // 4, j // 6] for j in range(shape[1])] for i in range(shape[0])]
        np.testing.assert_array_equal(out, np.float32(wanted))


def test_a_model_in_fp8_is_the_one_that_its_numbers_say(tmp_path: Path) -> None:
    """And saved again it is that of float32, with the bits of what was read."""
    folder = checkpoint(tmp_path / "fp8")
    model, source = load(folder), Safetensors(folder)
    assert "stored as FP8 and F32" in model.summary or "stored as F32 and FP8" in model.summary
    numbers, scales = source.read(QUERY), source.read(f"{QUERY}_scale_inv")
    assert numbers.shape == (28, 32) and scales.shape == (2, 4)
    layer = model.params["layers"]["0"]
    for row, column in ((0, 0), (15, 31), (16, 7), (19, 8)):  # of the latent's 20; the others are rotated pairs
        assert layer["kv_down"][1, column, row] == np.float32(numbers[row, column]) * scales[row // 16, column // 8]
    model.save(tmp_path / "float32")
    assert "quantization_config" not in json.loads((tmp_path / "float32" / "config.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "float32").params, model.params)


SCALES = f"{QUERY}_scale_inv"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({SCALES: None}, rf"tensor {QUERY} is F8_E4M3 and has no scales: expected a tensor {SCALES}"),
        ({SCALES: np.ones((2, 5), np.float32)}, r"has shape \[28, 32\] with scales \[2, 5\] of F32: expected a matrix"),
        ({SCALES: np.ones((2, 4), np.float16)}, r"with scales \[2, 4\] of F16: expected a matrix, and a scale of F32"),
        ({SCALES: np.full((2, 4), np.inf, np.float32)}, rf"tensor {SCALES} has a scale that is not finite"),
        ({QUERY: np.ones((28, 32), np.float32)}, rf"tensor {SCALES} is unexpected"),
    ],
)
def test_what_does_not_belong_together_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load(checkpoint(tmp_path, change))


@pytest.mark.parametrize(
    "said", [dict(fmt="e5m2"), dict(weight_block_size=None), dict(weight_block_size=[128]), dict(scale_fmt="ue8m0")]
)
def test_other_forms_are_refused(said: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json: quantization_config=.* is not supported: expected quant_method"):
        load(checkpoint(tmp_path, **said))


def test_only_what_says_so_is_in_fp8(tmp_path: Path) -> None:
    assert block_of({}, tmp_path) is block_of({"quantization_config": {"quant_method": "mxfp4"}}, tmp_path) is None
    folder = checkpoint(tmp_path)
    source = FP8(Safetensors(folder), BLOCK)
    assert SCALES not in list(source) and QUERY in list(source)
    assert source.kind(QUERY) == "FP8" and source.kind("lm_head.weight") == "F32"
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is F8_E4M3, and its config.json does not say in which blocks it is scaled"):
        load(folder)
