"""Checkpoints of a run: written by Orbax in the background, committed by a rename, verified by checksums when read.

`Checkpoints(directory)` is one folder of them, a subfolder a step. A checkpoint holds the arrays of a state in one flat
dictionary keyed by path ("params.layers.attention.q"), so that a part of it can be read alone, and about.json: metrics,
the caller's own data, and each array's shape, dtype and checksum. What does not match them, or is no checkpoint's
format, is damaged: the checkpoint before it is read instead, and the damaged one is renamed, and deleted once a newer
one is whole. Any other error in reading (a network file system, memory, permissions) is no damage: it is raised.
Orbax is imported when first needed: it takes part of a second.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from lm.machine import processes
from lm.machine.buckets import file_system
from lm.machine.hardware import compile_sooner
from lm.value import suggest

T = TypeVar("T")
ABOUT, ARRAYS = "about", "state"
FILE = f"{ABOUT}/about.json"  # of a checkpoint, what it says of itself
CURES = {
    "write": "free some disk space, or choose a folder that can be written",
    "read": "is it the checkpoints folder of a run, and may you read it?",
}
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that is still being written
DAMAGED = ".damaged"  # after the step, in the name of a folder that was set aside
# the statuses of TensorStore that say what the bytes are, not how they were reached
FORMAT_ERRORS = ("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE")
SLICED_BYTES = 2**20
ATTEMPTS, PAUSE_SECONDS = 3, 2.0  # to read a checkpoint where the error is no damage


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


class Checkpoints:
    """The checkpoints in a directory. Nothing on disk changes before the first `save`. All processes of a run make the
    same calls.

    Args:
      directory: a path, or the URL of a bucket's.
      keep_last: how many of the newest are kept.
      keep_best: how many of those lowest in `metric` are kept besides.
      metric: a name among the metrics that `save` gets.
      keep_step: a step whose checkpoint is kept too (0: none).
      warn: gets one line where a damaged checkpoint is passed over.

    Raises ValueError for fewer than one newest or zero best."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep_last: int = 2,
        keep_best: int = 1,
        metric: str = "loss",
        keep_step: int = 0,
        warn: Callable[[str], None] = _warn,
    ) -> None:
        if keep_last < 1 or keep_best < 0:
            raise ValueError(f"keep_last={keep_last}, keep_best={keep_best}: expected at least 1 and at least 0")
        text = os.fspath(directory)
        self.directory = text if "://" in text else os.path.abspath(text)
        self.keep_last, self.keep_best, self.metric, self.warn = keep_last, keep_best, metric, warn
        self.keep_step = keep_step
        self._scores: dict[int, float] = {}
        self._damaged: set[int] = set()
        self._cleaned = False

    @functools.cached_property
    def _manager(self) -> Any:
        ocp = _orbax()
        items = {
            # weights hardly compress: trying costs the training loop its CPU
            ARRAYS: ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=_array_handlers()),
            ABOUT: ocp.JsonCheckpointHandler(filename="about.json"),
        }
        options = ocp.CheckpointManagerOptions(preservation_policy=self, lightweight_initialize=True)
        return ocp.CheckpointManager(self.directory, options=options, item_handlers=items)

    @property
    def _started(self) -> bool:
        return "_manager" in self.__dict__

    def steps(self) -> list[int]:
        """The steps that have a finished checkpoint, ascending, without those known to be damaged."""
        if not self._started and not ("://" in self.directory or os.path.isdir(self.directory)):
            return []
        with self._explained("read"):
            return sorted(set(self._manager.all_steps()) - self._damaged)

    @property
    def latest(self) -> int | None:
        """The newest step that has a checkpoint."""
        return max(self.steps(), default=None)

    def checksums(self, step: int) -> dict[str, int]:
        """Those of the arrays in the checkpoint of `step`, as `checksums` gives them of a state. Raises ValueError
        where it cannot be read."""
        with self._explained("read"):
            return {name: checksum for name, (_, _, checksum) in self._about(step)["arrays"].items()}

    def digest(self) -> str:
        """A hash of what the newest checkpoint holds. Raises ValueError where there is none.

        One process of several may ask alone, where orbax's manager would wait for the others."""
        with file_system("read", self.directory) as (fs, root):
            names = [path.rpartition("/")[2] for path in fs.ls(root, detail=False)] if fs.exists(root) else []
            files = [f"{root}/{step}/{FILE}" for step in sorted((name for name in names if name.isdigit()), key=int)]
            text = next((fs.read_text(file) for file in reversed(files) if fs.exists(file)), "")
        if not text:
            raise ValueError(f"no checkpoint to read in {self.directory}: start over in an empty folder")
        with self._explained("read"):
            return _digest(_checked(text))

    # ------------------------------------------------------------ writing

    def save(
        self, state: Any, metrics: Mapping[str, float] | None = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        """Begin to write `state` (it has a `step`) as the checkpoint of its step, with plain JSON data `extra`.

        Returns once the arrays are copied to the host: they may be donated then. Does nothing for a step that has a
        checkpoint. Raises ValueError when the disk refuses this checkpoint or the one before it."""
        step = int(state.step)
        if step in self.steps():
            return
        arrays = flatten(state)
        scores = {name: float(value) for name, value in (metrics or {}).items()}
        about = {"step": step, "metrics": scores, "extra": dict(extra or {}), "arrays": _describe(arrays)}
        try:
            about["digest"] = _digest(about)
        except TypeError as error:
            raise ValueError(f"a checkpoint's metrics and extra are plain JSON data: {error}") from None
        with self._explained("write"):
            self._clean()
            self._scores[step] = _score(about, self.metric)
            save = _orbax().args
            items = {ARRAYS: save.PyTreeSave(arrays), ABOUT: save.JsonSave(about)}
            self._manager.save(step, args=save.Composite(**items), force=True)

    def wait(self) -> None:
        """Until what `save` began is on disk. Raises ValueError when the disk refused it."""
        if self._started:
            with self._explained("write"):
                self._manager.wait_until_finished()

    def close(self) -> None:
        """`wait`, then end Orbax's threads."""
        if self._started:
            try:
                self.wait()
                if self._cleaned and processes.is_first():
                    self._delete_set_aside()
            finally:
                self.__dict__.pop("_manager").close()

    def _clean(self) -> None:
        """Delete what a killed run left half written, and set damaged checkpoints aside, whose steps will be saved
        again. All processes."""
        manager = self._manager  # which Orbax opens in all processes together
        if self._damaged or not self._cleaned:
            processes.on_first_process("clean checkpoints", self._tidy)
        if self._damaged:
            manager.reload()
        self._damaged.clear()
        self._cleaned = True

    def _tidy(self) -> None:
        folder = self._manager.directory
        for step in sorted(self._damaged & set(self._manager.all_steps())):
            names = (f"{step}{DAMAGED}{n or ''}" for n in itertools.count())
            (folder / str(step)).rename(next(folder / name for name in names if not (folder / name).exists()))
        for path in folder.iterdir():
            if UNFINISHED in path.name:
                path.rmtree()

    def _delete_set_aside(self) -> None:
        """Delete the damaged checkpoints that a whole one is not older than."""
        with self._explained("write"):
            newest = max(self._manager.all_steps(), default=-1)
            for path in self._manager.directory.iterdir():
                step, is_damaged, _ = path.name.partition(DAMAGED)
                if is_damaged and step.isdigit() and int(step) <= newest:
                    path.rmtree()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of `checkpoints`, oldest first, to keep: Orbax's preservation policy."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        scores = {step: self.score(step) for step in steps}
        known = {step: score for step, score in scores.items() if score is not None and math.isfinite(score)}
        best = sorted(known, key=known.__getitem__)[: self.keep_best]
        kept = {*best, *steps[-self.keep_last :], self.keep_step}
        return [step in kept or scores[step] is None for step in steps]

    def score(self, step: int) -> float | None:
        """The metric of a checkpoint, infinite where it has none; None where it cannot be read at the moment."""
        if step not in self._scores:
            try:
                self._scores[step] = _score(self._about(step), self.metric)
            except Exception as error:
                if not _is_damage(error):
                    return None
                self._scores[step] = math.inf
        return self._scores[step]

    # ------------------------------------------------------------ reading

    def restore(self, abstract: T, last: int | None = None, only: int | None = None) -> tuple[T, dict[str, Any], int]:
        """(state, extra, step) of the newest checkpoint that is intact, of those up to the step `last` (None: of all);
        or of that of the step `only`.

        `abstract` is a state of ShapeDtypeStructs, whose shardings place the arrays whatever mesh they were saved from;
        or a dictionary of some of a state's parts, {"params": ...}, to read those alone. Raises ValueError where there
        is no checkpoint, none is intact, the newest has arrays of other names, shapes or dtypes, or cannot be read for
        another reason than damage."""
        wanted, failures = flatten(abstract), []
        kept = [step for step in self.steps() if (last is None or step <= last) and only in (None, step)]
        for step in reversed(kept):
            try:
                state, extra, mismatch = self._patiently(functools.partial(self._load, step, abstract, wanted))
            except Exception as error:
                if not _is_damage(error):
                    raise ValueError(self._unreadable(step, error)) from error
                failures.append((step, _first_line(error)))
                continue
            if mismatch:
                raise ValueError(f"checkpoint {step} in {self.directory} is of another model or optimizer: {mismatch}")
            for damaged, reason in failures:
                self._damaged.add(damaged)
                self.warn(
                    f"checkpoint {damaged} in {self.directory} is damaged ({reason}): going back to checkpoint {step}"
                )
            return typing.cast(T, state), extra, step
        reasons = "".join(f"; checkpoint {step} is damaged ({reason})" for step, reason in failures)
        raise ValueError(f"no checkpoint to read in {self.directory}{reasons}: start over in an empty folder")

    def _load(self, step: int, abstract: T, wanted: dict[str, Any]) -> tuple[T | None, dict[str, Any], str]:
        """The state and the caller's data of a checkpoint; or how its arrays are others than those `wanted`."""
        about = self._about(step)
        mismatch = _mismatch(wanted, about["arrays"])
        return None if mismatch else self._read(step, abstract, wanted, about["arrays"]), about["extra"], mismatch

    def _patiently(self, read: Callable[[], T]) -> T:
        """`read()`, again after a pause where it fails by another error than damage."""
        for attempt in range(1, ATTEMPTS):
            try:
                return read()
            except Exception as error:
                if _is_damage(error):
                    raise
                self.warn(f"cannot read a checkpoint in {self.directory} ({_first_line(error)}): trying again")
            time.sleep(attempt * PAUSE_SECONDS)
        return read()

    def _unreadable(self, step: int, error: Exception) -> str:
        older = max((s for s in self.steps() if s < step), default=None)
        back = f", or move {self.directory}/{step} away to go back to checkpoint {older}" if older is not None else ""
        return (
            f"checkpoint {step} in {self.directory} cannot be read ({_first_line(error)}), which is no damage, and "
            f"nothing was changed: try again{back}"
        )

    def _about(self, step: int) -> dict[str, Any]:
        return _checked((self._manager.directory / str(step) / FILE).read_text())

    def _read(self, step: int, abstract: T, wanted: dict[str, Any], saved: dict[str, Any]) -> T:
        ocp = _orbax()
        default = SingleDeviceSharding(jax.devices()[0])
        args = {
            name: ocp.ArrayRestoreArgs(sharding=array.sharding or default, global_shape=array.shape, dtype=array.dtype)
            for name, array in wanted.items()
        }
        request = ocp.args.PyTreeRestore(item=wanted, restore_args=args, partial_restore=True)
        arrays = self._manager.restore(step, args=ocp.args.Composite(**{ARRAYS: request}))[ARRAYS]
        for name, found in _describe({name: arrays[name] for name in wanted}).items():
            if found != saved[name]:
                raise ValueError(f"{name} does not match its checksum")
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted])

    @contextlib.contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Inside it, whatever the disk or Orbax raises becomes one line that names the directory and the cure."""
        try:
            yield
        except Exception as error:
            what = f"cannot {verb} checkpoints in {self.directory} ({_first_line(error)})"
            raise ValueError(f"{what}: {CURES[verb]}") from error


@functools.cache
def _orbax() -> Any:
    """orbax.checkpoint, with its logging filtered: this module reports what a user must know."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
    # `save` or `wait` reports a write that failed; its abandoned task would report it once more
    logging.getLogger("asyncio").addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.getMessage())
    before = sys.unraisablehook

    def hook(raised: Any) -> None:
        # where one read fails, Orbax abandons the others in flight, and Python would print how each of them ended
        code = getattr(raised.object, "cr_code", None)
        abandoned = code is not None and f"{os.sep}orbax{os.sep}" in code.co_filename
        if not abandoned and str(raised.exc_value) != "Event loop is closed":
            before(raised)

    sys.unraisablehook = hook
    return ocp


def _array_handlers() -> Any:
    """How Orbax writes arrays: what several devices hold is written in a slice a device only where slices are large. Of
    a small array each slice, a program to compile and a transfer, takes longer than it saves."""
    handlers = _orbax().type_handlers
    array = handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICED_BYTES)
    return handlers.create_type_handler_registry((jax.Array, array))


def _is_damage(error: BaseException) -> bool:
    """Whether an error in reading says that a checkpoint's files are missing, incomplete or altered: a checksum or
    format that does not match. Whatever else fails may succeed later."""
    error = _original(error)
    status, _, rest = str(error).partition(":")
    if status.isupper():  # TensorStore's; it names the errors of the operating system
        return status in FORMAT_ERRORS and "OS error" not in rest
    return isinstance(error, FileNotFoundError | ValueError | LookupError | TypeError)


def _original(error: BaseException) -> BaseException:
    while error.__cause__:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    """The first line of the original error."""
    error = _original(error)
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:197] + "..."


def checksums(state: Any) -> dict[str, int]:
    """The checksum of each array of a state, by its path, as a checkpoint keeps them. All processes of a run."""
    return {name: checksum for name, (_, _, checksum) in _describe(flatten(state)).items()}


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, joined with dots, in the tree's order. Raises ValueError where two are one,
    by a dot inside of a key: of such Orbax keeps one array (findings/orbax-names-with-dots.sh)."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in named:
            raise ValueError(f"two arrays are named {name}: a key with a dot in it meets nested ones, rename it")
        named[name] = leaf
    return named


def _describe(arrays: Mapping[str, jax.Array]) -> dict[str, list[Any]]:
    """[shape, dtype, checksum] of each array, as JSON data."""
    sums = np.asarray(_sums(list(arrays.values()))).tolist()
    return {k: [list(a.shape), str(a.dtype), s] for (k, a), s in zip(arrays.items(), sums, strict=True)}


def _sums(arrays: list[jax.Array]) -> jax.Array:
    """Their checksums, uint32 [len(arrays)]; of arrays sharded over several processes, in each of these."""
    if all(a.is_fully_addressable for a in arrays):
        return _checksums()(arrays)
    mesh = next(a.sharding.mesh for a in arrays if isinstance(a.sharding, NamedSharding))
    return _checksums(NamedSharding(mesh, PartitionSpec()))(arrays)


@functools.cache
def _checksums(placing: NamedSharding | None = None) -> Callable[[list[jax.Array]], jax.Array]:
    def of(arrays: list[jax.Array]) -> jax.Array:
        return jnp.stack([checksum(x) for x in arrays])

    return jax.jit(of, out_shardings=placing, compiler_options=compile_sooner())


def checksum(x: jax.Array) -> jax.Array:
    """A uint32 that a change of any one word of `x` changes: the sum of its words, each times an odd number made from
    its position, modulo 2^32. Computed on the devices that hold `x`, whatever its sharding."""
    bits = x.astype(jnp.uint8) if x.dtype == bool else jax.lax.bitcast_convert_type(x, _word(x.dtype))
    position = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):  # not an iota of the flattened array: that would gather a sharded one
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits.astype(jnp.uint32) * (2 * position + 1), dtype=jnp.uint32)


def _word(dtype: Any) -> Any:
    return {1: jnp.uint8, 2: jnp.uint16}.get(jnp.dtype(dtype).itemsize, jnp.uint32)


def _checked(text: str) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises ValueError where that does not match its checksum."""
    about: dict[str, Any] = json.loads(text)
    if about.pop("digest") != _digest(about):
        raise ValueError("about.json does not match its checksum")
    return about


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _score(about: Mapping[str, Any], metric: str) -> float:
    return float(about["metrics"].get(metric, math.inf))


def _mismatch(wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Why the `wanted` arrays cannot be restored from the `saved` ones: one line, empty where they can."""
    parts = {name.partition(".")[0] for name in wanted}
    missing = [name for name in wanted if name not in saved]
    if missing:
        return f"it has no {missing[0]}; {suggest(missing[0], [n for n in saved if n.partition('.')[0] in parts][:20])}"
    if extra := [name for name in saved if name not in wanted and name.partition(".")[0] in parts]:
        return f"it has {extra[0]}, which this run does not have"
    for name, array in wanted.items():
        shape, dtype, _ = saved[name]
        if tuple(shape) != tuple(array.shape) or dtype != str(array.dtype):
            return f"{name} is {dtype}{shape} in the checkpoint, {array.dtype}{list(array.shape)} in this run"
    return ""
