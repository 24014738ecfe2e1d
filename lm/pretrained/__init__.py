"""Loading published models and runs of ours, and exporting them.

    model = load("directory")    # a Hugging Face model directory, a GGUF file, or a run's folder
    model.generate("The capital of France is")
    model.save("another")        # a model directory
    model.save_gguf("model.gguf")

published.py     a published model before it is loaded; runs.py a run's
model.py         a loaded model; save.py exports it, score.py evaluates it on a text, fill.py fills gaps with it
checkpoint.py    a checkpoint, opened but not loaded; placement.py loads it onto devices, shard by shard
rows.py          the mapping from their tensors to ours; tables in llama.py, gemma.py, gpt2.py, t5.py, bert.py, ...
architecture.py  what a table belongs to; classifiers.py those of classes; known.py lists them
classify.py      texts under a model of scores; labels.py what scores are called, passes.py compiled batches
fields.py        strict reading of config.json; rope.py its rotary part
peft.py          adapters in PEFT's layout, read; peft_save.py writes those of a run
files.py         safetensors; gguf.py GGUF, which gguf_save.py writes
"""

from dataclasses import replace
from pathlib import Path

from jax.sharding import Mesh

from lm.decode.layout import check_weights
from lm.machine import buckets
from lm.model.config import ModelConfig
from lm.pretrained.model import Pretrained
from lm.pretrained.peft import with_adapter
from lm.pretrained.published import Published
from lm.pretrained.runs import FinishedRun, is_run, read_experiment

__all__ = ["Pretrained", "is_run", "load", "open_model", "read_config", "read_experiment"]


def load(
    path: str | Path,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    adapter: str | Path = "",
    weights: str = "float32",
    step: str = "last",
) -> Pretrained:
    """The model at `path`.

    Args:
      path: a Hugging Face directory, a GGUF file, or a run's folder (also the URL of one). A run is computed as in its
        experiment; its adapters are merged into the matrices that they adapt.
      mesh: over which a published model is sharded; None: one device.
      dtype: in which a published model is computed, float32 or bfloat16; its parameters are float32.
      adapter: a folder of one in PEFT's layout (peft.py), merged too.
      weights: by which it decodes text on a CPU, float32, bfloat16 or int8 (lm/decode/layout.py).
      step: of a run: its newest checkpoint ("last"), the "best", or that of a step.

    Raises ValueError, naming file and tensor or field, for anything that is missing, damaged or not supported; a pickle
    is never opened."""
    check_weights(weights)
    source = open_model(path, step)
    if weights != "float32" and not source.config.causal:
        raise ValueError(f"weights={weights!r} are to decode by, and this model is an encoder: leave them out")
    model = replace(source.load(mesh, dtype), weights=weights)
    return with_adapter(model, buckets.local_mirror(adapter)) if adapter else model


def open_model(path: str | Path, step: str = "last") -> Published | FinishedRun:
    """The model at `path` before it is loaded. Raises ValueError as `load`."""
    path = buckets.local_mirror(path)
    if is_run(path):
        return FinishedRun(path, read_experiment(path), step)
    if step != "last":
        raise ValueError(f"--step {step}: {path} is no run, and has no checkpoints: leave it out")
    return Published.open(path)


def read_config(path: str | Path) -> ModelConfig:
    """The config of the model at `path`; no tensor is read. Raises ValueError as `load`."""
    return open_model(path).config
