"""What a run starts from, and the other models that its method reads: checked before the first step, recorded in the
folder, and loaded onto the run's devices.

A run that has a checkpoint goes on from that: the models that it began with may be gone, or have changed.
"""

import json
from collections.abc import Iterable
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

MODELS = "models.json"  # in a run's folder: path and fingerprint of the models that its method reads, by role
SHOWN = 4  # of the fields in which two models differ
Opened = Published | FinishedRun


def check_start(experiment: Experiment, folder: Path) -> None:
    """Check what a run starts from and what else its method reads, and record both in its claimed `folder`.

    Raises ValueError where a model cannot be read, is another one than the experiment says, or has changed since the
    run began, unless there is a checkpoint."""
    if experiment.start:
        on_first_process("start", folder, lambda: _check_start(experiment, folder))
    if experiment.method.models:
        on_first_process("models", folder, lambda: _check_models(experiment, folder))


def _check_start(experiment: Experiment, folder: Path) -> None:
    assert experiment.start
    path, file = experiment.start.path, folder / START
    recorded = json.loads(file.read_text())["fingerprint"] if file.is_file() else ""
    if opened := _open("start", path, recorded, folder):
        fresh = experiment.model.output.scores and not opened.config.output.scores
        found = _with_scores(opened.config, experiment.model) if fresh else opened.config
        its = f"scorer(read_config({path!r}))" if fresh else ""
        _check_model("start", path, "model", experiment.model, found, its)
        if fresh:
            print(f"start: {path} has no output of scores, so that it begins with random values")
        write_json(file, {"path": path, "fingerprint": opened.fingerprint(), "ids": _ids(opened)})


def _check_models(experiment: Experiment, folder: Path) -> None:
    recorded = _recorded_models(folder)
    for role, model in experiment.method.models.items():
        check_context(experiment.length, f"method.{role}_model", model.config)
        known = recorded.get(role, {}).get("fingerprint", "")
        if model.path is not None and (opened := _open(f"method.{role}", model.path, known, folder)):
            _check_model(f"method.{role}", model.path, f"method.{role}_model", model.config, opened.config)
            recorded[role] = {"path": model.path, "fingerprint": opened.fingerprint()}
    write_json(folder / MODELS, recorded)


def _recorded_models(folder: Path) -> dict[str, Any]:
    """What is recorded of each model that the method reads, by role."""
    file = folder / MODELS
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _open(what: str, path: str, recorded: str, folder: Path) -> Opened | None:
    """The model at `path`, of which `folder` has `recorded` the fingerprint when the run began ("": it has not); None
    where the run has a checkpoint, and goes on without it. `what` names it in messages."""
    resumed = bool(recorded) and bool(buckets.checkpoint_steps(folder))
    try:
        opened = open_model(path)
        changed = recorded not in ("", opened.fingerprint())
    except ValueError:
        if resumed:
            return None
        raise
    if changed and not resumed:
        cure = "choose another --workdir" if has_begun(folder) else f"no step was taken, so remove {folder}"
        raise ValueError(f"{what}: {path} has changed since this run began: {cure}")
    if changed:
        print(f"{what}: {path} has changed since this run began, which goes on from its own checkpoint")
    return None if resumed else opened


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


def _check_model(what: str, path: str, field: str, declared: ModelConfig, found: ModelConfig, its: str = "") -> None:
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


def check_context(length: int, field: str, model: ModelConfig) -> None:
    """Raises ValueError where rows of `length` tokens are longer than the `model` in the experiment's `field` reads."""
    if length > model.context and not model.positions.endless:
        raise ValueError(
            f"rows have {length} tokens, and {field}.context={model.context}: lower seq_len, or take another model"
        )


def check_tokenizers(experiment: Experiment, folder: Path, tokenizer: Tokenizer) -> None:
    """Raises ValueError where a model that the method reads learned other tokens than the run's `tokenizer` has; one
    without a tokenizer, and one that the run in `folder` goes on without, are taken to have the same."""
    for role, model in experiment.method.models.items():
        if model.path is None or buckets.checkpoint_steps(folder):
            continue
        own = open_model(model.path).tokenizer()
        if own and not _same_tokens(own, tokenizer):
            raise ValueError(
                f"method.{role}: {model.path} learned with another vocabulary ({own.vocab_size} tokens) than this run "
                f"has ({tokenizer.vocab_size}): set data.tokenizer=TokenizerFile({model.path!r})"
            )


def _same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
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
    if own and given and not _same_tokens(own, given):
        raise ValueError(
            f"start: {path} learned with another vocabulary ({own.vocab_size} tokens) than data.tokenizer has "
            f"({given.vocab_size}): leave data.tokenizer out"
        )
    tokenizer = given or own
    assert tokenizer
    return tokenizer


def start_params(experiment: Experiment, mesh: Mesh) -> Params:
    """The parameters of the model that a run starts from, on its mesh, without outputs that the experiment's model does
    not have."""
    assert experiment.start
    params = open_model(experiment.start.path).params(mesh, experiment.layout)
    own = count.shapes(experiment.model)["head"]
    return {**params, "head": {name: x for name, x in params["head"].items() if name in own}}


def read_params(experiment: Experiment, roles: Iterable[str], mesh: Mesh) -> dict[str, Params]:
    """The parameters, on the run's mesh, of the models that the method reads in these `roles`, where they have a
    path."""
    models = {role: experiment.method.models[role] for role in roles}
    return {
        role: open_model(model.path).params(mesh, experiment.layout)
        for role, model in models.items()
        if model.path is not None
    }
