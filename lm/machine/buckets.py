"""A run's folder in a bucket (gs://, s3://, whatever fsspec can reach), mirrored on this machine.

Orbax writes checkpoints to the bucket directly. The other files are small, and a bucket can neither append to a file
nor rename a folder: so they live in a local mirror of the folder, and those that changed are uploaded before each
checkpoint and at the end. A checkpoint in the bucket therefore never precedes the files that belong to it. A mirror
belongs to one process: what another one reads of the same URL is a mirror of its own.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lm.machine.cache import cache_dir

URL_FILE = "remote.txt"  # in the mirror: the URL of the folder
CHECKPOINTS = "checkpoints"
LOCK, LEASE = ".lock", "lease.json"  # of who writes the folder (lm/machine/locks.py)
NOT_MIRRORED = (URL_FILE, LOCK, LEASE)
Stamp = tuple[int, int]  # of a file: mtime in ns, size in bytes
_uploaded: dict[Path, dict[str, Stamp]] = {}  # mirror -> its files as the bucket has them
_mirrors: dict[str, tuple[Path, IO[str]]] = {}  # URL -> this process's mirror, and the lock that keeps it


def local_mirror(path: str | Path) -> Path:
    """`path` itself where it is local; of a URL, a local mirror of its small files, downloaded now.

    Raises ValueError where it cannot be read."""
    if "://" not in str(path):
        return Path(path).expanduser()
    check_url(str(path))
    url = str(path).rstrip("/")
    if url not in _mirrors:
        _mirrors[url] = _reserve(cache_dir() / "remote", hashlib.sha256(url.encode()).hexdigest()[:16])
    mirror = _mirrors[url][0]
    shutil.rmtree(mirror, ignore_errors=True)
    mirror.mkdir(parents=True)
    (mirror / URL_FILE).write_text(url)
    download(mirror)
    return mirror


def check_url(path: str) -> None:
    """Raise ValueError for the URL of no bucket."""
    scheme, separator, rest = path.partition("://")
    if separator and not (scheme and rest.strip("/")):
        raise ValueError(f"{path}: expected a bucket and a folder in it, as in gs://BUCKET/RUN")


def _reserve(mirrors: Path, name: str) -> tuple[Path, IO[str]]:
    """The first folder `name`-0, `name`-1, ... of `mirrors` that no running process has, and the lock that keeps it."""
    mirrors.mkdir(parents=True, exist_ok=True)
    for n in itertools.count():
        lock = (mirrors / f"{name}-{n}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return mirrors / f"{name}-{n}", lock
        except BlockingIOError:
            lock.close()
        except OSError:  # a file system without locks
            return mirrors / f"{name}-process-{os.getpid()}", lock
    raise AssertionError


def remote_url(folder: Path) -> str:
    """The URL that `folder` mirrors; empty for an ordinary folder."""
    file = folder / URL_FILE
    return file.read_text() if file.exists() else ""


def display_path(folder: Path) -> str:
    """`folder` as the user wrote it: the URL of a mirror."""
    return remote_url(folder) or str(folder)


def checkpoint_path(folder: Path) -> str:
    """The path or URL of the checkpoints of the run in `folder`."""
    url = remote_url(folder)
    return f"{url}/{CHECKPOINTS}" if url else str(folder / CHECKPOINTS)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints of the run in `folder`, ascending, damaged ones included."""
    with file_system("read", checkpoint_path(folder)) as (fs, root):
        names = [path.rpartition("/")[2] for path in fs.ls(root, detail=False)] if fs.exists(root) else []
    return sorted(int(name) for name in names if name.isdigit())


def rename_checkpoint(folder: Path, step: int, name: str) -> None:
    """Name the checkpoint of `step` so that it is no checkpoint of the run any more."""
    with file_system("write", checkpoint_path(folder)) as (fs, root):
        fs.mv(f"{root}/{step}", f"{root}/{name}", recursive=True)


def download(folder: Path) -> None:
    """Download the small files that `folder` mirrors; a no-op for an ordinary folder."""
    url = remote_url(folder)
    if not url:
        return
    with file_system("read", url) as (fs, root):
        fs.invalidate_cache()
        for file in fs.find(root) if fs.exists(root) else []:
            name = name_below(root, file)
            if name.split("/")[0] not in (CHECKPOINTS, *NOT_MIRRORED):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(file, str(folder / name))
    _uploaded[folder] = _stamps(folder)


def name_below(root: str, file: str) -> str:
    """The path of `file` from `root` on. Raises ValueError for one that would lead out of a folder."""
    name = file[len(root) :].removeprefix("/")
    parts = name.split("/")
    if not file.startswith(root) or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"the object {file!r} is not named as a file of a run's folder is: remove it, nothing was written"
        )
    return name


def upload(folder: Path) -> None:
    """Upload the files of `folder` that changed since the last time; a no-op for an ordinary folder."""
    url = remote_url(folder)
    if not url:
        return
    before, now = _uploaded.get(folder, {}), _stamps(folder)
    with file_system("write", url) as (fs, root):
        for name in (name for name, stamp in now.items() if before.get(name) != stamp):
            fs.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            fs.put_file(str(folder / name), f"{root}/{name}")
    _uploaded[folder] = now


def remove(folder: Path, *names: str) -> None:
    """Remove files and folders of `folder`, and of the bucket's that it mirrors; those that are there."""
    url = remote_url(folder)
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if url:
            with file_system("write", url) as (fs, root):
                if fs.exists(f"{root}/{name}"):
                    fs.rm(f"{root}/{name}", recursive=True)


def check_writable(url: str) -> None:
    """Raises ValueError where nothing can be written to `url`."""
    with file_system("write", url) as (fs, root):
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/.writable", b"")
        fs.rm_file(f"{root}/.writable")


def _stamps(folder: Path) -> dict[str, Stamp]:
    """The small files of `folder`, without those still being written."""
    files = (f for f in sorted(folder.rglob("*")) if f.is_file() and f.suffix != ".part" and f.name not in NOT_MIRRORED)
    return {f.relative_to(folder).as_posix(): (f.stat().st_mtime_ns, f.stat().st_size) for f in files}


@contextlib.contextmanager
def file_system(verb: str, url: str) -> Iterator[tuple[Any, str]]:
    """fsspec's file system for `url` and the path in it; any error in its use becomes a ValueError of one line."""
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
