from pathlib import Path

import pytest

from tests.tune.sums import write


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums as records (tests/tune/sums.py)."""
    return write(tmp_path_factory.mktemp("sums") / "sums.jsonl")
