"""What several files of tests here share."""

from pathlib import Path
from typing import Any

import pytest

from lm.train.checkpoint import Checkpoints


@pytest.fixture
def open_at(tmp_path: Path) -> Any:
    """Opens the folder as often as asked, and closes what was opened."""
    opened = []

    def start(**options: Any) -> Checkpoints:
        opened.append(Checkpoints(tmp_path / "checkpoints", **options))
        return opened[-1]

    yield start
    for checkpoints in opened:
        checkpoints.close()
