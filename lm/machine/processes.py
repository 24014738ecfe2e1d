"""Several processes of one run: initialisation, collective error handling, barriers, and stopping on a signal.

Each runs the same program on its own devices (SPMD), and JAX joins the devices into one mesh. Where no launcher's
environment is found there is one process, and everything here is a no-op. Only the first process writes to the run's
folder and prints.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

# A launcher's environment: LM_PROCESSES is a count, with the first process's host:port and this one's index; or `auto`
# where JAX detects the cluster by itself (Cloud TPU, GKE, Slurm, Open MPI).
PROCESSES, COORDINATOR, PROCESS = "LM_PROCESSES", "LM_COORDINATOR", "LM_PROCESS"
HEARTBEAT_SECONDS = 30  # a process without a heartbeat for this long is lost
BARRIER_TIMEOUT_SECONDS = 24 * 3600  # the first process may tokenise much text while the others wait
FAILED = "lm/failed"  # the key under which a process that fails says why
WATCH_SECONDS = 1.0  # between two looks at it
# from a failure until a process ends for it: the first is the last to go, since its end aborts the others (it serves
# the key-value store)
GRACE_SECONDS, FIRST_GRACE_SECONDS = 1.0, 5.0
# what JAX's errors say where a peer is lost
PEER_ERRORS = ("gloo", "by peer", "nccl", "unavailable:", "heartbeat", "deadline_exceeded", "coordination service")
_barriers = itertools.count()  # all processes pass the same barriers, in the same order


class PeerLost(Exception):
    """Another process died or is unreachable: this one cannot continue, and must not wait for it."""

    exit_code = 75  # EX_TEMPFAIL: start again

    def __init__(self, reason: str):
        super().__init__(
            f"process {index()} of {count()} ends: another one has died or cannot be reached ({reason}); "
            "the log of the one that died tells why, and the same command goes on from the last checkpoint"
        )


def initialize() -> None:
    """Join the processes that the environment declares; only the first call has an effect, and it must precede any
    computation by JAX.

    Raises ValueError where the environment is inconsistent, or the other processes do not connect."""
    arguments = from_environment(os.environ)
    if arguments is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        declared = ", ".join(f"{k}={v}" for k, v in arguments.items()) or "detected by JAX"
        line = str(error).strip().partition("\n")[0]
        raise ValueError(f"the processes of this run do not find each other ({declared}): {line}") from None


def from_environment(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of jax.distributed.initialize that `environ` declares; None for a single process.

    Raises ValueError where the variables are inconsistent."""
    processes = environ.get(PROCESSES, "")
    if not processes:  # a task of a Slurm step, started with srun by hand
        return {} if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environ else None
    if processes == "auto":
        return {}
    if processes == "1":
        return None
    process, address = environ.get(PROCESS, ""), environ.get(COORDINATOR, "")
    if not processes.isdigit() or not process.isdigit() or not int(process) < int(processes):
        raise ValueError(
            f"{PROCESSES}={processes}, {PROCESS}={process}: expected a number of processes and an index below it, or "
            f"{PROCESSES}=auto"
        )
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(f"{COORDINATOR}={address}: expected HOST:PORT of the first process")
    return dict(
        coordinator_address=address,
        num_processes=int(processes),
        process_id=int(process),
        cluster_detection_method="deactivate",
    )


def count() -> int:
    """The number of processes. Does not start JAX's devices, as jax.process_count would."""
    return int(_distributed_state().num_processes)


def index() -> int:
    """The index of this process."""
    return int(_distributed_state().process_id)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return index() == 0


def _distributed_state() -> Any:
    from jax._src import distributed  # JAX has no public name for its key-value store

    return distributed.global_state


# ---------------------------------------------------------------- barriers


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    if count() > 1:
        _share_error(name, "")


def connect() -> None:
    """Wait until all processes are here and have opened their connections: gloo gives them 30 s from the first process
    that uses one, which is little where a machine is slow to start."""
    if count() > 1:
        from jax.experimental import multihost_utils

        barrier("connect")
        multihost_utils.sync_global_devices("lm")


def all_or_raise(name: str, f: Callable[[], T]) -> T:
    """`f()` in every process, then a barrier. A ValueError or OSError in one process raises in all: there as it is, in
    the others as a ValueError with the same message. Raises PeerLost where another process is lost."""
    if count() == 1:
        return f()
    failure: Exception | None = None
    result: T | None = None
    try:
        result = f()
    except (ValueError, OSError) as error:
        failure = error
    message = _share_error(name, "" if failure is None else str(failure))
    if message:
        raised = failure or ValueError(message)
        raised.shared = True  # type: ignore[attr-defined]
        raise raised
    return result  # type: ignore[return-value]


def on_first_process(name: str, f: Callable[[], Any]) -> None:
    """`f()` in the first process, while the others wait; an exception in it is raised in all."""
    all_or_raise(name, f if is_first() else lambda: None)


def in_any(name: str, here: bool) -> bool:
    """Whether a thing is so in any process, of which each says whether it is so `here`; then a barrier."""
    return here if count() == 1 else bool(_share_error(name, "yes" if here else ""))


def _share_error(name: str, error: str) -> str:
    """The first error of any process (each gives its own, "" for none), returned to all: a barrier by key-value
    store."""
    key = f"lm/{next(_barriers)}/{name}"
    if not is_first():
        _set(f"{key}/{index()}", error)
        return _get(f"{key}/all")
    others = {i: _get(f"{key}/{i}") for i in range(1, count())}
    shared = error or next((f"process {i}: {text}" for i, text in others.items() if text), "")
    _set(f"{key}/all", shared)
    return shared


def _set(key: str, text: str) -> None:
    with translate_peer_errors():
        _distributed_state().client.key_value_set(key, text)


def _get(key: str) -> str:
    with translate_peer_errors():
        return str(_distributed_state().client.blocking_key_value_get(key, BARRIER_TIMEOUT_SECONDS * 1000))


@contextlib.contextmanager
def translate_peer_errors() -> Iterator[None]:
    """Inside it, what JAX raises when another process has died becomes PeerLost."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        if count() == 1 or not any(word in line.lower() for word in PEER_ERRORS):
            raise
        raise PeerLost(line if len(line) <= 160 else line[:157] + "...") from error


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Inside it, an exception in this process ends the others with PeerLost's line and code, wherever they are, also
    where they wait for this one in a computation.

    An exception that all processes raise has `shared` set: each ends by its own."""
    if count() == 1:
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watcher.start()
    try:
        yield
    except PeerLost:
        raise
    except Exception as error:
        if not getattr(error, "shared", False):
            ended.set()
            _report_failure(error)
        raise
    finally:
        ended.set()
        watcher.join()


def _watch(ended: threading.Event) -> None:
    """End this process once another one has said that it fails."""
    while not ended.wait(WATCH_SECONDS):
        try:
            reason = str(_distributed_state().client.key_value_try_get(FAILED))
        except Exception:  # nobody has, or the store is gone, which others notice
            continue
        if not ended.wait(_grace()):
            print(f"lm: {PeerLost(reason)}", file=sys.stderr, flush=True)
            os._exit(PeerLost.exit_code)


def _report_failure(error: Exception) -> None:
    """Tell the other processes, and wait until they have ended. Without an orderly exit, which would wait for them."""
    line = next(iter(str(error).splitlines()), "")
    with contextlib.suppress(Exception):  # another one failed first
        _distributed_state().client.key_value_set(FAILED, f"process {index()}: {type(error).__name__}: {line}"[:300])
    if isinstance(error, ValueError | OSError):  # the user's, of one line
        error.exit_code = 1  # type: ignore[union-attr]
        time.sleep(WATCH_SECONDS + _grace())
        return
    traceback.print_exception(error)
    sys.stderr.flush()
    time.sleep(WATCH_SECONDS + _grace())
    os._exit(1)


def _grace() -> float:
    return FIRST_GRACE_SECONDS if is_first() else GRACE_SECONDS


# ---------------------------------------------------------------- stopping


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list that receives SIGTERM or SIGINT when one arrives; a second one ends the process at once.

    With several processes JAX handles SIGTERM instead, and `should_stop` reports it."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def record(number: int, frame: FrameType | None) -> None:
        if signals:
            os._exit(128 + number)
        signals.append(number)
        print("stopping after this step, with a checkpoint (once more to stop at once)", file=sys.stderr)

    def forward(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    handlers = {signal.SIGTERM: record, signal.SIGINT: record} if count() == 1 else {signal.SIGINT: forward}
    before = {s: signal.signal(s, handler) for s, handler in handlers.items()}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def should_stop(step: int, signals: list[int]) -> bool:
    """Whether the run stops after `step`: this process has received one of `signals`, or any process has. All
    processes call it after each step, and it returns True in all at the same step."""
    if count() > 1 and not signals:
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            signals.append(int(signal.SIGTERM))
            if is_first():
                print(f"SIGTERM: all {count()} processes stop after step {step}, with a checkpoint", flush=True)
    return bool(signals)
