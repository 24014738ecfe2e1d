"""gpt-oss as it is published, its experts in MXFP4: our logits and greedy text against transformers', which unpacks it.

.venv-certificates/bin/python -m certificates.mxfp4 make FOLDER     a packed checkpoint, and what transformers gives
python -m certificates.mxfp4 ours FOLDER                            compare; exit code 1 where a line fails
"""

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

from certificates.cases import OSS, array, llama

CASE = llama("5 experts in MXFP4", "GptOssForCausalLM", **OSS | dict(intermediate_size=64))
PACKED = ("gate_up_proj", "down_proj")
SAID = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.embed_tokens", "lm_head"],
}


def packed(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of CASE, of `shapes`, with the experts' matrices as random blocks and scales."""
    found = {}
    for name, shape in shapes.items():
        if not name.endswith(PACKED):
            found[name] = array(name, shape)
            continue
        experts, rows, columns = shape
        rng = np.random.default_rng(len(name) + columns)
        found[name + "_blocks"] = rng.integers(0, 256, (experts, columns, rows // 32, 16), np.uint8)
        found[name + "_scales"] = rng.integers(121, 126, (experts, columns, rows // 32), np.uint8)
    return found


def write(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write `tensors` as one safetensors file."""
    header, start = dict[str, Any](__metadata__={"format": "pt"}), 0
    for name, values in tensors.items():
        dtype, end = {"uint8": "U8", "float32": "F32"}[str(values.dtype)], start + values.nbytes
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [start, end]}
        start = end
    data = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(data)) + data + b"".join(a.tobytes() for a in tensors.values()))


def make(folder: Path) -> None:
    """The checkpoint, and what transformers gives."""
    import torch
    import transformers

    from certificates import reference

    model = transformers.GptOssForCausalLM(reference.config(CASE))
    shapes = {name: tuple(w.shape) for name, w in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text()) | {"architectures": [CASE.architecture]}
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": SAID}))
    write(folder / "model.safetensors", packed(shapes))
    how = transformers.Mxfp4Config(dequantize=True)
    model = transformers.GptOssForCausalLM.from_pretrained(
        folder, quantization_config=how, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    given = {"logits": reference.logits(model, CASE), "greedy": reference.greedy(model, CASE)}
    np.savez(folder / "reference.npz", **given)


def ours(folder: Path) -> int:
    """Print the line, and whether it holds."""
    from certificates.ours import LIMIT, compare

    found = compare(CASE, folder)
    print(CASE.architecture, CASE.shape, found)
    return 0 if float(str(found["difference"])) <= LIMIT and all(v is not False for v in found.values()) else 1


def main(verb: str, folder: str) -> int:
    """Run `make` or `ours`."""
    return make(Path(folder)) or 0 if verb == "make" else ours(Path(folder))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
