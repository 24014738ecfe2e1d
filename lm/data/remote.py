"""Files behind a URL, of any file system that fsspec knows: hf://, gs://, s3://, https://, memory://.

They are fetched into the cache and read there as files of this machine, which have to be read at random; again only
where they have changed. A process asks once what there is. Where the file system cannot be reached, what was fetched
before is read.
"""

import functools
import glob
import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from lm.machine.buckets import file_system, name_below
from lm.machine.cache import cache_dir, locked

MAGIC = "*?["
TIMES = ("mtime", "LastModified", "last_modified", "created")
VERSION = ("etag", "ETag", "md5Hash", "blob_id", "generation", *TIMES, "size")  # what a store may say of a file


class Listing(NamedTuple):
    """What is at a URL: a `single` file, or those of a folder; `root` is the folder that they are in, and `files` has
    their names below it, each with its bytes and a number that changes with its content."""

    root: str
    files: dict[str, tuple[int, int]]
    single: bool


def is_url(path: str | Path) -> bool:
    """Whether a path is that of another file system."""
    return "://" in str(path)


@functools.lru_cache(maxsize=256)
def mirror(url: str, pattern: str = "") -> str:
    """The local path of what `url` names, a file, a folder or a glob pattern, whose files are fetched: of a folder
    those that match `pattern` ("": all). Raises ValueError where nothing is there, or it cannot be read."""
    base, rest = split_pattern(url)
    folder = cache_dir() / "remote" / hashlib.sha256(f"{url}\n{pattern}".encode()).hexdigest()[:16]
    with locked(folder):
        known = folder.with_suffix(".json")
        try:
            listing = listed(base, rest or pattern)
        except ValueError as error:
            if not known.is_file():
                raise
            warnings.warn(f"{error}; what was fetched from there before is read", stacklevel=3)
            listing = Listing(*json.loads(known.read_text()))
        if not listing.files:
            raise ValueError(f"no such file or folder: {url}{f', with {pattern}' if pattern else ''}")
        fetch(base, listing, folder)
        known.write_text(json.dumps(listing))
    if rest:
        return f"{glob.escape(str(folder))}/{rest}"
    return str(folder / min(listing.files)) if listing.single else str(folder)


def split_pattern(url: str) -> tuple[str, str]:
    """A URL without its glob pattern, and that; ("" where it has none)."""
    parts = url.split("/")
    first = next((i for i, part in enumerate(parts) if i > 2 and any(c in part for c in MAGIC)), len(parts))
    return "/".join(parts[:first]), "/".join(parts[first:])


def names(url: str) -> list[str]:
    """The names of the files in the folder `url`, none of which is fetched; of a file none. Raises ValueError as
    `mirror`."""
    listing = listed(*split_pattern(url))
    if not listing.files:
        raise ValueError(f"no such file or folder: {url}")
    return [] if listing.single else sorted(listing.files)


def listed(base: str, pattern: str) -> Listing:
    """The files at `base` that match `pattern`; without one the file, or all files of the folder."""
    found: dict[str, Any] = {}
    single = False
    with file_system("read", base) as (fs, root):
        fs.invalidate_cache()
        if pattern:
            found = fs.glob(f"{root.rstrip('/')}/{pattern}", detail=True)
        elif single := fs.isfile(root):
            found, root = {root: fs.info(root)}, fs._parent(root)
        elif fs.exists(root):
            found = fs.find(root, detail=True)
    inside = root.rstrip("/")
    files = {name_below(inside, str(path)): info for path, info in found.items() if info.get("type") != "directory"}
    versions = {name: (int(info.get("size") or 0), _version(info)) for name, info in files.items()}
    return Listing(root, versions, single)


def _version(info: dict[str, Any]) -> int:
    told = {name: str(info[name]) for name in VERSION if info.get(name) is not None}
    return int.from_bytes(hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()[:6], "big")


def fetch(base: str, listing: Listing, folder: Path) -> None:
    """Make `folder` hold the files of a listing: those that are there already in this version stay. A file's time is
    made of its version, so that it is the same wherever and whenever it is fetched."""
    before = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    for name, file in before.items():
        if name not in listing.files:
            file.unlink()
    missing = [name for name, (_, version) in listing.files.items() if _time(before.get(name)) != version]
    if not missing:
        return
    total = sum(listing.files[name][0] for name in missing)
    print(f"fetching {base}: {len(missing)} files, {total / 1e6:,.1f} MB, into {folder}", flush=True)
    with file_system("read", base) as (fs, _):
        for name in missing:
            file, part = folder / name, folder / f"{name}.part"
            file.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{listing.root.rstrip('/')}/{name}", str(part))
            os.utime(part, ns=(listing.files[name][1],) * 2)
            part.replace(file)


def _time(file: Path | None) -> int:
    return file.stat().st_mtime_ns if file else -1
