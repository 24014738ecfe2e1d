"""What a run starts from: checked before the first step, recorded in the folder, and loaded onto the run's devices.

A run that has a checkpoint goes on from that: the model that it started from may be gone, or have changed.
"""

import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lm import value
from lm.experiment import Experiment
from lm.machine import buckets
from lm.model.config import ModelConfig
from lm.model.transformer import Params
from lm.pretrained import open_model
from lm.pretrained.architecture import canonical
from lm.pretrained.published import Published
from lm.pretrained.runs import START, FinishedRun
from lm.run.folder import has_begun, on_first_process, write_json
from lm.text.tokenizer import Tokenizer, TokenizerFile

SHOWN = 4  # of the fields in which two models differ


def check_start(experiment: Experiment, folder: Path) -> None:
    """Check what a run starts from, and record it in its claimed `folder`.

    Raises ValueError where it cannot be read, is another model than the experiment's, or has changed since the run
    began, unless there is a checkpoint."""
    if experiment.start:
        on_first_process("start", folder, lambda: _check_start(experiment, folder))


def _check_start(experiment: Experiment, folder: Path) -> None:
    assert experiment.start
    path, file = experiment.start.path, folder / START
    recorded = json.loads(file.read_text())["fingerprint"] if file.is_file() else ""
    resumed = bool(recorded) and bool(buckets.checkpoint_steps(folder))
    try:
        opened = open_model(path)
        fingerprint = opened.fingerprint()
    except ValueError:
        if resumed:
            return
        raise
    if resumed and fingerprint != recorded:
        print(f"start: {path} has changed since this run began, which goes on from its own checkpoint")
    elif not resumed:
        if recorded not in ("", fingerprint):
            cure = "choose another --workdir" if has_begun(folder) else f"no step was taken, so remove {folder}"
            raise ValueError(f"start: {path} has changed since this run began: {cure}")
        check_model(experiment, opened.config)
        write_json(file, {"path": path, "fingerprint": fingerprint, "ids": _ids(opened)})


def _ids(opened: Published | FinishedRun) -> dict[str, Any]:
    """The token ids of a model's config files; for one without, the ends that its tokenizer knows, which its own files
    do not all say (GGUF)."""
    ids, tokenizer = opened.ids(), opened.tokenizer()
    return {"eos_token_id": list(tokenizer.stop_ids), **ids} if tokenizer and tokenizer.stop_ids else ids


def check_model(experiment: Experiment, config: ModelConfig) -> None:
    """Raises ValueError where the experiment's model is another one than `config`, that of its start, but for what only
    training reads and, where positions are endless, the context."""
    assert experiment.start
    own, theirs = (value.plain(canonical(cfg)) for cfg in (experiment.model, config))
    if different := value.differences(own, theirs):
        shown = ", ".join(f"model.{path} is {a!r} and not {b!r}" for path, a, b in different[:SHOWN])
        more = f" and {len(different) - SHOWN} more" if different[SHOWN:] else ""
        raise ValueError(
            f"start: {experiment.start.path} is another model ({shown}{more}): take its own, "
            f"model=read_config({experiment.start.path!r}) of lm.pretrained"
        )


def start_tokenizer(experiment: Experiment) -> Tokenizer:
    """The tokenizer of the model that a run starts from, or for one without a tokenizer that of `data`.

    Raises ValueError where there is none, or where the two have other tokens."""
    assert experiment.start
    path, declared = experiment.start.path, experiment.data.tokenizer
    own = open_model(path).tokenizer()
    given = declared.make([]) if isinstance(declared, TokenizerFile) else None
    if own is None and given is None:
        raise ValueError(f"start: {path} comes without a tokenizer: give data.tokenizer=TokenizerFile(path=…)")
    if own and given and (list(own.table), own.controls) != (list(given.table), given.controls):
        raise ValueError(
            f"start: {path} learned with another vocabulary ({own.vocab_size} tokens) than data.tokenizer has "
            f"({given.vocab_size}): leave data.tokenizer out"
        )
    tokenizer = given or own
    assert tokenizer
    return tokenizer


def start_params(experiment: Experiment, mesh: Mesh) -> Params:
    """The parameters of the model that a run starts from, on its mesh."""
    assert experiment.start
    return open_model(experiment.start.path).params(mesh, experiment.layout)
