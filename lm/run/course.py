"""A run: an experiment and a folder become a trained model, its curves, its samples and its report.

The order of things is the order of this file: the folder is claimed, the data prepared, the state made or restored,
then the loop trains, stopping now and then to look at held-out text and to save. Started again in the same folder, it
goes on where the last checkpoint was, with the bits that it would have had. Several processes do all of it together;
only the first one writes and speaks.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.loader import Batches, make_tokenizer, prepare
from lm.data.objective import ObjectiveContext, objective_context
from lm.experiment import Experiment
from lm.legal import check_mesh
from lm.machine import buckets, hardware, processes
from lm.machine.cache import cache_dir
from lm.machine.monitor import Bar, Metrics, preparing
from lm.machine.processes import catch_signals
from lm.model import count
from lm.model.transformer import Transformer
from lm.page.run_report import write_report
from lm.pretrained import Pretrained, read_experiment
from lm.run import evaluations, heldout, log
from lm.run.folder import check_sources, claim, on_first_process, save_tokenizer, write_json
from lm.run.log import Silent, Telling
from lm.run.samples import samples
from lm.sharding.mesh import make_mesh, row_devices
from lm.text.tokenizer import load_tokenizer
from lm.train.checkpoint import Checkpoints
from lm.train.loop import NotFinite, as_batches
from lm.train.loop import train as train_loop
from lm.train.program import Program
from lm.train.state import TrainState
from lm.train.step import build_eval, init_state, own_rows, place, state_shardings, whole
from lm.train.task import Batch, Pretraining
from lm.train.word2vec import started


class Interrupted(Exception):
    """The run was asked to end by `signal`, and did, after a checkpoint."""

    def __init__(self, signal: int, step: int, workdir: Path):
        super().__init__(f"stopped after step {step}, with a checkpoint; the same command goes on from there")
        self.signal, self.step, self.workdir = signal, step, workdir


def train(experiment: Experiment, workdir: str | Path, reference: str = "", command: str = "") -> Path:
    """Train `experiment` in the folder `workdir` (a path, or the URL of a bucket's), from its newest checkpoint if it
    has one; returns the report's path.

    `reference` (module:name) and `command` are noted in the folder. Raises ValueError for anything the user can mend,
    Interrupted after SIGTERM or SIGINT, PeerLost where another process of the run died."""
    processes.initialize()
    hardware.set_cpu_devices(experiment.compute.devices)
    hardware.use_compilation_cache(cache_dir())
    experiment = experiment.on(jax.device_count())
    with processes.translate_peer_errors():
        processes.connect()
        folder = claim(buckets.local_mirror(workdir), experiment, reference)
        report = Run(experiment, folder, command).train()
        processes.barrier("end")
    return report


def check_vocabulary(experiment: Experiment, setting: ObjectiveContext) -> None:
    """Raises ValueError where the model has fewer ids than the tokenizer and the objective need."""
    pieces, extra = setting.vocab, experiment.objective.extra_tokens(setting)
    if pieces + extra > experiment.model.vocab:
        more = f", {type(experiment.objective).__name__} adds {extra}" if extra else ""
        raise ValueError(
            f"the tokenizer has {pieces} pieces{more} and model.vocab is {experiment.model.vocab}: "
            f"raise model.vocab to at least {pieces + extra}"
        )


class Run:
    """One run under way: what is declared, what it was turned into, and the folder."""

    def __init__(self, experiment: Experiment, folder: Path, command: str = ""):
        self.started = time.time()
        self.experiment, self.folder, self.command = experiment, folder, command
        self.compute = experiment.compute.resolve()
        self.mesh = make_mesh(experiment.mesh)
        check_mesh(experiment, self.mesh.shape)
        self.data = self._prepare()
        self.further = evaluations.batches(experiment, self.data, row_devices(self.mesh))
        self.model = Transformer(experiment.model, self.compute)
        self.own = own_rows(self.mesh, experiment.rows)
        self.task = Pretraining(self.model, self.data, experiment.z_loss, self.own)
        self.optimizer = experiment.optimizer.build(experiment.steps, self.task.axes())
        self.evaluate_step = build_eval(self.task, self.mesh, experiment.layout)
        self.teller = Silent()

    @functools.cached_property
    def program(self) -> Program:
        """What its steps run; one of another run may take its place (lm/study/together.py)."""
        e = self.experiment
        return Program(self.task, e.optimizer, self.mesh, e.accumulate, e.ema, e.layout)

    @functools.cached_property
    def stepping(self) -> "Stepping":
        """How it goes from step to step; with others at its side, another way (lm/study/vmapped.py)."""
        return Stepping(self)

    def _prepare(self) -> Batches:
        """The tokenizer is made once, by the first process; each machine keeps the tokens that it reads."""
        e, saved = self.experiment, self.folder / "tokenizer"
        with preparing() if processes.is_first() else contextlib.nullcontext() as progress:
            on_first_process("tokenizer", self.folder, lambda: self._tokenizer(saved, progress))
            data = processes.all_or_raise(
                "data",
                lambda: prepare(
                    e.data, e.length, e.rows, e.seed, e.objective, load_tokenizer(saved), progress, self._encodes
                ),
            )
        check_vocabulary(e, data.context)
        check_sources(self.folder, e.data.mixture.sources)
        return data

    @property
    def _encodes(self) -> bool:
        return self.experiment.model.has_encoder

    def _tokenizer(self, saved: Path, progress: Any) -> None:
        e = self.experiment
        if not saved.exists():
            tokenizer = make_tokenizer(e.data, progress)
            check_vocabulary(e, objective_context(tokenizer, e.length, self._encodes))
            save_tokenizer(tokenizer, saved)

    # ---------------------------------------------------------------- training

    def train(self) -> Path:
        """Train to the end, then sample and report."""
        with catch_signals() as asked:
            for _ in self.course(asked, Bar):
                pass
        return self.folder / "report.html"

    def course(self, asked: list[int], show: Callable[[int, int], Bar]) -> Generator[int, None, None]:
        """The run as it goes, step by step, to its report: gives the number of each step once that is under way.

        It ends early, with a checkpoint, where a signal is `asked`; `show` makes the bar of (steps, first)."""
        e = self.experiment
        with contextlib.ExitStack() as stack:
            checkpoints = Checkpoints(buckets.checkpoint_path(self.folder), e.keep_last, e.keep_best)
            stack.callback(checkpoints.close)
            state = self._state(checkpoints)
            start = int(state.step)
            if start < e.steps:
                self.teller = teller = self._teller(start, show, stack)
                processes.barrier("begin")  # not in the first collective: the one that tells was busy
                for state in self._loop(state, checkpoints, teller, asked):  # noqa: B007, B020
                    start += 1
                    yield start
                checkpoints.wait()
                state = self.stepping.now(state)
                if int(state.step) < e.steps:
                    raise Interrupted(asked[0], int(state.step), self.folder)
                self._sample(state, teller.say)
                teller.finish()
            else:
                self._finished(state, start)
        if processes.is_first():
            report = write_report(self.folder)
            buckets.upload(self.folder)
            print(f"report: {buckets.display_path(self.folder)}/{report.name}")

    def away(self, seconds: float) -> None:
        """So many of the seconds since it began were other runs'."""
        self.started += seconds
        self.teller.away(seconds)

    def _finished(self, state: TrainState, steps: int) -> None:
        """Nothing is left to train; what one leaves undone that was killed after its last checkpoint is done."""
        if processes.is_first():
            Metrics(self.folder, steps).close()
            print(f"{buckets.display_path(self.folder)} is finished: {steps} steps are done")
        if not (self.folder / "samples.json").exists():
            self._sample(state, print)
        if processes.is_first():
            log.finish(self.folder, self.started)

    def _teller(self, start: int, show: Callable[[int, int], Bar], stack: contextlib.ExitStack) -> Silent:
        """What tells of the run from step `start` on; nothing, in any process but the first."""
        if not processes.is_first():
            return Silent()
        e = self.experiment
        metrics = Metrics(self.folder, start)
        stack.callback(metrics.close)
        abstract, _ = state_shardings(self.task, self.optimizer, self.mesh, e.ema, e.layout)
        about = log.about(e, self.compute, self.mesh, self.data, abstract, self.command, self.started)
        bar = stack.enter_context(show(e.steps, start))
        return Telling(e, self.folder, about, metrics, bar, self.data.sources, start, self.started)

    def _state(self, checkpoints: Checkpoints) -> TrainState:
        e = self.experiment
        if not checkpoints.steps():
            return self._started(init_state(self.task, self.optimizer, self.mesh, e.seed, e.ema, e.layout))
        abstract, _ = state_shardings(self.task, self.optimizer, self.mesh, e.ema, e.layout)
        state, _, step = checkpoints.restore(abstract)
        if processes.is_first():
            print(f"resumed from checkpoint {step}")
        return state

    def _started(self, state: TrainState) -> TrainState:
        """A fresh state, its embedding table from the experiment's file where it names one."""
        file = self.experiment.embedding
        if not file:
            return state
        try:
            vectors = np.load(file, allow_pickle=False)
            params = started(state.params, vectors)
        except (OSError, ValueError) as error:
            raise ValueError(f"embedding={file}: {error}") from None
        params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, state.params)
        average = jax.tree.map(jnp.copy, params) if self.experiment.ema else state.ema
        return dataclasses.replace(state, params=params, ema=average)

    def _loop(
        self, state: TrainState, checkpoints: Checkpoints, teller: Silent, asked: list[int]
    ) -> Iterator[TrainState]:
        e = self.experiment
        stepping = self.stepping

        def due(n: int) -> tuple[bool, bool]:
            end = n == e.steps
            return end or n % e.eval_every_steps == 0, end or n % e.checkpoint_every_steps == 0 or bool(asked)

        def pause(n: int) -> bool:
            processes.should_stop(n, asked)
            return any(due(n))

        def visit(n: int, state: TrainState) -> bool:
            look, save = due(n)
            held_out: dict[str, float] = {}
            state = stepping.now(state)
            if look:
                held_out = self.heldout(state.ema if e.ema else state.params, 0 if n == e.steps else e.eval_tokens)
                teller.evaluated(n, held_out)
            if save:
                teller.flush()  # what a checkpoint has behind it is on disk before it is
                checkpoints.save(state, {"loss": held_out["eval/loss"]} if held_out else {})
            teller.going_on(n)
            return bool(asked)

        batches = self.task.batches(state)
        try:
            placed = as_batches(batches, stepping.placed)
            yield from train_loop(state, stepping.step, placed, e.steps, teller.observe, pause, visit)
        except NotFinite as error:
            checkpoints.wait()
            kept = checkpoints.latest
            where = (
                f"checkpoint {kept} in {buckets.display_path(self.folder)} is from before"
                if kept
                else "no checkpoint was written yet"
            )
            raise NotFinite(
                f"{error}: stopped; {where}. A lower learning rate, a longer warm-up or a tighter clip may help"
            ) from None
        finally:
            batches.close()  # type: ignore[attr-defined]

    # ---------------------------------------------------------------- looking

    def heldout(self, params: Any, most_tokens: int = 0) -> dict[str, float]:
        """What `params` make of held-out text, as lm/run/heldout.py says; that of further evaluations is under
        evaluations/NAME/ instead of eval/."""
        asked = {"eval": self.data} | {f"evaluations/{name}": data for name, data in self.further.items()}
        look = partial(heldout.heldout, self.experiment.accumulate, self.evaluate_step, self.mesh, params, most_tokens)
        return {f"{at}/{name}": x for at, data in asked.items() for name, x in look(data).items()}

    def _sample(self, state: TrainState, say: Callable[[str], None]) -> None:
        e = self.experiment
        params = here(state.ema if e.ema else state.params)
        if params is None or not processes.is_first():
            return
        model = Pretrained(e.model, params, self.data.tokenizer, self.model, int(state.step))
        found = []
        for sample in samples(e, model, self.data):
            say(f"--- {sample.title}:\n{sample.text}")
            found.append(sample)
        if found:
            texts = ("\n" + "=" * 80 + "\n").join(sample.text for sample in found)
            (self.folder / "samples.txt").write_text(texts + "\n")
            write_json(self.folder / "samples.json", [{"prompt": s.prompt, "text": s.text} for s in found])


class Stepping:
    """How a run goes from step to step: by itself."""

    def __init__(self, run: Run):
        self.run, e = run, run.experiment
        self.once = run.program.step(e.optimizer, e.steps, e.seed)

    def step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """(state one step on, metrics)."""
        return self.once(state, batch)

    def placed(self, batch: Batch) -> Any:
        """A host batch as `step` takes it."""
        return place(batch, self.run.mesh, self.run.own, self.run.experiment.rows)

    def now(self, state: Any) -> TrainState:
        """The run's state, given what its last step gave."""
        return state


def here(params: Any) -> Any:
    """`params` as the first process can use them alone; of several processes each gets the whole, on a device of its
    own, or None where that has no room for them."""
    if processes.count() == 1:
        return params
    room = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if room and count.tree_bytes(params) > room // 4:  # the training state is there as well
        if processes.is_first():
            print("no samples: the parameters do not fit one device; `lm sample` reads them from the checkpoint")
        return None
    return whole(params)


def evaluate(run: str | Path) -> dict[str, dict[str, float]]:
    """source -> the objective's measures on held-out text, of a run's newest checkpoint; and gzip and xz (bits per
    byte), where bits per byte is one. NAME/SOURCE -> those of the experiment's further evaluations."""
    run = buckets.local_mirror(run)
    experiment = read_experiment(run)
    hardware.set_cpu_devices(experiment.compute.devices)
    hardware.use_compilation_cache(cache_dir())
    under_way = Run(experiment, run)
    part = "ema" if experiment.ema else "params"
    checkpoints = Checkpoints(buckets.checkpoint_path(run), experiment.keep_last, experiment.keep_best)
    abstract, _ = state_shardings(
        under_way.task, under_way.optimizer, under_way.mesh, experiment.ema, experiment.layout
    )
    state, _, _ = checkpoints.restore({part: getattr(abstract, part)})
    checkpoints.close()
    found, baselines = under_way.heldout(state[part]), log.baselines(experiment, under_way.data)
    own = {
        s: {k: found[f"eval/{s}/{k}"] for k in experiment.objective.measures} | baselines.get(s, {})
        for s in under_way.data.sources
    }
    looks = [(f"{n}/{s}", d.objective.measures) for n, d in under_way.further.items() for s in d.sources]
    return own | {at: {k: found[f"evaluations/{at}/{k}"] for k in measures} for at, measures in looks}
