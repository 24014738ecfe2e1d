"""Compression baselines: the bits per byte of gzip and xz on the held-out documents, for comparison with a model's."""

import gzip
import hashlib
import json
import lzma
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lm.data.source import Source
from lm.machine.cache import cache_dir


def compression(documents: Iterable[str]) -> dict[str, float]:
    """Bits per byte of `gzip -9` and `xz -9e`, each document compressed by itself, headers included. Empty documents
    are left out. Raises ValueError where all are empty."""
    texts = [text.encode() for text in documents if text]
    if not texts:
        raise ValueError("no text to compress: every document is empty")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # both release the GIL
        sizes = {"gzip": sum(pool.map(_gzip, texts)), "xz": sum(pool.map(_xz, texts))}
    return {name: 8 * size / sum(map(len, texts)) for name, size in sizes.items()}


def heldout_compression(source: Source) -> dict[str, float]:
    """`compression` of the held-out documents of `source`, cached on disk."""
    folder = cache_dir() / "compression"
    file = folder / f"{hashlib.sha256(source.fingerprint().encode()).hexdigest()[:16]}.json"
    try:
        cached = json.loads(file.read_text())
        return {name: float(cached[name]) for name in ("gzip", "xz")}
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        bits = compression(map(source.plain_text, source.documents("heldout")))
    _write(file, json.dumps(bits))
    return bits


def _gzip(data: bytes) -> int:
    return len(gzip.compress(data, 9))


def _xz(data: bytes) -> int:
    """As `xz -9e`, but with a dictionary no longer than the data: the same size, without 700 MB for each document."""
    size = min(64 * 2**20, max(4096, len(data)))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}]
    return len(lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as out:
        out.write(text)
    os.replace(out.name, file)
