"""Where derived data is kept between runs, and how a folder of it is written whole or not at all."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

SIZES = "sizes.json"  # the file in which a written folder lists its files


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
    """`folder`, filled by `fill` in a temporary neighbour and renamed into place, so that no reader sees half of it.
    Where another process was faster, its folder (made from the same inputs) stays.

    Raises ValueError where the disk is full or cannot be written; nothing is left behind then."""
    made: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        fill(made)
        (made / SIZES).write_text(json.dumps(_sizes(made)))
        made.chmod(0o755)
        _move(made, folder)
    except OSError as error:
        raise ValueError(
            f"cannot write {folder}: {error.strerror or error}; LM_CACHE may name another folder"
        ) from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
    return folder


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside it no other process makes `folder`: of this machine, or of all that share a disk which has locks. Where it
    has none each makes its own, and one of them stays."""
    locks = cache_dir() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / folder.name).open("w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_whole(folder: Path) -> bool:
    """Whether `folder` is there, with all the files that `write_folder` left in it, none of them cut short."""
    try:
        return json.loads((folder / SIZES).read_text()) == _sizes(folder)
    except (OSError, ValueError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SIZES)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _move(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:  # a folder that is not empty cannot be renamed onto: someone else's is there
        if not folder.is_dir():
            raise


def discard(folder: Path) -> None:
    """Take a damaged folder away, in one step for anyone who looks."""
    if folder.exists():
        away = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        with contextlib.suppress(FileNotFoundError):  # another process discards it too
            folder.rename(away / "damaged")
        shutil.rmtree(away, ignore_errors=True)
