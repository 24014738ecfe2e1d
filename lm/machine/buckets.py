"""A run's folder in a bucket (gs://, s3://, whatever fsspec can reach).

Its checkpoints are written there directly, by Orbax. Its other files are small, and a bucket can neither append to a
file nor rename a folder: they are kept on this machine, in a copy of the folder, and those that changed are sent
whenever a checkpoint begins and at the end. What a checkpoint has behind it is there before it is.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.machine import processes
from lm.machine.cache import cache_dir

NAME = "remote.txt"  # in the copy: the URL of the folder
CHECKPOINTS = "checkpoints"
Stamp = tuple[int, int]  # of a file: its time and size
_sent: dict[Path, dict[str, Stamp]] = {}


def near(path: str | Path) -> Path:
    """The folder at `path` as one on this machine; of a URL, a copy of its small files, fetched now.

    Raises ValueError where it cannot be read."""
    if "://" not in str(path):
        return Path(path).expanduser()
    url = str(path).rstrip("/")
    copy = cache_dir() / "remote" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{processes.index()}"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    (copy / NAME).write_text(url)
    pull(copy)
    return copy


def far(folder: Path) -> str:
    """The URL that `folder` is a copy of; empty where it is none."""
    name = folder / NAME
    return name.read_text() if name.exists() else ""


def shown(folder: Path) -> str:
    """`folder` as its user knows it."""
    return far(folder) or str(folder)


def checkpoints(folder: Path) -> str:
    """Where the checkpoints of the run in `folder` are."""
    url = far(folder)
    return f"{url}/{CHECKPOINTS}" if url else str(folder / CHECKPOINTS)


def pull(folder: Path) -> None:
    """Fetch the small files of `folder`; nothing where it is on this machine."""
    url = far(folder)
    if not url:
        return
    with _cured("read", url) as (fs, root):
        fs.invalidate_cache()
        for file in fs.find(root) if fs.exists(root) else []:
            name = file[len(root) :].strip("/")
            if name.split("/")[0] != CHECKPOINTS:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(file, str(folder / name))
    _sent[folder] = _stamps(folder)


def push(folder: Path) -> None:
    """Send what changed in `folder` since the last time; nothing where it is on this machine."""
    url = far(folder)
    if not url:
        return
    before, now = _sent.get(folder, {}), _stamps(folder)
    with _cured("write", url) as (fs, root):
        for name in (name for name, stamp in now.items() if before.get(name) != stamp):
            fs.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            fs.put_file(str(folder / name), f"{root}/{name}")
    _sent[folder] = now


def check(url: str) -> None:
    """Raises ValueError where `url` cannot be written."""
    with _cured("write", url) as (fs, root):
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/.writable", b"")
        fs.rm_file(f"{root}/.writable")


def _stamps(folder: Path) -> dict[str, Stamp]:
    """The small files of `folder`, whole ones only."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.suffix != ".part" and f.name != NAME)
    return {f.relative_to(folder).as_posix(): (f.stat().st_mtime_ns, f.stat().st_size) for f in files}


@contextlib.contextmanager
def _cured(verb: str, url: str) -> Iterator[tuple[Any, str]]:
    """fsspec's file system for `url` and the path in it; whatever goes wrong becomes one line."""
    extra = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}.get(url.partition("://")[0])
    try:
        from fsspec.core import url_to_fs

        yield url_to_fs(url)
    except ImportError as error:
        cure = f'pip install -e ".[{extra}]"' if extra else str(error)
        raise ValueError(f"{url} needs another package: {cure}") from None
    except Exception as error:  # each store has errors of its own
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot {verb} {url} ({line}): is the bucket there, and may you {verb} it?") from None
