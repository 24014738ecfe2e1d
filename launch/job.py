"""The job of an engine: an lm command, and the checks that need no machine."""

import argparse
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lm.experiment import Experiment


@dataclass(frozen=True)
class Job:
    """An lm `command` as words, its `parsed` arguments, the job's `name`, and the `experiment` that is trained, of a
    study its base (None: another verb)."""

    command: tuple[str, ...]
    parsed: argparse.Namespace
    name: str
    experiment: "Experiment | None" = None

    @property
    def workdir(self) -> str:
        """The folder of the run or study."""
        given = (getattr(self.parsed, name, None) for name in ("workdir", "run_folder"))
        return str(next(filter(None, given), f"runs/{self.name}"))

    @property
    def verb(self) -> str:
        return self.command[0]

    def check_devices(self, devices: int, slices: int, asked: str) -> None:
        """Raises ValueError where the experiment's mesh or batch does not fit on the devices that were `asked` for."""
        from lm import legal

        try:
            if self.experiment:
                legal.check_devices(self.experiment, devices, slices)
        except ValueError as error:
            raise ValueError(f"{self.name} cannot run on the {devices} devices of {asked}: {error}") from None

    def need(self, tool: str, engine: str, cure: str) -> None:
        """Raises ValueError where `tool` is not on the PATH."""
        if not shutil.which(tool):
            raise ValueError(f"lm launch {engine}: {tool} is not on the PATH: {cure}")
