"""C functions beside our Python: built once for this machine by the compiler in PATH, and kept in the cache."""

import ctypes
import hashlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from lm.machine.cache import cache_dir, write_folder

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=gnu11", "-O3", "-shared", "-fPIC", "-pthread", "-march=native")


@cache
def library(source: Path, include: str) -> ctypes.CDLL | None:
    """The functions of a C file whose headers are in the folder `include`; None where no compiler is found, or it
    cannot build the file (another system or processor)."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    folder = cache_dir() / "native" / _key(source, compiler)
    try:
        if not folder.is_dir():
            write_folder(folder, partial(_build, compiler, source, include))
        return ctypes.CDLL(str(folder / "library.so"))
    except (OSError, subprocess.CalledProcessError):
        return None


def _key(source: Path, compiler: str) -> str:
    """What a library depends on: the file, the compiler, and the processor, whose home may be another's too."""
    version: Sequence[str] = (compiler, "--version")
    said = subprocess.run(version, capture_output=True, text=True, check=False).stdout
    try:
        processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    text = "\n".join([source.read_text(encoding="utf-8"), *FLAGS, said, processor])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _build(compiler: str, source: Path, include: str, folder: Path) -> None:
    command = [compiler, *FLAGS, "-I", include, str(source), "-o", str(folder / "library.so")]
    subprocess.run(command, check=True, capture_output=True)
