"""What several files of tests here share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.programs import shared_programs
from tests.tune.sums import write


@pytest.fixture(scope="module")
def programs() -> Iterator[None]:
    """The runs of a file are like the first one of their program (tests/run/programs.py)."""
    with shared_programs():
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums as records (tests/tune/sums.py)."""
    return write(tmp_path_factory.mktemp("sums") / "sums.jsonl")
