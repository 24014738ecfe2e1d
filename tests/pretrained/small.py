"""The certificates' small checkpoints without transformers: the values are ours, what they give is recorded."""

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

from certificates.cases import CASES, Case, array
from lm.pretrained.files import TensorToWrite, write

RECORDED = Path(__file__).parent / "recorded.json"  # by certificates/reference.py
BY_NAME = {case.name: case for case in CASES}
LLAMA = "LlamaForCausalLM-grouped--head-size-20--tied"
BERT = "BertForMaskedLM-output"
T5 = "T5ForConditionalGeneration-1-1--3-encoder-layers"


@cache
def recorded() -> dict[str, Any]:
    """What transformers gave for each case."""
    return dict(json.loads(RECORDED.read_text()))


def checkpoint(case: Case, folder: Path, shard_bytes: int = 1 << 40, **fields: Any) -> Path:
    """The model directory of `case` in `folder`, with other `fields` in its config (None: without it)."""
    known = recorded()[case.name]
    folder.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in {**known["config"], **fields}.items() if fields.get(k, 0) is not None}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {name: tuple(shape) for name, shape in known["tensors"].items()}
    write(folder, [TensorToWrite(n, s, partial(array, n, s)) for n, s in shapes.items()], shard_bytes)
    return folder
