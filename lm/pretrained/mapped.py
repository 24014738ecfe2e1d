"""A file's bytes where they are, mapped: what is read of them takes memory until it is dropped."""

import mmap
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE


class MappedFile:
    """The `bytes` of a file that is not empty, uint8 [size]."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.bytes = np.frombuffer(self._map, np.uint8)

    def drop(self, start: int, stop: int) -> None:
        """Give back the memory of bytes start to stop, in whole pages; they may be read again."""
        first, last = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
