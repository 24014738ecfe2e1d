"""A run: an experiment and a folder become a trained model, its curves, its samples and its report.

The order of things is the order of this file: the folder is claimed, the data prepared, the state made or restored,
then the loop trains, stopping now and then to look at held-out text and to save. Started again in the same folder, it
goes on where the last checkpoint was, with the bits that it would have had.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import hardware, value
from lm.data.cache import cache_dir
from lm.data.loader import Batches, prepare
from lm.data.store import TokenStore
from lm.experiment import Experiment, changed
from lm.model import count
from lm.model.transformer import Transformer
from lm.monitor import Bar, Metrics, preparing
from lm.pretrained import Pretrained, read_experiment
from lm.report import write_report
from lm.samples import samples
from lm.sharding import make_mesh
from lm.text.tokenizer import Tokenizer, load_tokenizer
from lm.train.checkpoint import Checkpoints
from lm.train.loop import NotFinite, as_batches
from lm.train.loop import train as train_loop
from lm.train.program import Program
from lm.train.state import TrainState
from lm.train.step import build_eval, init_state, place, state_shardings
from lm.train.task import Pretraining
from lm.train.word2vec import started

MIXTURE_POINTS = 21  # steps at which a run's folder tells the mixture's shares


class Interrupted(Exception):
    """The run was asked to end by `signal`, and did, after a checkpoint."""

    def __init__(self, signal: int, step: int, workdir: Path):
        super().__init__(f"stopped after step {step}, with a checkpoint; the same command goes on from there")
        self.signal, self.step, self.workdir = signal, step, workdir


def train(experiment: Experiment, workdir: str | Path, reference: str = "", command: str = "") -> Path:
    """Train `experiment` in the folder `workdir`, from its newest checkpoint if it has one; returns the report's path.

    `reference` (module:name) and `command` are noted in the folder. Raises ValueError for anything the user can mend,
    Interrupted after SIGTERM or SIGINT."""
    hardware.split_cpu(experiment.compute.devices)
    hardware.keep_compiled(cache_dir())
    folder = claim(Path(workdir), experiment, reference)
    return Run(experiment, folder, command).train()


def claim(folder: Path, experiment: Experiment, reference: str) -> Path:
    """`folder`, made if missing, with experiment.json. Raises ValueError when it holds another experiment's run."""
    file = folder / "experiment.json"
    new = value.plain(experiment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            different = changed(json.loads(file.read_text())["value"], new)
            if different:
                shown = "; ".join(f"{path} was {old!r}, is {now!r}" for path, old, now in different[:6])
                more = f" and {len(different) - 6} more" if len(different) > 6 else ""
                raise ValueError(
                    f"{folder} holds a run of a different experiment ({shown}{more}): "
                    "choose another --workdir, or remove it"
                )
        write_json(file, {"experiment": reference, "fingerprint": experiment.fingerprint, "value": new})
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"cannot use {folder} as a run's folder: {error}; choose another --workdir") from None
    return folder


def write_json(file: Path, data: Any) -> None:
    """`data` as readable JSON, whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    part.replace(file)


def check_vocabulary(experiment: Experiment, data: Batches) -> None:
    """Raises ValueError where the model has fewer ids than the tokenizer and the objective need."""
    pieces, extra = data.setting.vocab, experiment.objective.extra_tokens(data.setting)
    if pieces + extra > experiment.model.vocab:
        more = f", {type(experiment.objective).__name__} adds {extra}" if extra else ""
        raise ValueError(
            f"the tokenizer has {pieces} pieces{more} and model.vocab is {experiment.model.vocab}: "
            f"raise model.vocab to at least {pieces + extra}"
        )


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """`tokenizer` in `folder`, whole or not at all."""
    part = folder.with_suffix(".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        tokenizer.save(part)
        part.rename(folder)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}; choose another --workdir") from None


class Run:
    """One run under way: what is declared, what it was turned into, and the folder."""

    def __init__(self, experiment: Experiment, folder: Path, command: str = ""):
        self.started = time.time()
        self.experiment, self.folder, self.command = experiment, folder, command
        self.compute = experiment.compute.resolve()
        self.mesh = make_mesh(experiment.mesh)
        self._check_rows()
        self.data = self._prepare()
        self.model = Transformer(experiment.model, self.compute)
        self.task = Pretraining(self.model, self.data, experiment.z_loss)
        self.optimizer = experiment.optimizer.build(experiment.steps, self.task.axes())
        self.learning_rate = experiment.optimizer.schedule_fn(experiment.steps)
        self.evaluate_step = build_eval(self.task, self.mesh)

    @functools.cached_property
    def program(self) -> Program:
        """What its steps run; one of another run may take its place (lm/study/together.py)."""
        e = self.experiment
        return Program(self.task, e.optimizer, self.mesh, e.accumulate, e.ema)

    def _check_rows(self) -> None:
        e, parts = self.experiment, self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rows = e.rows // e.accumulate
        if rows % parts:
            fitting = -(-rows // parts) * parts * e.length * e.accumulate
            raise ValueError(
                f"{rows} rows a micro-batch do not divide over data x fsdp = {parts} devices: "
                f"batch_tokens={e.batch_tokens} is {e.rows} rows of {e.length} tokens in {e.accumulate} micro-batches; "
                f"try batch_tokens={fitting}"
            )

    def _prepare(self) -> Batches:
        e, saved = self.experiment, self.folder / "tokenizer"
        with preparing() as progress:
            tokenizer = load_tokenizer(saved) if saved.exists() else None
            encoder = bool(e.model.encoder_layers)
            data = prepare(e.data, e.length, e.rows, e.seed, e.objective, tokenizer, progress, encoder)
        check_vocabulary(e, data)
        if tokenizer is None:
            save_tokenizer(data.tokenizer, saved)
        self._check_sources()
        return data

    def _check_sources(self) -> None:
        """The text must be what it was when the run began: data.json tells its content, an experiment only its name."""
        file = self.folder / "data.json"
        found = {name: source.fingerprint() for name, source in self.experiment.data.mixture.sources.items()}
        known = json.loads(file.read_text()) if file.exists() else found
        for name in found:
            if known.get(name) != found[name]:
                raise ValueError(f"source {name!r} has changed since this run began: choose another --workdir")
        write_json(file, found)

    # ---------------------------------------------------------------- training

    def train(self) -> Path:
        """Train to the end, then sample and report."""
        with listening() as asked:
            for _ in self.course(asked, Bar):
                pass
        return self.folder / "report.html"

    def course(self, asked: list[int], show: Callable[[int, int], Bar]) -> Generator[int, None, None]:
        """The run as it goes, step by step, to its report: gives the number of each step once that is under way.

        It ends early, with a checkpoint, where a signal is `asked`; `show` makes the bar of (steps, first)."""
        e = self.experiment
        with contextlib.ExitStack() as stack:
            checkpoints = Checkpoints(self.folder / "checkpoints", e.keep_last, e.keep_best)
            stack.callback(checkpoints.close)
            state = self._state(checkpoints)
            start = int(state.step)
            metrics = Metrics(self.folder, start)
            stack.callback(metrics.close)
            if start < e.steps:
                about = self._about()
                bar = stack.enter_context(show(e.steps, start))
                for state in self._loop(state, checkpoints, metrics, bar, asked, about):  # noqa: B007, B020
                    start += 1
                    yield start
                checkpoints.wait()
                if int(state.step) < e.steps:
                    raise Interrupted(asked[0], int(state.step), self.folder)
                self._sample(state, bar.say)
                self._finish(about, time.time())
            else:
                print(f"{self.folder} is finished: {e.steps} steps are done")
                self._end_again(state)
        print(f"report: {write_report(self.folder)}")

    def _end_again(self, state: TrainState) -> None:
        """What a run leaves undone that is killed after its last checkpoint."""
        if not (self.folder / "samples.json").exists():
            self._sample(state, print)
        about = json.loads((self.folder / "about.json").read_text())
        if not about["finished"]:
            self._finish(about, time.time())

    def _state(self, checkpoints: Checkpoints) -> TrainState:
        e = self.experiment
        if not checkpoints.steps():
            return self._started(init_state(self.task, self.optimizer, self.mesh, e.seed, e.ema))
        abstract, _ = state_shardings(self.task, self.optimizer, self.mesh, e.ema)
        state, _, step = checkpoints.restore(abstract)
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
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        metrics: Metrics,
        bar: Bar,
        asked: list[int],
        about: dict[str, Any],
    ) -> Iterator[TrainState]:
        e = self.experiment
        step = self.program.step(e.optimizer, e.steps, e.seed)
        clock = Clock(e.batch_tokens, int(state.step))
        flops = count.flops_per_token(e.model, e.length)
        peak = about["peak_flops"]
        codes_text = "bits_per_byte" in e.objective.measures

        def observe(n: int, values: dict[str, float]) -> None:
            if clock.first:
                clock.first = False
                now = time.time()
                about["compile_seconds"] = own = now - clock.since
                bar.say(f"first step finished {now - self.started:.1f} s after the start, {own:.1f} s of them its own")
                clock.reset(n)
            speed = clock.tokens_per_second(n)
            mfu = speed * flops / peak
            bar.update(n, values["loss"], speed, mfu, None if codes_text else values["accuracy"])
            if n % e.log_every_steps == 0 or n == e.steps:
                logged = {
                    **{name: values[name] for name in sorted(values) if name not in ("tokens", "total")},
                    "learning_rate": float(self.learning_rate(n - 1)),
                    "tokens": n * e.batch_tokens,
                }
                metrics.write(n, logged | {"tokens_per_second": round(speed, 1), "mfu": round(mfu, 5)})

        def due(n: int) -> tuple[bool, bool]:
            end = n == e.steps
            return end or n % e.eval_every_steps == 0, end or n % e.checkpoint_every_steps == 0 or bool(asked)

        def visit(n: int, state: TrainState) -> bool:
            look, save = due(n)
            held_out: dict[str, float] = {}
            if look:
                held_out = self.heldout(state.ema if e.ema else state.params, 0 if n == e.steps else e.eval_tokens)
                metrics.write(n, held_out)
                bar.say(self._evaluation_line(n, held_out, about["baselines"]))
            if save:
                metrics.flush()  # what a checkpoint has behind it is on disk before it is
                checkpoints.save(state, {"loss": held_out["eval/loss"]} if held_out else {})
            clock.reset(n)
            return bool(asked)

        batches = self.task.batches(state)
        try:
            placed = as_batches(batches, lambda b: place(b, self.mesh))
            yield from train_loop(state, step, placed, e.steps, observe, lambda n: any(due(n)), visit)
        except NotFinite as error:
            checkpoints.wait()
            kept = checkpoints.latest
            where = f"checkpoint {kept} in {self.folder} is from before" if kept else "no checkpoint was written yet"
            raise NotFinite(
                f"{error}: stopped; {where}. A lower learning rate, a longer warm-up or a tighter clip may help"
            ) from None
        finally:
            batches.close()  # type: ignore[attr-defined]

    # ---------------------------------------------------------------- looking

    def heldout(self, params: Any, most_tokens: int = 0) -> dict[str, float]:
        """eval/SOURCE/MEASURE for each of the objective's measures, and eval/loss, the mean of the sources' losses.

        At most `most_tokens` a source are read (0: all)."""
        out: dict[str, float] = {}
        losses = []
        for source in self.data.sources:
            sums = self._heldout_sums(source, params, most_tokens)
            found = measured(sums, self.data.stores[source, "heldout"])
            out |= {f"eval/{source}/{name}": found[name] for name in self.experiment.objective.measures}
            losses.append(found["loss"])
        return out | {"eval/loss": sum(losses) / len(losses)}

    def _heldout_sums(self, source: str, params: Any, most_tokens: int) -> dict[str, float]:
        """The sums of loss and accuracy over what is asked, and how much that is (tokens); of next sentences too."""
        e = self.experiment
        rows = e.rows // e.accumulate
        names = ("loss", "accuracy", "tokens", "next_sentence", "pairs")
        sums = dict.fromkeys(names, 0.0)
        for i, batch in enumerate(self.data.heldout(source, rows)):
            if most_tokens and i and i * rows * e.length >= most_tokens:
                break
            found = jax.device_get(self.evaluate_step(params, place(_share(batch), self.mesh)))
            sums = {name: sums[name] + float(found.get(name, 0.0)) for name in names}
        return sums

    def _evaluation_line(self, n: int, values: dict[str, float], baselines: dict[str, dict[str, float]]) -> str:
        objective, parts = self.experiment.objective, []
        for source in self.data.sources:
            if "bits_per_byte" in objective.measures:
                others = ", ".join(f"{name} {bits:.3f}" for name, bits in baselines[source].items())
                parts.append(f"{source} {values[f'eval/{source}/bits_per_byte']:.3f} ({others})")
            else:
                right = f"{values[f'eval/{source}/accuracy']:.1%} right"
                if "next_sentence" in objective.measures:
                    right += f", {values[f'eval/{source}/next_sentence']:.1%} of next sentences"
                parts.append(f"{source} {values[f'eval/{source}/loss']:.3f} ({right})")
        what = "bits per byte" if "bits_per_byte" in objective.measures else f"loss a {objective.asked}"
        return f"step {n}: held-out {what}: {'; '.join(parts)}"

    def _sample(self, state: TrainState, say: Callable[[str], None]) -> None:
        e = self.experiment
        params = state.ema if e.ema else state.params
        model = Pretrained(e.model, params, self.data.tokenizer, self.model, int(state.step))
        found = []
        for sample in samples(e, model, self.data):
            say(f"--- {sample.title}:\n{sample.text}")
            found.append(sample)
        if found:
            texts = ("\n" + "=" * 80 + "\n").join(sample.text for sample in found)
            (self.folder / "samples.txt").write_text(texts + "\n")
            write_json(self.folder / "samples.json", [{"prompt": s.prompt, "text": s.text} for s in found])

    # ---------------------------------------------------------------- telling

    def _about(self) -> dict[str, Any]:
        """What the folder tells besides the experiment: where it ran, what was counted, what gzip and xz need."""
        e = self.experiment
        peak, source = hardware.peak_flops(self.compute.matmul)
        abstract, _ = state_shardings(self.task, self.optimizer, self.mesh, e.ema)
        points = sorted({round(i * (e.steps - 1) / (MIXTURE_POINTS - 1)) for i in range(MIXTURE_POINTS)})
        summary = {s: {k: vars(a) for k, a in splits.items()} for s, splits in self.data.summary().items()}
        about = {
            "command": self.command,
            "started": _iso(self.started),
            "finished": None,
            "seconds": 0.0,
            "compile_seconds": 0.0,
            "environment": hardware.environment(),
            "model": {
                "parameters": count.parameters(e.model),
                "by_part": count.by_part(e.model),
                "flops_per_token": count.flops_per_token(e.model, e.length),
                "state_bytes": count.tree_bytes(abstract),
            },
            "peak_flops": peak,
            "peak_source": source,
            "compute": value.plain(self.compute),
            "mesh": dict(self.mesh.shape),
            "data": summary,
            "shares": [[n, self.data.shares(n)] for n in points],
            "objective": {"asked": e.objective.asked, "measures": list(e.objective.measures)},
            "baselines": self._baselines(),
        }
        write_json(self.folder / "about.json", about)
        return about

    def _baselines(self) -> dict[str, dict[str, float]]:
        """What gzip and xz need, where the model's own bits per byte can be set beside it."""
        comparable = "bits_per_byte" in self.experiment.objective.measures
        return {s: self.data.compression(s) for s in self.data.sources if comparable}

    def _finish(self, about: dict[str, Any], now: float) -> None:
        write_json(self.folder / "about.json", about | {"finished": _iso(now), "seconds": round(now - self.started, 1)})


def evaluate(run: str | Path) -> dict[str, dict[str, float]]:
    """source -> the objective's measures on held-out text, of a run's newest checkpoint; and gzip and xz (bits per
    byte), where bits per byte is one."""
    experiment = read_experiment(run)
    hardware.split_cpu(experiment.compute.devices)
    hardware.keep_compiled(cache_dir())
    under_way = Run(experiment, Path(run))
    part = "ema" if experiment.ema else "params"
    checkpoints = Checkpoints(Path(run) / "checkpoints", experiment.keep_last, experiment.keep_best)
    abstract, _ = state_shardings(under_way.task, under_way.optimizer, under_way.mesh, experiment.ema)
    state, _, _ = checkpoints.restore({part: getattr(abstract, part)})
    checkpoints.close()
    found, baselines = under_way.heldout(state[part]), under_way._baselines()
    return {
        s: {k: found[f"eval/{s}/{k}"] for k in experiment.objective.measures} | baselines.get(s, {})
        for s in under_way.data.sources
    }


def measured(sums: dict[str, float], store: TokenStore) -> dict[str, float]:
    """From the sums over what was asked: loss (nats each), perplexity, accuracy, and the bits per byte of `store`'s
    text, were every token of it but each document's first predicted at that loss; the share of right next sentences."""
    loss = sums["loss"] / max(sums["tokens"], 1.0)
    targets = store.total_tokens - len(store)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": sums["accuracy"] / max(sums["tokens"], 1.0),
        "next_sentence": sums["next_sentence"] / max(sums["pairs"], 1.0),
        "bits_per_byte": loss * targets / store.total_bytes / math.log(2),
    }


class Clock:
    """Tokens per second since the last reset: what the evaluations and checkpoints between took is not counted."""

    def __init__(self, batch_tokens: int, step: int):
        self.batch_tokens, self.first, self.speed = batch_tokens, True, 0.0
        self.reset(step)

    def reset(self, step: int) -> None:
        """Count from now, after `step`."""
        self.since, self.step = time.time(), step

    def tokens_per_second(self, step: int) -> float:
        """The mean since the last reset; right after one, the last mean before it."""
        if step > self.step:
            self.speed = (step - self.step) * self.batch_tokens / max(time.time() - self.since, 1e-9)
        return self.speed


@contextlib.contextmanager
def listening() -> Iterator[list[int]]:
    """The SIGTERM or SIGINT that has come, in a list; a second one acts at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)
        print("stopping after this step, with a checkpoint (once more to stop at once)", file=sys.stderr)

    before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _share(batch: dict[str, Any]) -> dict[str, Any]:
    """The rows of a batch that this process holds."""
    share = len(batch["tokens"]) // jax.process_count()
    return {name: array[jax.process_index() * share :][:share] for name, array in batch.items()}


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
