"""The models that a method reads beside the one that it trains: checked before the first step, recorded in the run's
folder, and loaded onto its devices.

A run that has a checkpoint goes on from that: those that are in memory in every step are there too.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lm import value
from lm.experiment import Experiment
from lm.machine import buckets, processes
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.pretrained import open_model
from lm.run.folder import on_first_process, write_json
from lm.run.prepared import Prepared
from lm.run.start import check_model, open_recorded, same_tokens
from lm.sharding.mesh import make_mesh
from lm.sharding.rules import Layout
from lm.sharding.tracing import use_mesh
from lm.text.tokenizer import Tokenizer
from lm.train.method import SavedModel

MODELS = "models.json"  # in a run's folder: path and fingerprint of each, by role


def check_models(experiment: Experiment, folder: Path) -> None:
    """Check the models that the method reads, and record them in the run's claimed `folder`.

    Raises ValueError where one cannot be read, is another one than the experiment says, or has changed since the run
    began, unless there is a checkpoint."""
    if _read(experiment):
        on_first_process("models", folder, lambda: _check_models(experiment, folder))


def _check_models(experiment: Experiment, folder: Path) -> None:
    recorded = _recorded_models(folder)
    for field, (key, model) in _read(experiment).items():
        _check_context(_longest(experiment), f"{field}_model", model.config)
        known = recorded.get(key, {}).get("fingerprint", "")
        if model.path is not None and (found := open_recorded(field, model.path, known, folder)):
            opened, fingerprint = found
            check_model(field, model.path, f"{field}_model", model.config, opened.config)
            recorded[key] = {"path": model.path, "fingerprint": fingerprint}
    write_json(folder / MODELS, recorded)


def _read(experiment: Experiment) -> dict[str, tuple[str, SavedModel]]:
    """The models that the method and those of the evaluations read, by the field that has the path, each with the key
    under which it is recorded."""
    own = {f"method.{role}": (role, model) for role, model in experiment.method.models.items()}
    others = {
        f"evaluations.{name}.method.{role}": model
        for name, one in experiment.evaluations.items()
        for role, model in (one.method.models.items() if one.method else ())
    }
    return own | {field: (field, model) for field, model in others.items()}


def _recorded_models(folder: Path) -> dict[str, Any]:
    """What is recorded of each model that the method reads, by role."""
    file = folder / MODELS
    return dict(json.loads(file.read_text())) if file.is_file() else {}


def _longest(experiment: Experiment) -> int:
    """Tokens in the longest row that the method reads, of training or of an extra evaluation."""
    times = [one.times for one in experiment.evaluations.values() if not (one.objective or one.method)]
    return experiment.length * max([1, *times])


def _check_context(length: int, field: str, model: ModelConfig) -> None:
    """Raises ValueError where rows of `length` tokens are longer than the `model` in the experiment's `field` reads."""
    if length > model.context and not model.positions.endless:
        raise ValueError(
            f"rows have {length} tokens, and {field}.context={model.context}: lower seq_len, or take another model"
        )


def check_tokenizers(experiment: Experiment, folder: Path, tokenizer: Tokenizer) -> None:
    """Raises ValueError where a model that the method reads learned other tokens than the run's `tokenizer` has; one
    without a tokenizer, and one that the run in `folder` goes on without, are taken to have the same."""
    for field, (_, model) in _read(experiment).items():
        if model.path is None or buckets.checkpoint_steps(folder):
            continue
        own = open_model(model.path).tokenizer()
        if own and not same_tokens(own, tokenizer):
            raise ValueError(
                f"{field}: {model.path} learned with another vocabulary ({own.vocab_size} tokens) than this run "
                f"has ({tokenizer.vocab_size}): set data.tokenizer=TokenizerFile({model.path!r})"
            )


@dataclass(frozen=True)
class SavedModels:
    """The models that the method of `experiment` reads, by role, for its run in `folder`. Their parameters lie on
    `mesh`; a batch is computed `rows` at a time."""

    experiment: Experiment
    folder: Path
    mesh: Mesh
    rows: int

    @property
    def layout(self) -> Layout:
        """The variant of the sharding rules."""
        return self.experiment.layout

    def fingerprint(self, role: str) -> str:
        """That of the model when the run began; of one without a path, of what it is drawn from."""
        recorded = _recorded_models(self.folder).get(role)
        drawn = self.experiment.method.models[role].config, self.experiment.seed
        return str(recorded["fingerprint"]) if recorded else value.fingerprint(drawn)

    def params(self, role: str) -> Params:
        """Its parameters, loaded or drawn. Raises ValueError where it is not what it was when the run began."""
        model = self.experiment.method.models[role]
        if model.path is None:
            drawn = Transformer(model.config, self.experiment.compute.resolve(self.mesh.devices.flat[0].platform))
            with use_mesh(self.mesh, self.layout):
                return jax.jit(drawn.init)(jax.random.key(self.experiment.seed))
        opened = open_model(model.path)
        if opened.fingerprint() != self.fingerprint(role):
            raise ValueError(
                f"method.{role}: {model.path} has changed since this run began, and what it gave is no longer in the "
                "cache: choose another --workdir"
            )
        return opened.params(self.mesh, self.layout)


def saved_models(prepared: Prepared) -> SavedModels:
    """Those that the method of a prepared run reads: on its mesh, or where several processes train it, each with rows
    of its own, on this one's first device."""
    e, alone, rows = prepared.experiment, processes.count() == 1, prepared.local_rows
    mesh = prepared.mesh if alone else make_mesh({"data": 1}, jax.local_devices()[:1])
    return SavedModels(e, prepared.folder, mesh, (e.rows if rows is None else len(rows)) // e.accumulate)


def read_params(experiment: Experiment, roles: Iterable[str], mesh: Mesh) -> dict[str, Params]:
    """The parameters, on the run's mesh, of the models that the method reads in these `roles`, where they have a
    path."""
    paths = {role: experiment.method.models[role].path for role in roles}
    return {role: open_model(path).params(mesh, experiment.layout) for role, path in paths.items() if path is not None}
