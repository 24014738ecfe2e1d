"""Several processes that train together: how they find each other, agree, wait for each other, and end.

Each runs the same program on its own devices, and JAX joins those. Where a launcher's environment says nothing there is
one process, and everything here does nothing. Only the first process writes to a run's folder and speaks.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

# A launcher's environment: LM_PROCESSES is a number, with the first one's host:port and this one's place; or `auto`
# where JAX finds the others by itself (Cloud TPU, GKE, Slurm, Open MPI).
PROCESSES, COORDINATOR, PROCESS = "LM_PROCESSES", "LM_COORDINATOR", "LM_PROCESS"
HEARTBEAT_SECONDS = 30  # one that is silent for so long is lost
DAY_SECONDS = 24 * 3600  # the first process may prepare much text while the others wait
# how JAX's errors name what a lost process looks like from here
LOST = ("gloo", "by peer", "nccl", "unavailable:", "heartbeat", "deadline_exceeded", "coordination service")
_numbers = itertools.count()  # of agreements; all processes make the same ones


class PeerLost(Exception):
    """Another process died or cannot be reached: this one cannot go on, and must not wait for it."""

    exit_code = 75  # EX_TEMPFAIL: start again

    def __init__(self, what: str):
        super().__init__(
            f"process {index()} of {count()} ends: another one has died or cannot be reached ({what}); "
            "the log of the one that died tells why, and the same command goes on from the last checkpoint"
        )


def start() -> None:
    """Join the processes that the environment tells of; the first call counts, and it comes before JAX computes.

    Raises ValueError where the environment makes no sense or the others do not come."""
    found = declared(os.environ)
    if found is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **found, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        told = ", ".join(f"{k}={v}" for k, v in found.items()) or "found by JAX"
        line = str(error).strip().partition("\n")[0]
        raise ValueError(f"the processes of this run do not find each other ({told}): {line}") from None


def declared(environ: Any) -> dict[str, Any] | None:
    """What `environ` says of the other processes, as jax.distributed.initialize takes it; None where there are none.

    Raises ValueError where it makes no sense."""
    number = environ.get(PROCESSES, "")
    if not number:  # a task of a step of Slurm's, started with srun by hand
        return {} if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environ else None
    if number == "auto":
        return {}
    if number == "1":
        return None
    place, address = environ.get(PROCESS, ""), environ.get(COORDINATOR, "")
    if not number.isdigit() or not place.isdigit() or not int(place) < int(number):
        raise ValueError(
            f"{PROCESSES}={number}, {PROCESS}={place}: expected a number of processes and a place below it, or "
            f"{PROCESSES}=auto"
        )
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(f"{COORDINATOR}={address}: expected HOST:PORT of the first process")
    return dict(
        coordinator_address=address,
        num_processes=int(number),
        process_id=int(place),
        cluster_detection_method="deactivate",
    )


def count() -> int:
    """How many there are. Asking starts no device."""
    return int(_joined().num_processes)


def index() -> int:
    """The place of this one."""
    return int(_joined().process_id)


def first() -> bool:
    """Whether this is the one that writes and speaks."""
    return index() == 0


# ---------------------------------------------------------------- agreeing


def agreed(what: str, f: Callable[[], T]) -> T:
    """`f()`, once all processes have done theirs. Where one raises ValueError or OSError, all raise: the others a
    ValueError with its line."""
    if count() == 1:
        return f()
    failure: Exception | None = None
    made: T | None = None
    try:
        made = f()
    except (ValueError, OSError) as error:
        failure = error
    said = _verdict(what, "" if failure is None else f"{failure}")
    if failure is not None:
        raise failure
    if said:
        raise ValueError(said)
    return made  # type: ignore[return-value]


def by_first(what: str, f: Callable[[], Any]) -> None:
    """`f()` in the first process, while the others wait; what it raises, all raise."""
    agreed(what, f if first() else lambda: None)


def wait(what: str) -> None:
    """Until all processes are here."""
    if count() > 1:
        _verdict(what, "")


def meet() -> None:
    """Until all processes are here, and have made their connections: gloo gives them 30 s from the first that would use
    one, which is little where a machine is slow to start."""
    if count() > 1:
        from jax.experimental import multihost_utils

        wait("meet")
        multihost_utils.sync_global_devices("lm")


def _verdict(what: str, said: str) -> str:
    """The first process collects what all have `said` ("": nothing) and tells all of the first that said something."""
    key = f"lm/{next(_numbers)}/{what}"
    mine = {"process": index(), "said": said}
    if not first():
        _set(f"{key}/{index()}", json.dumps(mine))
        return str(json.loads(_get(f"{key}/all"))["said"])
    others = [json.loads(_get(f"{key}/{i}")) for i in range(1, count())]
    found = next((one for one in [mine, *others] if one["said"]), mine)
    if found["process"]:
        found["said"] = f"process {found['process']}: {found['said']}"
    _set(f"{key}/all", json.dumps(found))
    return str(found["said"])


def _set(key: str, text: str) -> None:
    with losing():
        _joined().client.key_value_set(key, text)


def _get(key: str) -> str:
    with losing():
        return str(_joined().client.blocking_key_value_get(key, DAY_SECONDS * 1000))


def _joined() -> Any:
    from jax._src import distributed  # JAX has no public name for its own store of keys

    return distributed.global_state


@contextlib.contextmanager
def losing() -> Iterator[None]:
    """Inside it, what JAX raises when another process has died becomes PeerLost."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        if count() == 1 or not any(word in line.lower() for word in LOST):
            raise
        raise PeerLost(line if len(line) <= 160 else line[:157] + "...") from error


# ---------------------------------------------------------------- ending


@contextlib.contextmanager
def listening() -> Iterator[list[int]]:
    """The SIGTERM or SIGINT that has come, in a list; a second one acts at once.

    Where there are several processes JAX listens for SIGTERM instead, and `ending` tells of it."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)
        print("stopping after this step, with a checkpoint (once more to stop at once)", file=sys.stderr)

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    handlers = {signal.SIGTERM: note, signal.SIGINT: note} if count() == 1 else {signal.SIGINT: pass_on}
    before = {s: signal.signal(s, handler) for s, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ending(step: int, asked: list[int]) -> bool:
    """Whether the run is to end after `step`: a signal is `asked`, or one has come to any process. All processes call
    it after each step, and hear yes at the same one."""
    if count() > 1 and not asked:
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            asked.append(int(signal.SIGTERM))
            if first():
                print(f"asked to end: all {count()} processes stop after step {step}, with a checkpoint", flush=True)
    return bool(asked)
