"""Worker processes forked from one that has imported what they use: a fresh Python takes a second and more for that.

The server is forked from the study's own process, before that has threads or files, and forks itself for each process
of the study. A fork is as good as a fresh process only where one thread runs, JAX's devices have not started, and
environment and JAX's configuration are those that JAX was imported with. Where that is not so (or not known: outside
Linux, and where JAX may find an accelerator), there is no server, and each process is a fresh one.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from io import FileIO
from typing import Any, NoReturn

MOST_BYTES = 1 << 17  # of a request: the paths of 16 folders
PATIENCE_SECONDS = 60.0  # for the server's imports and a fork
READ_AT_IMPORT = ("JAX_", "XLA_", "TF_", "LIBTPU", "OMP_", "OPENBLAS_", "MKL_")  # by JAX, NumPy and what they load
USED = ("lm.run.together", "lm.pretrained", "orbax.checkpoint")  # by a process that trains, besides worker.py
Handlers = Mapping[signal.Signals, Any]
Settings = tuple[Mapping[str, str], Mapping[str, Any]]


def settings() -> Settings:
    """The environment that JAX reads when it is imported, and its configuration."""
    import jax

    environment = {name: text for name, text in os.environ.items() if name.startswith(READ_AT_IMPORT)}
    return environment, dict(jax.config.values)


def obstacle(imported_with: Settings, devices: str = "") -> str:
    """Why a fork of this process is not as good as a fresh one on `devices`; nothing where it is. `imported_with` are
    the settings of when JAX was imported."""
    from jax._src import xla_bridge  # JAX has no public name for it

    if not hasattr(os, "pidfd_open"):
        return "no file descriptors of processes, which Linux has"
    if not only_cpus(devices):
        return "JAX may find an accelerator"
    if xla_bridge.backends_are_initialized():
        return "JAX's devices have started"
    if settings() != imported_with:
        return "the environment or JAX's configuration has changed since JAX was imported"
    return "" if is_single_threaded() else "more than one thread runs"


def only_cpus(devices: str = "") -> bool:
    """Whether processes on `devices` compute on CPUs, as far as one can tell before they start."""
    asked = devices or os.environ.get("JAX_PLATFORMS", "")
    return asked == "cpu" or not asked and not _has_accelerators()


def _has_accelerators() -> bool:
    """Whether something is installed with which JAX looks for other devices than CPUs."""
    plugins = find_spec("libtpu"), find_spec("jax_plugins"), entry_points(group="jax_plugins")
    return bool(any(plugins) or os.environ.get("TPU_LIBRARY_PATH"))


def is_single_threaded() -> bool:
    """Whether one thread runs, now that a fork has been made, before which OpenBLAS ends its own."""
    if not (child := os.fork()):
        os._exit(0)
    with contextlib.suppress(ChildProcessError):  # `_reap` was there before
        os.waitpid(child, 0)
    return len(os.listdir("/proc/self/task")) == 1


class Forked:
    """A process that the server has forked, and that ends when its standard input closes; as subprocess.Popen."""

    def __init__(self, process: FileIO, stdin: FileIO):
        self.stdin, self._process = stdin, process  # a file descriptor of the process (pidfd_open)
        self._ended = select.poll()
        self._ended.register(process, select.POLLIN)

    def poll(self) -> int | None:
        """None while it runs; its exit code is not known."""
        return 0 if self._ended.poll(0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Return when it has ended. Raises TimeoutExpired where that is not within `timeout` seconds."""
        if not self._ended.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired("lm.study.worker", timeout or 0.0)
        return 0

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process.fileno(), signal.SIGKILL)


class ForkServer:
    """The server's end in the study's process; the server ends with it."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(PATIENCE_SECONDS)
        if not os.fork():
            self._channel.close()
            _serve(theirs)
        theirs.close()

    def start(self, arguments: Sequence[str], log: int) -> Forked | None:
        """A process of lm/study/worker.py with these arguments, that writes to the file descriptor `log`; None where
        the server has ended, or does not answer."""
        theirs, ours = os.pipe()
        with FileIO(theirs), contextlib.suppress(OSError):
            stdin = FileIO(ours, "w")
            socket.send_fds(self._channel, [json.dumps(arguments).encode()], [theirs, log])
            _, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
            if descriptors:
                return Forked(FileIO(descriptors[0]), stdin)
        self._channel.close()
        return None


def _serve(channel: socket.socket) -> NoReturn:
    """Fork a process for each request, until the study has ended. What goes wrong here ends the server."""
    try:
        ours: Handlers = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN, signal.SIGCHLD: _reap}
        handlers = {number: signal.signal(number, handler) for number, handler in ours.items()}
        for module in USED:
            import_module(module)
        gc.freeze()
        while is_single_threaded():
            request, descriptors, _, _ = socket.recv_fds(channel, MOST_BYTES, 2)
            if not request:
                break
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # its number is its own until it is told
            if not (child := os.fork()):
                channel.close()
                _work(json.loads(request), handlers, *descriptors)
            descriptor = os.pidfd_open(child)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            socket.send_fds(channel, [b"."], [descriptor])
            for one in (descriptor, *descriptors):
                os.close(one)
    finally:
        os._exit(0)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _work(arguments: Sequence[str], handlers: Handlers, stdin: int, log: int) -> NoReturn:
    """Be the process of these arguments, with the `handlers` of signals that the study has. What was registered for the
    end of the study's process (temporary folders) is not done here."""
    from lm.study import worker

    code = 1
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        for inherited, standard in ((stdin, 0), (log, 1), (log, 2)):
            os.dup2(inherited, standard)
        os.close(stdin)
        os.close(log)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as Python opens both
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        code = worker.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
