"""A run: an experiment and a folder become a trained model, its curves, its samples and its report.

The order of things is the order of this file: the folder is claimed, the data prepared, the state made or restored,
then the loop trains, stopping now and then to look at held-out text and to save. Started again in the same folder, it
goes on where the last checkpoint was, with the bits that it would have had.
"""

import contextlib
import datetime
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from lm import hardware, value
from lm.data.cache import cache_dir
from lm.data.loader import Batches, prepare
from lm.experiment import Experiment, changed
from lm.model import count
from lm.model.transformer import Transformer
from lm.monitor import Bar, Metrics, preparing
from lm.pretrained import Pretrained, read_experiment
from lm.report import write_report
from lm.sharding import make_mesh
from lm.text.tokenizer import Tokenizer, load_tokenizer
from lm.train.checkpoint import Checkpoints
from lm.train.loop import NotFinite, as_batches
from lm.train.loop import train as train_loop
from lm.train.state import TrainState
from lm.train.step import build_eval, build_step, init_state, place, state_shardings
from lm.train.task import Pretraining

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
            data = prepare(e.data, e.length, e.rows, e.seed, e.objective, tokenizer, progress)
        if data.tokenizer.vocab_size > e.model.vocab:
            raise ValueError(
                f"the tokenizer has {data.tokenizer.vocab_size} pieces and model.vocab is {e.model.vocab}: "
                f"raise model.vocab to at least {data.tokenizer.vocab_size}"
            )
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
        e = self.experiment
        with contextlib.ExitStack() as stack:
            checkpoints = Checkpoints(self.folder / "checkpoints", e.keep_last, e.keep_best)
            stack.callback(checkpoints.close)
            state = self._state(checkpoints)
            start = int(state.step)
            asked = stack.enter_context(listening())
            metrics = Metrics(self.folder, start)
            stack.callback(metrics.close)
            if start < e.steps:
                about = self._about()
                bar = stack.enter_context(Bar(e.steps, start))
                state = self._loop(state, checkpoints, metrics, bar, asked, about)
                checkpoints.wait()
                if int(state.step) < e.steps:
                    raise Interrupted(asked[0], int(state.step), self.folder)
                self._sample(state, bar.say)
                self._finish(about, time.time())
            else:
                print(f"{self.folder} is finished: {e.steps} steps are done")
                if not (self.folder / "samples.json").exists():  # killed before it wrote them
                    self._sample(state, print)
        report = write_report(self.folder)
        print(f"report: {report}")
        return report

    def _state(self, checkpoints: Checkpoints) -> TrainState:
        e = self.experiment
        if not checkpoints.steps():
            return init_state(self.task, self.optimizer, self.mesh, e.seed, e.ema)
        abstract, _ = state_shardings(self.task, self.optimizer, self.mesh, e.ema)
        state, _, step = checkpoints.restore(abstract)
        print(f"resumed from checkpoint {step}")
        return state

    def _loop(
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        metrics: Metrics,
        bar: Bar,
        asked: list[int],
        about: dict[str, Any],
    ) -> TrainState:
        e = self.experiment
        step = build_step(self.task, self.optimizer, self.mesh, e.seed, e.accumulate, e.ema)
        clock = Clock(e.batch_tokens, int(state.step))
        flops = count.flops_per_token(e.model, e.length)
        peak = about["peak_flops"]

        def observe(n: int, values: dict[str, float]) -> None:
            if clock.first:
                clock.first = False
                now = time.time()
                about["compile_seconds"] = own = now - clock.since
                bar.say(f"first step finished {now - self.started:.1f} s after the start, {own:.1f} s of them its own")
                clock.reset(n)
            speed = clock.tokens_per_second(n)
            mfu = speed * flops / peak
            bar.update(n, values["loss"], speed, mfu)
            if n % e.log_every_steps == 0 or n == e.steps:
                logged = {
                    "loss": values["loss"],
                    "accuracy": values["accuracy"],
                    "learning_rate": float(self.learning_rate(n - 1)),
                    "grad_norm": values["grad_norm"],
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
            return train_loop(state, step, placed, e.steps, observe, lambda n: any(due(n)), visit)
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
        """Held-out loss (nats a token), perplexity and bits per byte of each source, and eval/loss, their mean.

        At most `most_tokens` a source are read (0: all)."""
        e, out, losses = self.experiment, {}, []
        rows = e.rows // e.accumulate
        for source in self.data.sources:
            sums = {"loss": 0.0, "tokens": 0.0}
            for i, batch in enumerate(self.data.heldout(source, rows)):
                if most_tokens and i and i * rows * e.length >= most_tokens:
                    break
                found = jax.device_get(self.evaluate_step(params, place(_share(batch), self.mesh)))
                sums = {name: sums[name] + float(found[name]) for name in sums}
            loss = sums["loss"] / max(sums["tokens"], 1.0)
            store = self.data.stores[source, "heldout"]
            targets = store.total_tokens - len(store)  # all but each document's first token
            out[f"eval/{source}/loss"] = loss
            out[f"eval/{source}/perplexity"] = math.exp(min(loss, 700.0))
            out[f"eval/{source}/bits_per_byte"] = loss * targets / store.total_bytes / math.log(2)
            losses.append(loss)
        return out | {"eval/loss": sum(losses) / len(losses)}

    def _evaluation_line(self, n: int, values: dict[str, float], baselines: dict[str, dict[str, float]]) -> str:
        parts = []
        for source in self.data.sources:
            others = ", ".join(f"{name} {bits:.3f}" for name, bits in baselines[source].items())
            parts.append(f"{source} {values[f'eval/{source}/bits_per_byte']:.3f} ({others})")
        return f"step {n}: held-out bits per byte: {'; '.join(parts)}"

    def _sample(self, state: TrainState, say: Callable[[str], None]) -> None:
        e = self.experiment
        if not e.prompts:
            return
        params = state.ema if e.ema else state.params
        model = Pretrained(e.model, params, self.data.tokenizer, self.model, int(state.step))
        texts = []
        for prompt in e.prompts:
            room = e.model.context - len(model.encode(prompt))
            streamed = model.stream(prompt, min(e.sample_tokens, room), e.sampling, e.seed)
            texts.append(prompt + "".join(rows[0] for rows in streamed))
            say(f"--- {prompt!r} goes on:\n{texts[-1]}")
        (self.folder / "samples.txt").write_text(("\n" + "=" * 80 + "\n").join(texts) + "\n")
        samples = [{"prompt": p, "text": t} for p, t in zip(e.prompts, texts, strict=True)]
        write_json(self.folder / "samples.json", samples)

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
            "baselines": {s: self.data.compression(s) for s in self.data.sources},
        }
        write_json(self.folder / "about.json", about)
        return about

    def _finish(self, about: dict[str, Any], now: float) -> None:
        write_json(self.folder / "about.json", about | {"finished": _iso(now), "seconds": round(now - self.started, 1)})


def evaluate(run: str | Path) -> dict[str, dict[str, float]]:
    """source -> held-out loss, perplexity, bits_per_byte, gzip and xz (bits per byte), of a run's newest checkpoint."""
    experiment = read_experiment(run)
    hardware.split_cpu(experiment.compute.devices)
    hardware.keep_compiled(cache_dir())
    under_way = Run(experiment, Path(run))
    part = "ema" if experiment.ema else "params"
    checkpoints = Checkpoints(Path(run) / "checkpoints", experiment.keep_last, experiment.keep_best)
    abstract, _ = state_shardings(under_way.task, under_way.optimizer, under_way.mesh, experiment.ema)
    state, _, _ = checkpoints.restore({part: getattr(abstract, part)})
    checkpoints.close()
    found = under_way.heldout(state[part])
    return {
        s: {k: found[f"eval/{s}/{k}"] for k in ("loss", "perplexity", "bits_per_byte")} | under_way.data.compression(s)
        for s in under_way.data.sources
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
