"""A folder for one process at a time: a run's, in which two would overwrite each other's files.

A folder on a disk is locked by the kernel, which lets go when the process ends, also on another machine. A bucket has
no locks. There the process writes an object, the lease, and renews it; a lease that is not renewed any more is void.
"""

import contextlib
import fcntl
import json
import os
import platform
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.machine import buckets
from lm.machine.buckets import LEASE, LOCK

RENEW_SECONDS, VOID_SECONDS = 20.0, 90.0  # a lease is renewed so often, and void when it was not for so long


@contextlib.contextmanager
def exclusive(folder: Path, wait: bool = False) -> Iterator[None]:
    """The folder, or the bucket's that it mirrors, for this process alone; `wait` until another process leaves it.

    Raises ValueError, naming the holder, where another process has it and this one does not wait, or it cannot be
    written. On a file system without locks the folder is not locked."""
    url = buckets.remote_url(folder)
    if url:
        with _lease(url):
            yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+")
    except OSError as error:
        raise ValueError(f"cannot use {folder} as a run's folder: {error}; choose another --workdir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.seek(0)
            raise _in_use(str(folder), lock.read()) from None
        except OSError:
            pass
        yield


def sign(folder: Path) -> None:
    """Leave this process's name in the lock of `folder`, for the message that another one gets."""
    (folder / LOCK).write_text(_this_process())


def _this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _in_use(where: str, holder: str) -> ValueError:
    return ValueError(
        f"{where} is in use by {holder or 'another process'}: wait for its end, or choose another --workdir"
    )


# ---------------------------------------------------------------- leases


@contextlib.contextmanager
def _lease(url: str) -> Iterator[None]:
    """The lease of the bucket's folder `url`: taken where there is none or it is void, renewed by a thread."""
    own = {"holder": _this_process(), "id": uuid.uuid4().hex, "renewed": 0}
    if there := _await_void(url):
        raise _in_use(url, there["holder"])
    _write(url, own)
    if (_read(url) or own)["id"] != own["id"]:
        raise _in_use(url, "a process that started at the same time")
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(url, own, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(ValueError), buckets.file_system("write", url) as (fs, root):
            if (_read(url) or {}).get("id") == own["id"]:
                fs.rm_file(f"{root}/{LEASE}")


def _await_void(url: str) -> dict[str, Any] | None:
    """None once there is no lease, or a void one; the lease, as soon as it is renewed. Times are this machine's own: it
    counts how long it sees no change."""
    first, began = _read(url), time.monotonic()
    if first is None or _has_died(first["holder"]):
        return None
    print(f"{url} was in use by {first['holder']}: waiting for up to {VOID_SECONDS:.0f} s to see whether it still is")
    while time.monotonic() - began < VOID_SECONDS:
        time.sleep(RENEW_SECONDS / 4)
        now = _read(url)
        if now is None:
            return None
        if now != first:
            return now
    return None


def _has_died(holder: str) -> bool:
    """Whether `holder` is a process of this machine that is no more."""
    _, pid, _, node = holder.split(" ", 3)
    if node != platform.node():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _renew(url: str, lease: dict[str, Any], ended: threading.Event) -> None:
    """Renew until `ended`. Where another process has taken the lease, because this one was not seen for long, the run
    stops, after a checkpoint."""
    while not ended.wait(RENEW_SECONDS):
        with contextlib.suppress(ValueError):  # the bucket may be reached again the next time
            there = _read(url)
            if there and there["id"] != lease["id"]:
                print(f"{url} was taken over by {there['holder']}: this process stops", file=sys.stderr)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            lease["renewed"] += 1
            _write(url, lease)


def _read(url: str) -> dict[str, Any] | None:
    with buckets.file_system("read", url) as (fs, root):
        fs.invalidate_cache()
        try:
            text = fs.cat_file(f"{root}/{LEASE}")
        except FileNotFoundError:
            return None
    try:
        lease = json.loads(text)
        lease["holder"].split(" ", 3)[3], lease["id"]
        return dict(lease)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None  # not of ours


def _write(url: str, lease: dict[str, Any]) -> None:
    with buckets.file_system("write", url) as (fs, root):
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/{LEASE}", json.dumps(lease).encode())
