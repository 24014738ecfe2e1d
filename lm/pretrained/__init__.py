"""Loading published models and runs of ours, and exporting them.

    model = load("directory")    # a Hugging Face model directory, a GGUF file, or a run's folder
    model.generate("The capital of France is")
    model.save("another")        # a model directory
    model.save_gguf("model.gguf")

model.py         a loaded model; save.py exports it, score.py evaluates it on a text, fill.py fills gaps with it
checkpoint.py    a checkpoint, opened but not loaded; placement.py loads it onto devices, shard by shard
rows.py          the mapping from their tensors to ours; tables in llama.py, gemma.py, gpt2.py, t5.py, bert.py
architecture.py  what a table belongs to; known.py lists them
fields.py        strict reading of config.json; rope.py its rotary part
files.py         safetensors; gguf.py GGUF, which gguf_save.py writes
"""

import json
import warnings
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lm import value
from lm.data.objective import objective_context
from lm.experiment import Experiment
from lm.machine import buckets
from lm.model.compute import Compute
from lm.model.transformer import Transformer
from lm.pretrained.checkpoint import Checkpoint, open_checkpoint
from lm.pretrained.fields import read_json
from lm.pretrained.files import refuse_pickle
from lm.pretrained.model import IDS, Pretrained
from lm.pretrained.placement import place_params
from lm.text.files import TEKKEN, TEKKEN_CURE, from_directory
from lm.text.gguf import NO_VOCABULARY, from_gguf
from lm.text.tokenizer import Tokenizer, load_tokenizer
from lm.train.checkpoint import Checkpoints

__all__ = ["Pretrained", "is_run", "load", "read_experiment"]


def load(path: str | Path, mesh: Mesh | None = None, dtype: str = "float32") -> Pretrained:
    """The model at `path`: a Hugging Face directory, a GGUF file, or a run's folder (also the URL of one).

    A published model is computed in `dtype` (float32 or bfloat16; its parameters are float32) and sharded over `mesh`,
    or on one device. A run is computed as in its experiment. Raises ValueError, naming file and tensor or field, for
    anything that is missing, damaged or not supported; a pickle is never opened."""
    path = buckets.local_mirror(path)
    if is_run(path):
        return _load_run(path)
    checkpoint = open_checkpoint(path)
    model = Transformer(checkpoint.cfg, Compute(dtype=dtype, matmul=dtype, unroll=1).resolve())
    tokenizer, ids = _tokenizer(path, checkpoint), _ids(path, checkpoint)
    params = place_params(checkpoint, model, mesh)
    return Pretrained(
        checkpoint.cfg, params, tokenizer, model, 0, checkpoint.architecture, ids, unused=checkpoint.unused()
    )


def is_run(path: str | Path) -> bool:
    """Whether `path` is read as a run of ours: where it has an experiment.json, or is neither a file nor has a
    config.json."""
    path = Path(path).expanduser()
    return (path / "experiment.json").is_file() or not (path.is_file() or (path / "config.json").is_file())


def _tokenizer(path: Path, checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a published model; None where its directory has none."""
    if path.is_dir():
        tokenizer = from_directory(path)
    else:
        named = checkpoint.metadata.get("tokenizer.ggml.model") not in (None, *NO_VOCABULARY)
        tokenizer = from_gguf(checkpoint.metadata) if named else None
    if tokenizer is None and (path / TEKKEN).is_file():
        warnings.warn(f"{path} is loaded without a tokenizer: {TEKKEN_CURE}", stacklevel=3)
    if tokenizer is None:
        return None
    vocab, embedding = checkpoint.cfg.vocab, checkpoint.tensors[0].name
    # control ids beyond the embedding are never generated: Gemma 3's text models have one for images
    if any(id not in tokenizer.controls for id in range(vocab, tokenizer.vocab_size)):
        raise ValueError(
            f"{path}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but tensor {embedding} has {vocab} rows: "
            "one of the two belongs to another model"
        )
    return tokenizer


def _ids(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """The token ids of generation_config.json, or else of config.json and of a text_config in it. Raises ValueError for
    what is neither an id nor a list of ids."""
    if path.is_file():  # a GGUF's are its tokenizer's
        return {}
    more = path / "generation_config.json"
    text = checkpoint.metadata.get("text_config") or {}
    fields = {**text, **checkpoint.metadata, **(read_json(more) if more.is_file() else {})}
    declared = {name: fields[name] for name in IDS if fields.get(name) is not None}
    for name, ids in declared.items():
        if not all(isinstance(id, int) for id in (ids if isinstance(ids, list) else [ids])):
            raise ValueError(f"{path}: {name}={ids!r} in config.json or generation_config.json: expected token ids")
    return declared


def read_experiment(run: str | Path) -> Experiment:
    """The experiment of a run's folder. Raises ValueError where there is none."""
    file = Path(run).expanduser() / "experiment.json"
    try:
        return value.build(Experiment, json.loads(file.read_text())["value"])
    except FileNotFoundError:
        refuse_pickle(*(sorted(file.parent.iterdir()) if file.parent.is_dir() else ()))
        raise ValueError(
            f"{run} is not a run: it has no experiment.json, which `lm train` makes; "
            "nor a published model: that is a GGUF file, or a directory with a config.json"
        ) from None
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ImportError) as error:
        raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from None


def _load_run(run: Path) -> Pretrained:
    """The newest checkpoint of the run in folder `run`: its moving average where it keeps one, else its parameters.

    Raises ValueError for a folder that is not a run, or has no checkpoint yet."""
    experiment = read_experiment(run)
    model = Transformer(experiment.model, experiment.compute.resolve())
    tokenizer = load_tokenizer(run / "tokenizer")
    part = "ema" if experiment.ema else "params"
    checkpoints = Checkpoints(buckets.checkpoint_path(run), experiment.keep_last, experiment.keep_best)
    state, _, step = checkpoints.restore({part: model.shapes()})
    checkpoints.close()
    objective, cfg = experiment.method.objective, experiment.model
    markers = objective.markers(objective_context(tokenizer, experiment.length, cfg.has_encoder))
    prefix = objective.prefix and not cfg.has_encoder
    return Pretrained(cfg, state[part], tokenizer, model, step, prefix=prefix, markers=markers)
