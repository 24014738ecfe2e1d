"""A run: from an experiment and a folder to a trained model, its curves, samples and report.

The folder is claimed, the experiment prepared (lm/run/prepared.py), the state initialised or restored; then the loop
trains, with pauses to evaluate held-out data and to save. Started again in the same folder, a run resumes from its
newest checkpoint, to the same bits as uninterrupted. Several processes run it together; the first one writes.
"""

import contextlib
import dataclasses
import itertools
import shlex
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import value
from lm.experiment import Experiment
from lm.machine import buckets, hardware, locks, processes
from lm.machine.cache import cache_dir
from lm.machine.monitor import Bar, Metrics, waiting
from lm.machine.processes import catch_signals
from lm.page.run_report import write_report
from lm.page.words import join_and
from lm.run import history, log
from lm.run.folder import claim
from lm.run.log import NullLogger, RunLogger
from lm.run.memory import check_memory
from lm.run.models import check_models, check_tokenizers, read_params, saved_models
from lm.run.prepared import Prepared, prepare_run
from lm.run.samples import write_samples
from lm.run.start import check_start, start_params
from lm.run.watching import Watcher
from lm.sharding.batches import place_batch
from lm.train.checkpoint import Checkpoints, checksums
from lm.train.loop import NotFinite, as_batches
from lm.train.loop import train as train_loop
from lm.train.method import Batch
from lm.train.program import Program
from lm.train.state import TrainState
from lm.train.step import Init, build_init, build_rollout, compile_in_thread, state_shardings
from lm.train.word2vec import initialize_embedding


class Interrupted(Exception):
    """A `signal` ended the run, after a checkpoint, in all its processes."""

    shared = True

    def __init__(self, signal: int, step: int, workdir: Path):
        super().__init__(f"stopped after step {step}, with a checkpoint; the same command resumes from there")
        self.signal, self.step, self.workdir = signal, step, workdir


def train(
    experiment: Experiment,
    workdir: str | Path,
    reference: str = "",
    command: str = "",
    stepping: "Stepping" = contextlib.nullcontext,
) -> Path:
    """Train `experiment` in the folder `workdir` (a path, or the URL of a bucket's), from its newest checkpoint if it
    has one; returns the report's path.

    Args:
      experiment: what to train.
      workdir: the run's folder.
      reference: module:name of the experiment, recorded in the folder.
      command: the command line, recorded too.
      stepping: what the run's stepper is taken in, around all steps (lm/run/profile.py).

    Raises ValueError for what the user can cure, another process that trains in the folder included; Interrupted after
    SIGTERM or SIGINT; PeerLost where another process of the run died."""
    processes.initialize()
    hardware.set_cpu_devices(experiment.compute.devices)
    hardware.use_compilation_cache(cache_dir())
    hardware.run_steps_in_turn()
    hardware.check_backend()
    experiment = experiment.on(jax.device_count())
    with contextlib.ExitStack() as stack, processes.fail_together(), processes.translate_peer_errors():
        processes.connect()
        folder = buckets.local_mirror(workdir)
        processes.on_first_process("lock", lambda: stack.enter_context(locks.exclusive(folder)))
        claim(folder, experiment, reference)
        if processes.is_first():
            locks.sign(folder)
            print(log.announcement(experiment, folder), flush=True)
        report = Run(experiment, folder, command).train(stepping)
        processes.barrier("end")
    return report


class Run:
    """The training of an experiment in its claimed folder.

    Args:
      experiment: what to train.
      folder: claimed for it (lm/run/folder.py).
      command: the command line, for the report.
      like: a run of the same program (lm/run/together.py), whose compiled step and evaluations this one shares.

    Raises ValueError for what cannot be prepared (see `prepare_run`)."""

    def __init__(self, experiment: Experiment, folder: Path, command: str = "", like: "Run | None" = None):
        self.time = log.WallTime()
        self.experiment, self.folder, self.command, self.like = experiment, folder, command, like
        if not like:  # whose program is this one's too
            processes.all_or_raise("memory", lambda: check_memory(experiment))
        for tracker in experiment.trackers:
            tracker.check()
        check_start(experiment, folder)
        check_models(experiment, folder)
        self.prepared: Prepared = prepare_run(experiment, folder, like=like.prepared if like else None)
        e, mesh, learner = experiment, self.prepared.mesh, self.prepared.learner
        check_tokenizers(e, folder, self.prepared.data.tokenizer)
        learner.prepare(e.steps, saved_models(self.prepared))
        learner.check_samples(e)
        self.program: Program = (
            like.program if like else Program(learner, e.optimizer, mesh, e.accumulate, e.ema, e.layout)
        )
        self.optimizer = e.optimizer.build(e.steps, learner.axes())
        self.init: Init = (
            like.init  # the program of the step does not know how its parameters were drawn, that of the state does
            if like and like.experiment.model == e.model
            else build_init(learner, self.optimizer, mesh, e.ema, e.layout)
        )
        self.rollout = build_rollout(learner, mesh, e.seed, e.layout)
        self.logger = NullLogger()

    def train(self, stepping: "Stepping" = contextlib.nullcontext) -> Path:
        """Train to the end by the run's stepper as `stepping` gives it, then sample and report. Returns the report's
        path."""
        with catch_signals() as signals, stepping(Stepper(self)) as stepper:
            for _ in self.steps(signals, Bar, stepper):
                pass
        if processes.is_first():
            report = write_report(self.folder)
            buckets.upload(self.folder)
            print(f"report: {buckets.display_path(self.folder)}/{report.name}", flush=True)
        return self.folder / "report.html"

    def steps(
        self, signals: list[int], bar: Callable[[int, int], Bar], stepper: "Stepper | None" = None
    ) -> Generator[int, None, None]:
        """Train and sample, yielding each step's index once it is dispatched.

        Args:
          signals: received so far; the first ends the run early, with a checkpoint.
          bar: (steps, first step) -> the progress bar.
          stepper: what takes the steps (None: the run's own program).

        Raises Interrupted after a signal, NotFinite for a loss that is not finite."""
        e, stepper = self.experiment, stepper or Stepper(self)
        with contextlib.ExitStack() as stack:
            path = buckets.checkpoint_path(self.folder)
            checkpoints = Checkpoints(path, e.keep_last, e.keep_best, keep_step=self.branch_step)
            stack.callback(checkpoints.close)
            last = checkpoints.latest or 0
            first, batches = self._batches(last, stack) if last < e.steps else (None, iter(()))
            if first:
                stepper.compile_ahead(first)
            what = "restoring the newest checkpoint" if checkpoints.steps() else "initialising the parameters"
            with waiting(what) if bar is Bar and processes.is_first() else contextlib.nullcontext():
                state = self._restored(checkpoints) if checkpoints.steps() else self.initial_state()
            start = int(state.step)
            if start < last:  # of a checkpoint before a damaged one
                _, batches = self._batches(start, stack)
            if start < e.steps:
                initial = {} if start else _learned(checksums(state))
                self.logger = logger = self._logger(start, initial, bar, stack)
                watcher = Watcher(e.watch, self.prepared, self.folder, start) if e.watch else None
                processes.barrier("begin")  # or the others would wait in a collective for the process that logs
                for state in self._loop(state, batches, checkpoints, stepper, signals):  # noqa: B020
                    start += 1
                    if watcher and watcher.due(start):
                        now = stepper.current(state)
                        watcher.note(start, self.eval_params(now), now.frozen)
                    yield start
                checkpoints.wait()
                state = stepper.current(state)
                if int(state.step) < e.steps:
                    raise Interrupted(signals[0], int(state.step), self.folder)
                logger.say("drawing samples …")
                write_samples(self.prepared, self.eval_params(state), state.frozen, start, logger.say)
                logger.finish()
            else:
                self._finish(state, start)

    @property
    def branch_step(self) -> int:
        """The step whose checkpoint is kept for a longer run (lengthen.py); 0 where only the newest is kept."""
        e = self.experiment
        return e.optimizer.schedule.branch_step(e.steps) if e.keep_last > 1 or e.keep_best else 0

    def exclude_time(self, seconds: float) -> None:
        """Do not count `seconds` as this run's: other runs of the process had them."""
        self.time.exclude(seconds)
        self.logger.exclude_time(seconds)

    def eval_params(self, state: TrainState) -> Any:
        """The parameters to evaluate: their moving average where the run keeps one."""
        return state.ema if self.experiment.ema else state.params

    # ---------------------------------------------------------------- before the first step and after the last

    def initial_state(self) -> TrainState:
        """The state before the first step, of the model that is the start, or with the embedding table of the
        experiment's file, where it names one."""
        e, prepared = self.experiment, self.prepared
        start = start_params(e, prepared.mesh) if e.start else None
        models = read_params(e, prepared.learner.models, prepared.mesh)
        state = self.init(e.seed, start, models)
        if not e.embedding:
            return state
        try:
            params = initialize_embedding(state.params, np.load(e.embedding, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ValueError(f"embedding={e.embedding}: {error}") from None
        params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, state.params)
        return dataclasses.replace(state, params=params, ema=jax.tree.map(jnp.copy, params) if e.ema else ())

    def state_shapes(self) -> TrainState:
        """The training state as ShapeDtypeStructs that carry their shardings."""
        e, prepared = self.experiment, self.prepared
        shapes: TrainState = state_shardings(prepared.learner, self.optimizer, prepared.mesh, e.ema, e.layout)[0]
        return shapes

    def _restored(self, checkpoints: Checkpoints) -> TrainState:
        state, saved, step = checkpoints.restore(self.state_shapes())
        self.time.resume(saved)
        if processes.is_first():
            print(f"resumed from checkpoint {step}")
        return state

    def _logger(
        self, start: int, initial: dict[str, int], bar: Callable[[int, int], Bar], stack: contextlib.ExitStack
    ) -> NullLogger:
        """The logger from step `start` on: of the first process, or one that does nothing. `initial` are the checksums
        of the state before the first step."""
        peak = hardware.peak_flops(self.prepared.compute.matmul)
        if not processes.is_first():
            return NullLogger()
        e = self.experiment
        trackers = [tracker.open(self.folder, e.name, value.plain(e)) for tracker in e.trackers]
        metrics = Metrics(self.folder, start, trackers)
        stack.callback(metrics.close)
        metadata = log.run_metadata(self.prepared, self.state_shapes(), self.command, self.time.started, peak)
        then = history.at_step(history.read_history(self.folder), start).get("environment", {})
        if others := history.changes(then, metadata["environment"]):
            print(f"since checkpoint {start} other: {join_and(others, 4)}; from here on losses may end in other digits")
        history.begin(self.folder, start, metadata, initial)
        return RunLogger(e, self.folder, metadata, metrics, stack.enter_context(bar(e.steps, start)), start, self.time)

    def _finish(self, state: TrainState, steps: int) -> None:
        """Complete a run without steps left: one that was killed after its last checkpoint has no samples yet."""
        if processes.is_first():
            Metrics(self.folder, steps).close()
            print(f"{buckets.display_path(self.folder)} is finished: {steps} steps are done")
        if not (self.folder / "samples.json").exists():
            write_samples(self.prepared, self.eval_params(state), state.frozen, steps, print)
        if processes.is_first():
            log.finish(self.folder, self.time)

    # ---------------------------------------------------------------- the loop

    def _batches(self, last: int, stack: contextlib.ExitStack) -> tuple[Batch, Iterator[Batch]]:
        """The batch after step `last`, and all from it on."""
        reader = self.prepared.learner.batches(last)
        stack.callback(reader.close)
        first = next(reader)
        return first, itertools.chain([first], reader)

    def _loop(
        self,
        state: TrainState,
        batches: Iterator[Batch],
        checkpoints: Checkpoints,
        stepper: "Stepper",
        signals: list[int],
    ) -> Iterator[TrainState]:
        e, logger = self.experiment, self.logger

        def schedule(n: int) -> tuple[bool, bool]:
            """Whether to evaluate, and to save, after step n."""
            end = n == e.steps
            save = end or n == self.branch_step or n % e.checkpoint_every_steps == 0 or bool(signals)
            return end or n % e.eval_every_steps == 0, save

        def should_pause(n: int) -> bool:
            processes.should_stop(n, signals)
            return any(schedule(n))

        def on_pause(n: int, state: TrainState) -> bool:
            evaluate, save = schedule(n)
            measures: dict[str, float] = {}
            state = stepper.current(state)
            if evaluate:
                logger.evaluating()
                most_tokens = 0 if n == e.steps else e.eval_tokens
                measures = self.prepared.measure(self.eval_params(state), state.frozen, most_tokens)
                logger.evaluated(n, measures)
            if save:
                logger.flush()  # a checkpoint is never ahead of its log
                checkpoints.save(state, self._score(measures), self.time.saved())
            logger.resume(n)
            return bool(signals)

        placed = as_batches(batches, stepper.place)
        try:
            yield from train_loop(
                state, stepper.step, placed, self.rollout, e.steps, logger.observe, should_pause, on_pause
            )
        except NotFinite as error:
            checkpoints.wait()
            raise NotFinite(f"{error}: stopped; {self._cure(checkpoints, error.step)}", error.step) from None

    def _score(self, measures: dict[str, float]) -> dict[str, float]:
        """The metric in which the best checkpoints are lowest: the method's first measure, averaged over sources."""
        first = self.experiment.method.measures[0]
        sign = -1 if first.higher_is_better else 1
        return {"loss": sign * measures[f"eval/{first.name}"]} if measures else {}

    def _cure(self, checkpoints: Checkpoints, step: int) -> str:
        """What can be done about a loss that was not finite in `step`."""
        kept, folder = checkpoints.latest, buckets.display_path(self.folder)
        where = f"checkpoint {kept} in {folder} is from before"
        return (
            f"{where if kept else 'no checkpoint was written yet'}. "
            f"`lm replay {shlex.quote(folder)} --step {step}` says in which layer, row and document it began. "
            "A lower learning rate, a longer warm-up or a tighter clip may help"
        )


def _learned(sums: dict[str, int]) -> dict[str, int]:
    """Those of the parameters, trained and frozen, among the checksums of a state."""
    return {name: checksum for name, checksum in sums.items() if name.split(".")[0] in ("params", "frozen")}


class Stepper:
    """Takes the steps of a run by its own program. Runs under vmap have another (lm/run/vmapped.py)."""

    def __init__(self, run: Run):
        self.run, e = run, run.experiment
        self.compiled_step: Any = run.program.step(e.optimizer, e.steps, e.seed)
        self.recorded = False
        self.compiling: threading.Thread | None = None

    def compile_ahead(self, batch: Batch) -> None:
        """Begin to compile the step for host batches like this one, beside what makes the state: where a rollout does
        not make another batch of it, and no other run has compiled the same program."""
        run = self.run
        if not run.prepared.learner.has_rollout and not run.like:
            self.compiling = compile_in_thread(self.compiled_step, run.state_shapes(), self.place(batch))

    def step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """(state one step on, metrics)."""
        if self.compiling:
            self.compiling.join()
            self.compiling = None
        if not self.recorded:
            self.recorded = True
            program, steps = self.run.program, self.run.experiment.steps
            self.run.logger.lowered(lambda: program.fingerprint(self.compiled_step, steps, state, batch))
        return self.compiled_step(state, batch)

    def place(self, batch: Batch) -> Any:
        """A host batch as `step` takes it."""
        prepared = self.run.prepared
        return place_batch(batch, prepared.mesh, prepared.local_rows, self.run.experiment.rows)

    def current(self, state: Any) -> TrainState:
        """The run's state, given what its last step returned."""
        return state


Stepping = Callable[[Stepper], contextlib.AbstractContextManager[Stepper]]
