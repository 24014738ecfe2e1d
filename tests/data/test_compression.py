import gzip
import lzma
from pathlib import Path

import pytest

from lm.data import compression as module
from lm.data.compression import compression, heldout_compression
from lm.data.source import TextFile


def test_it_is_bits_per_byte_of_each_document_by_itself() -> None:
    texts = ["hello " * 50, "", "été " * 9000]
    raw = [t.encode() for t in texts if t]
    found = compression(texts)
    assert found["gzip"] == 8 * sum(len(gzip.compress(r, 9)) for r in raw) / sum(map(len, raw))
    xz = 8 * sum(len(lzma.compress(r, preset=9 | lzma.PRESET_EXTREME)) for r in raw) / sum(map(len, raw))
    assert found["xz"] == pytest.approx(xz, rel=1e-3)


def test_nothing_to_compress_is_an_error() -> None:
    with pytest.raises(ValueError, match="no text to compress"):
        compression(["", ""])


def test_it_is_remembered_for_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("some text, some more text\n" * 100)
    source = TextFile(str(tmp_path / "a.txt"), heldout=0.5)
    first = heldout_compression(source)
    monkeypatch.setattr(module, "compression", lambda _: {"gzip": 1.0, "xz": 2.0})
    assert heldout_compression(source) == first
    (tmp_path / "a.txt").write_text("other text")
    assert heldout_compression(source) == {"gzip": 1.0, "xz": 2.0}
