"""What a run starts from: checked before the first step, recorded in the folder, and loaded onto the run's devices.

A run that has a checkpoint goes on from that: the model that it started from may be gone, or have changed.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from lm import value
from lm.experiment import Experiment
from lm.machine import buckets
from lm.model import count
from lm.model.config import ModelConfig
from lm.model.families import scorer
from lm.model.transformer import Params
from lm.pretrained import open_model
from lm.pretrained.architecture import canonical
from lm.pretrained.published import Published
from lm.pretrained.runs import START, FinishedRun
from lm.run.folder import has_begun, on_first_process, write_json
from lm.text.tokenizer import Tokenizer, TokenizerFile

SHOWN = 4  # of the fields in which two models differ
Opened = Published | FinishedRun


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
    if found := open_recorded("start", path, recorded, folder):
        opened, fingerprint = found
        fresh = experiment.model.output.scores and not opened.config.output.scores
        theirs = _with_scores(opened.config, experiment.model) if fresh else opened.config
        its = f"scorer(read_config({path!r}))" if fresh else ""
        more = experiment.model.multi_token
        if more and not theirs.multi_token or theirs.multi_token and not more:
            theirs = replace(theirs, multi_token=more)
            if more:
                print(f"start: {path} has no modules of multi-token prediction, so that they begin with random values")
        check_model("start", path, "model", experiment.model, theirs, its)
        if fresh:
            print(f"start: {path} has no output of scores, so that it begins with random values")
        write_json(file, {"path": path, "fingerprint": fingerprint, "ids": _ids(opened)})


def open_recorded(what: str, path: str, recorded: str, folder: Path) -> tuple[Opened, str] | None:
    """The model at `path` and its fingerprint; None where the run in `folder` has a checkpoint, and goes on without it.

    `recorded` is its fingerprint when the run began ("": it has not); `what` names it in messages. Raises ValueError
    for one that cannot be read or has changed, unless there is a checkpoint."""
    resumed = bool(recorded) and bool(buckets.checkpoint_steps(folder))
    try:
        opened = open_model(path)
        fingerprint = opened.fingerprint()
    except ValueError:
        if resumed:
            return None
        raise
    changed = recorded not in ("", fingerprint)
    if changed and not resumed:
        cure = "choose another --workdir" if has_begun(folder) else f"no step was taken, so remove {folder}"
        raise ValueError(f"{what}: {path} has changed since this run began: {cure}")
    if changed:
        print(f"{what}: {path} has changed since this run began, which goes on from its own checkpoint")
    return None if resumed else (opened, fingerprint)


def _ids(opened: Opened) -> dict[str, Any]:
    """The token ids of a model's config files; for one without, the ends that its tokenizer knows, which its own files
    do not all say (GGUF)."""
    ids, tokenizer = opened.ids(), opened.tokenizer()
    return {"eos_token_id": list(tokenizer.stop_ids), **ids} if tokenizer and tokenizer.stop_ids else ids


def _with_scores(cfg: ModelConfig, declared: ModelConfig) -> ModelConfig:
    """`cfg` with the scores of `declared`, beside its output or in place of it."""
    scores = declared.output.scores
    beside = replace(cfg, output=replace(cfg.output, scores=scores))
    return beside if declared.output.logit_count(declared.vocab) else scorer(cfg, scores)


def check_model(what: str, path: str, field: str, declared: ModelConfig, found: ModelConfig, its: str = "") -> None:
    """Raises ValueError where the config `declared` by the experiment's `field` is another one than that `found` at
    `path`, but for what only training reads and, where positions are endless, the context.

    Args:
      what: names the model.
      path, field, declared, found: as above.
      its: how `found` is written ("": as read)."""
    own, theirs = (value.plain(canonical(cfg)) for cfg in (declared, found))
    if different := value.differences(own, theirs):
        shown = ", ".join(f"{field}.{name} is {a!r} and not {b!r}" for name, a, b in different[:SHOWN])
        more = f" and {len(different) - SHOWN} more" if different[SHOWN:] else ""
        its = its or f"read_config({path!r})"
        raise ValueError(
            f"{what}: {path} is another model ({shown}{more}): take its own, {field}={its} of lm.pretrained"
        )


def same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether two tokenizers have the same tokens at the same ids."""
    return (list(a.table), a.controls) == (list(b.table), b.controls)


def start_tokenizer(experiment: Experiment) -> Tokenizer:
    """The tokenizer of the model that a run starts from, or for one without a tokenizer that of `data`.

    Raises ValueError where there is none, or where the two have other tokens."""
    assert experiment.start
    path, declared = experiment.start.path, experiment.data.tokenizer
    own = open_model(path).tokenizer()
    given = declared.make([]) if isinstance(declared, TokenizerFile) else None
    if own is None and given is None:
        raise ValueError(f"start: {path} comes without a tokenizer: give data.tokenizer=TokenizerFile(path=…)")
    if own and given and not same_tokens(own, given):
        raise ValueError(
            f"start: {path} learned with another vocabulary ({own.vocab_size} tokens) than data.tokenizer has "
            f"({given.vocab_size}): leave data.tokenizer out"
        )
    tokenizer = given or own
    assert tokenizer
    return tokenizer


def start_params(experiment: Experiment, mesh: Mesh) -> Params:
    """The parameters of the model that a run starts from, on its mesh, without outputs and modules of its that the
    experiment's model does not have."""
    assert experiment.start
    params = open_model(experiment.start.path).params(mesh, experiment.layout)
    own = count.shapes(experiment.model)
    head = {name: x for name, x in params["head"].items() if name in own["head"]}
    return {**{name: x for name, x in params.items() if name in own}, "head": head}
