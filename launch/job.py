"""The job of an engine: an lm command, and the checks that need no machine."""

import argparse
import shutil
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """An lm `command` as words, its `parsed` arguments, and the job's `name`."""

    command: tuple[str, ...]
    parsed: argparse.Namespace
    name: str

    @property
    def workdir(self) -> str:
        """The folder of the run or study."""
        given = (getattr(self.parsed, name, None) for name in ("workdir", "run_folder"))
        return str(next(filter(None, given), f"runs/{self.name}"))

    @property
    def verb(self) -> str:
        return self.command[0]

    def need(self, tool: str, engine: str, cure: str) -> None:
        """Raises ValueError where `tool` is not on the PATH."""
        if not shutil.which(tool):
            raise ValueError(f"lm launch {engine}: {tool} is not on the PATH: {cure}")
