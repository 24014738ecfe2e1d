"""Trackers: where a run's metrics go besides metrics.jsonl and TensorBoard, as values of its experiment.

A tracker that is opened again for a run that resumes goes on with the same run there. Steps that are trained again have
the same numbers, so that nothing has to be taken back.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

IDS = "wandb.json"  # in a run's folder: the id of its run at Weights & Biases


class Writer(Protocol):
    """An open tracker."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The metrics of a step, by the names of metrics.jsonl."""

    def close(self) -> None:
        """Until all is written."""


@dataclass(frozen=True)
class Tracker:
    """One service that follows runs. The base class of all."""

    def check(self) -> None:
        """Raises ValueError where what it needs is not installed."""

    def open(self, folder: Path, name: str, experiment: Mapping[str, Any]) -> Writer:
        """The writer of the run `name` in `folder`; `experiment` is its value as plain data. Raises ValueError where
        the service cannot be used."""
        raise NotImplementedError


@dataclass(frozen=True)
class WandB(Tracker):
    """Weights & Biases. `mode` is online, offline (files in the run's folder, for `wandb sync`) or disabled; `group`
    puts runs together there, as those of a study."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"mode": ("online", "offline", "disabled")}

    project: str = "lm"
    entity: str = ""
    group: str = ""
    mode: str = "online"

    def __post_init__(self) -> None:
        if self.mode not in self.choices["mode"]:
            raise ValueError(f"WandB mode={self.mode!r}: expected online, offline or disabled")

    def check(self) -> None:
        if not find_spec("wandb"):
            raise ValueError('WandB() needs wandb, which is not installed: pip install -e ".[wandb]"')

    def open(self, folder: Path, name: str, experiment: Mapping[str, Any]) -> Writer:
        import wandb

        file = folder / IDS
        if not file.is_file():
            file.write_text(json.dumps({"id": secrets.token_hex(4)}) + "\n")
        told = dict(entity=self.entity or None, group=self.group or None, mode=self.mode, dir=str(folder))
        how = dict(resume="allow", reinit="create_new", settings=wandb.Settings(console="off", silent=True))
        try:
            id = json.loads(file.read_text())["id"]
            run = wandb.init(project=self.project, name=name, id=id, config=dict(experiment), **told, **how)
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
        except (wandb.Error, OSError, ValueError, KeyError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{line.rstrip('.')}; or trackers=(WandB(mode='offline'),)") from None
        return _Run(run.log, run.finish)


@dataclass(frozen=True)
class _Run:
    """A run at Weights & Biases. Its own steps are not used: it drops what comes for one that it has had."""

    log: Callable[[dict[str, Any]], None]
    close: Callable[[], None]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.log({"step": step, **{name if "/" in name else f"train/{name}": x for name, x in values.items()}})
