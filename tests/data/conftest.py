"""What the tests of the data share: a cache of their own, and small stores."""

import json
from pathlib import Path

import numpy as np
import pytest

from lm.data.store import TokenStore


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LM_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory):
    """Documents of these lengths, whose tokens are all different (1, 2, 3, …), so that each can be followed."""

    def make(lengths: list[int]) -> TokenStore:
        folder = tmp_path_factory.mktemp("store")
        total = sum(lengths)
        np.arange(1, total + 1, dtype=np.uint32).tofile(folder / "tokens.bin")
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        np.save(folder / "bytes.npy", np.array(lengths, np.int64))
        about = {"dtype": "uint32", "documents": len(lengths), "tokens": total, "vocab_size": total + 1}
        (folder / "store.json").write_text(json.dumps(about))
        return TokenStore(folder)

    return make
