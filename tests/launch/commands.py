"""The command, called as a shell would."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import main

Tool = Callable[[str, str], Path]  # (name, script) -> the file in which its calls are noted
PAGE = "experiments.quickstart"
SCALED = ("--set", "rows_per_device=1")  # a batch for any number of devices
GKE = ("launch", "gke", "--image", "IMAGE", "--dry-run", PAGE, *SCALED, "--workdir", "gs://bucket/run")


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert main(argv) == code
    out, err = capsys.readouterr()
    return err if code else out
