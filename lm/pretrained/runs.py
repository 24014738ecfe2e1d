"""A run of ours before it is loaded: the model of its newest checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from lm import value
from lm.data.objective import objective_context
from lm.experiment import Experiment
from lm.machine import buckets
from lm.model import count
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer, key_shape
from lm.page.run_record import not_a_run
from lm.pretrained.files import refuse_pickle
from lm.pretrained.model import Pretrained
from lm.sharding.rules import Layout
from lm.text.tokenizer import Tokenizer, load_tokenizer
from lm.train.checkpoint import Checkpoints
from lm.train.kept import LAST, kept_step
from lm.train.step import params_shardings

START = "start.json"  # in the folder of a run that started from a model: its path, ids, and fingerprint


def is_run(path: str | Path) -> bool:
    """Whether `path` is read as a run of ours: where it has an experiment.json, or is neither a file nor has a
    config.json."""
    path = Path(path).expanduser()
    return (path / "experiment.json").is_file() or not (path.is_file() or (path / "config.json").is_file())


def read_experiment(run: str | Path) -> Experiment:
    """The experiment of a run's folder. Raises ValueError where there is none."""
    file = Path(run).expanduser() / "experiment.json"
    try:
        return value.build(Experiment, json.loads(file.read_text())["value"])
    except FileNotFoundError:
        refuse_pickle(*(sorted(file.parent.iterdir()) if file.parent.is_dir() else ()))
        published = "; nor a published model: that is a GGUF file, or a directory with a config.json"
        raise ValueError(not_a_run(run) + published * file.parent.is_dir()) from None
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ImportError) as error:
        raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from None


@dataclass(frozen=True)
class FinishedRun:
    """The run in the folder `path`, of `experiment`; its model is of the newest checkpoint, or of that which `step`
    names (lm/train/kept.py): the moving average where the run keeps one, else the parameters, with adapters merged."""

    path: Path
    experiment: Experiment
    step: str = LAST

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.experiment.model

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return load_tokenizer(self.path / "tokenizer")

    def ids(self) -> dict[str, Any]:
        """The token ids of the config files of the model that it started from."""
        file = self.path / START
        return dict(json.loads(file.read_text())["ids"]) if file.is_file() else {}

    def fingerprint(self) -> str:
        """16 hex digits that change with its newest checkpoint, and with its tokenizer."""
        checkpoints = self._checkpoints()
        digest = checkpoints.digest()
        checkpoints.close()
        return value.fingerprint([digest, self.tokenizer().fingerprint])

    def params(self, mesh: Mesh | None = None, layout: Layout = Layout()) -> Params:
        """Its parameters, sharded over `mesh` by the layout's rules, or on one device."""
        return self._restore(mesh, layout)[0]

    def trained(self) -> Params:
        """What it trained: parameters, or the factors in their place. Raises ValueError for a run without a
        checkpoint."""
        part = "ema" if self.experiment.ema else "params"
        params, _ = jax.eval_shape(self.experiment.build(self._model).init, key_shape())
        checkpoints = self._checkpoints()
        state, _, _ = checkpoints.restore({part: params}, only=kept_step(checkpoints, self.step))
        checkpoints.close()
        return state[part]

    def load(self, mesh: Mesh | None = None, dtype: str = "float32") -> Pretrained:
        """The model, computed as in its experiment. Raises ValueError for a run without a checkpoint."""
        e, cfg, tokenizer = self.experiment, self.config, self.tokenizer()
        params, step = self._restore(None, Layout())
        objective = e.method.objective
        markers = objective.markers(objective_context(tokenizer, e.length, cfg.has_encoder))
        prefix = objective.prefix and not cfg.has_encoder
        ids = self.ids()
        summary = f"{e.name}: a run's step {step:,}, {count.parameters(cfg):,} parameters"
        about: dict[str, Any] = dict(ids=ids, prefix=prefix, markers=markers, summary=summary)
        return Pretrained(cfg, params, tokenizer, self._model, step, **about)

    @property
    def _model(self) -> Transformer:
        return Transformer(self.config, self.experiment.compute.resolve())

    def _checkpoints(self) -> Checkpoints:
        e = self.experiment
        return Checkpoints(buckets.checkpoint_path(self.path), e.keep_last, e.keep_best)

    def _restore(self, mesh: Mesh | None, layout: Layout) -> tuple[Params, int]:
        """The model's parameters, and the step that they are of."""
        learner, part = self.experiment.build(self._model), "ema" if self.experiment.ema else "params"
        if mesh:
            params, frozen = params_shardings(learner, mesh, layout)
        else:
            params, frozen = jax.eval_shape(learner.init, key_shape())
        needed = {part: params, **({"frozen": frozen} if learner.adapts else {})}
        checkpoints = self._checkpoints()
        state, _, step = checkpoints.restore(needed, only=kept_step(checkpoints, self.step))
        checkpoints.close()
        return learner.model_params(state[part], state.get("frozen")), step
