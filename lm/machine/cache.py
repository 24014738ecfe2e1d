"""The cache of derived data between runs, and atomic writes of its folders."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

SIZES = "sizes.json"  # in a folder of the cache: its files and their sizes


def cache_dir() -> Path:
    """The folder of the environment's LM_CACHE, else ~/.cache/lm; made if missing.

    Raises ValueError, naming LM_CACHE, where it cannot be written."""
    chosen = os.environ.get("LM_CACHE")
    path = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lm"
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(
            f"cannot write the cache {path}: set the environment's LM_CACHE to a folder that can be written"
        )
    return path


def write_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Write `folder` atomically: `fill` writes a temporary folder beside it, which is then renamed. Where another
    process was faster, its folder (made from the same inputs) stays.

    Raises ValueError where the disk is full or cannot be written; nothing is left behind then."""
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        fill(temporary)
        (temporary / SIZES).write_text(json.dumps(_sizes(temporary)))
        temporary.chmod(0o755)
        _rename(temporary, folder)
    except OSError as error:
        raise ValueError(
            f"cannot write {folder}: {error.strerror or error}; LM_CACHE may name another folder"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of `folder`, so that one process at a time makes it: of this machine, or of all that share the
    disk. On a file system without locks each process makes its own, and one of them stays."""
    locks = cache_dir() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / folder.name).open("w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_complete(folder: Path) -> bool:
    """Whether `folder` exists with all the files that `write_folder` left in it, none of them truncated."""
    try:
        return json.loads((folder / SIZES).read_text()) == _sizes(folder)
    except (OSError, ValueError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SIZES)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _rename(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:  # a folder that is not empty cannot be replaced: another process's is there
        if not folder.is_dir():
            raise


def discard(folder: Path) -> None:
    """Remove a damaged folder, atomically for readers."""
    if folder.exists():
        away = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        with contextlib.suppress(FileNotFoundError):  # another process discards it too
            folder.rename(away / "damaged")
        shutil.rmtree(away, ignore_errors=True)
