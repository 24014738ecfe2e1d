"""Seeded faults in one of two runs: each is located. All are of one device, where a program is compiled soonest."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from launch.__main__ import main
from lm import value
from lm.data.loader import Batches
from lm.data.pack import Pack, PackingPlan
from lm.data.store import TokenStore
from lm.experiment import Experiment
from lm.inspect.summary import Summary
from lm.machine import hardware
from lm.model.families import llama
from lm.page.tables import Table
from lm.run import course, diff, divergence, prepared
from lm.run.diff import Comparison, compare
from lm.run.examine import Examination, Sizes
from lm.run.folder import write_json
from lm.run.log import RunLogger
from lm.run.replay import Replay
from lm.sharding.mesh import make_mesh
from lm.text.tokenizer import SentencePieceSpec
from lm.train.checkpoint import Checkpoints, checksum
from lm.train.state import TrainState
from lm.tune.start import Start
from tests.tiny import experiment, write_texts

STEPS, KEPT = 4, 2  # of a run, and the step of its first checkpoint


def declared(texts: Path) -> Experiment:
    model = dict(dropout=0.0)
    own = dict(steps=STEPS, checkpoint_every_steps=KEPT, eval_every_steps=STEPS, eval_tokens=64, ema=0.0, prompts=())
    return experiment(texts).replace(model=model, name="run", **own)


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """And without reports, evaluations and a peak, which take half of the time; each folder is opened once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prepared, "make_mesh", lambda mesh: make_mesh({"data": 1}, jax.devices()[:1]))
        patched.setattr(course, "write_report", lambda folder: folder / "report.html")
        patched.setattr(hardware, "peak_flops", lambda dtype: (1e12, "not measured"))
        patched.setattr(prepared.Prepared, "measure", lambda *_: {})
        patched.setattr(RunLogger, "evaluated", lambda *_: None)
        patched.setattr(diff, "Replay", cache(Replay))
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def sound(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a fault."""
    folder = tmp_path_factory.mktemp("runs") / "sound"
    course.train(declared(texts), folder)
    return folder


@pytest.fixture(scope="module")
def opened(sound: Path) -> Replay:
    """The run without a fault, as `compare` opens it."""
    return diff.Replay(sound)


def train(one: Experiment, folder: Path, opened: Replay) -> Path:
    """A run whose program is that of the run that is open."""
    course.Run(one, course.claim(folder, one, ""), like=opened.run).train()
    return folder


def table(found: Comparison, title: str) -> Table:
    return next(one for one in found.tables if one.title == title)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def altered(opened: Replay, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run, whose newest checkpoint has parameters with a change: of {path: array on the host}."""
    shutil.copytree(opened.folder, to, ignore=shutil.ignore_patterns("checkpoints"))
    state = opened.after(STEPS)
    leaves = {path: np.array(x) for path, x in zip(_paths(state.params), jax.tree.leaves(state.params), strict=True)}
    change(leaves)
    params = jax.tree.unflatten(jax.tree.structure(state.params), leaves.values())
    params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), params, state.params)
    checkpoints = Checkpoints(to / "checkpoints")
    checkpoints.save(dataclasses.replace(state, params=params))
    checkpoints.close()
    return to


def _paths(tree: Any) -> list[str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def started(texts: Path, model: Path, folder: Path, opened: Replay) -> Path:
    """A short run that starts from the run in the folder `model`, by the program of the one that is open."""
    one = declared(texts).replace(steps=2, start=Start(str(model)), data=dict(tokenizer=SentencePieceSpec()))
    return train(one, folder, opened)


# ---------------------------------------------------------------- what is the same


def test_a_run_and_its_copy_are_the_same(sound: Path, tmp_path: Path) -> None:
    found = compare(sound, shutil.copytree(sound, tmp_path / "copy"))
    assert found.verdict == "A and B are the same: the same to the bit in 4 steps."
    assert not any(one.rows for one in found.tables)
    assert [one.title for one in found.tables][:4] == ["Experiment", "Data", "Environment", "Compiled program"]
    assert table(found, "States").note == "The same at the start, step 2 and step 4."


def test_what_a_process_began_with_is_recorded(sound: Path, opened: Replay) -> None:
    (entry,) = json.loads((sound / "history.json").read_text())
    assert entry["step"] == 0 and len(entry["program"]) == 16 and entry["environment"]["devices"] == 8
    assert "optimization_level" in entry["environment"]["XLA_FLAGS"] and entry["mesh"]["data"] == 1
    params = opened.run.initial_state().params
    sums = jax.jit(lambda leaves: [checksum(x) for x in leaves])(jax.tree.leaves(params))
    assert entry["initial"] == {f"params.{path}": int(x) for path, x in zip(_paths(params), sums, strict=True)}


def test_a_program_is_shared_with_the_runs_that_it_serves(sound: Path, opened: Replay, tmp_path: Path) -> None:
    for change, same in (({"learning_rate": 3e-3}, True), ({"weight_decay": 0.0}, False)):
        folder = shutil.copytree(sound, tmp_path / str(same), ignore=shutil.ignore_patterns("checkpoints"))
        one = opened.experiment.replace(optimizer=change)
        noted = json.loads((folder / "experiment.json").read_text())
        write_json(folder / "experiment.json", noted | {"value": value.plain(one)})
        assert (Replay(folder, opened).run.program is opened.run.program) == same


# ---------------------------------------------------------------- seeded faults


def test_a_number_of_the_optimizer(sound: Path, texts: Path, tmp_path: Path) -> None:
    course.train(declared(texts).replace(optimizer=dict(learning_rate=2e-2)), tmp_path / "run")
    found = compare(sound, tmp_path / "run")
    assert table(found, "Experiment").rows == (("optimizer.learning_rate", "0.01", "0.02"),)
    assert "optimizer.learning_rate (0.01 and 0.02)" in found.verdict and "the update of step 1" in found.verdict
    assert not any(table(found, title).rows for title in ("Data", "Environment", "Compiled program"))
    assert table(found, "Training loss").rows[0][1] == "2" and "part at step 2" in found.verdict
    assert "Both are reproduced to the bit" in table(found, "Computed again").note


def test_an_initial_value_of_one_layer(sound: Path, opened: Replay, texts: Path, tmp_path: Path) -> None:
    def change(leaves: dict[str, Any]) -> None:
        leaves["layers.0.query"][1, 0, 0, 0] += 1e-3

    one = altered(opened, tmp_path / "start", change)
    found = compare(started(texts, sound, tmp_path / "a", opened), started(texts, one, tmp_path / "b", opened))
    assert "the initial values: params.layers.0.query of layer 1" in found.verdict
    assert len(table(found, "Computed again").rows) == 1
    assert "before the first step: 1 array" in table(found, "States").note


@pytest.mark.slow
def test_an_initial_value_that_nothing_declares(
    sound: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checksums of the start name its array; computed again, the run is the sound one."""
    draw = course.Run.initial_state

    def faulty(self: course.Run) -> TrainState:
        state = draw(self)
        state.params["layers"]["0"]["query"] = state.params["layers"]["0"]["query"].at[1, 0, 0, 0].add(1.0)
        return state

    with monkeypatch.context() as patched:
        patched.setattr(course.Run, "initial_state", faulty)
        course.train(declared(texts).replace(steps=2), tmp_path / "b")
    course.train(declared(texts).replace(steps=2), tmp_path / "a")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [row[0] for row in table(found, "States").rows] == ["params.layers.0.query"]
    assert "before the first step" in table(found, "States").note
    assert "both give what A has logged" in found.verdict


class Swapped(Pack):
    """Two rows of a source in each other's place."""

    def plan(self, store: TokenStore, seq_len: int, name: str = "") -> PackingPlan:
        plan, other = super().plan(store, seq_len, name), {8: 9, 9: 8} if name == "sums" else {}

        def swapped(read: Any) -> Any:
            return lambda numbers, seed: read(np.array([other.get(n, n) for n in np.asarray(numbers).tolist()]), seed)

        plan.rows, plan.documents = swapped(plan.rows), swapped(plan.documents)  # type: ignore[method-assign]
        return plan


Swapped = dataclasses.dataclass(frozen=True)(Swapped)  # type: ignore[misc]


def test_two_rows_swapped_at_one_step(sound: Path, opened: Replay, texts: Path, tmp_path: Path) -> None:
    swapped = declared(texts).replace(data=dict(packing=Swapped()))
    found = compare(sound, train(swapped, tmp_path / "run", opened))
    data = table(found, "Data")
    assert "First in step 2: rows" in data.note and "are swapped" in data.note and len(data.rows) == 2
    assert "sums, document" in data.rows[0][1] and data.rows[0][1] == data.rows[1][2]
    assert "Their rows differ from step 2 on" in found.verdict


@pytest.mark.slow
def test_rows_swapped_in_one_run_alone(
    sound: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nothing declares cannot be computed again: it is said which of the logs is."""
    read = Batches.batch

    def faulty(self: Batches, step: int, rows: Any = None) -> Any:
        batch = read(self, step, rows)
        return {name: x[[7, *range(1, 7), 0]] for name, x in batch.items()} if step == 2 else batch

    with monkeypatch.context() as patched:
        patched.setattr(Batches, "batch", faulty)
        course.train(declared(texts), tmp_path / "run")
    found = compare(sound, tmp_path / "run")
    assert table(found, "States").note.startswith("First after step 4")
    assert (
        "By log and checkpoints B was another from step 4 on; A is reproduced to the bit"
        in table(found, "Computed again").note
    )
    assert "so is all else that is recorded. Computed again here, both give what A has logged and kept" in found.verdict


def test_a_flag_of_the_compiler(sound: Path, tmp_path: Path) -> None:
    """As it is recorded; the test below sets one."""
    folder = shutil.copytree(sound, tmp_path / "run")
    (entry,) = json.loads((folder / "history.json").read_text())
    entry["environment"]["XLA_FLAGS"] = "--xla_cpu_enable_fast_math=true"
    write_json(folder / "history.json", [entry | {"program": "0" * 16}])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    other = json.loads(lines[2])
    lines[2] = json.dumps(other | {"loss": float(np.nextafter(np.float32(other["loss"]), np.float32(9)))})
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = compare(folder, sound)
    assert [row[0] for row in table(found, "Environment").rows] == ["XLA_FLAGS"]
    assert table(found, "Compiled program").rows[0][1] == "0" * 16
    assert "A and B part at step 3." in found.verdict and "the environment and the program differ" in found.verdict
    assert "both give what B has logged" in found.verdict
    ((what, step, *_),) = table(found, "Training loss").rows  # by rounding alone
    assert step == "3" and what == "the first that differs"


@pytest.mark.slow
def test_a_run_under_another_flag(sound: Path, texts: Path, tmp_path: Path) -> None:
    """Of a process of its own: XLA reads its flags once."""
    folder, one = tmp_path / "run", declared(texts)
    fields = ("steps", "checkpoint_every_steps", "eval_every_steps", "eval_tokens", "ema")
    own = [f"{name}={getattr(one, name)}" for name in fields]
    command = [sys.executable, "-m", "tests.tiny", str(texts), str(folder), "0", "prompts=()", "model.dropout=0", *own]
    flag = "--xla_cpu_enable_fast_math=true"
    environment = {**os.environ, "XLA_FLAGS": flag, "JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    subprocess.run(command, env=environment, check=True, timeout=100, capture_output=True)
    found = compare(sound, folder)
    assert {row[0]: row[2] for row in table(found, "Environment").rows}["XLA_FLAGS"] == flag
    assert "the environment and the program differ" in found.verdict  # what is compiled sooner, where no flag says it
    assert "both give what A has logged and kept" in found.verdict


@pytest.mark.slow
def test_another_way_to_compute(sound: Path, texts: Path, tmp_path: Path) -> None:
    course.train(declared(texts).replace(compute=dict(attention="flash", block=8)), tmp_path / "run")
    found = compare(sound, tmp_path / "run")
    assert {row[0] for row in table(found, "Experiment").rows} == {"compute.attention", "compute.block"}
    assert table(found, "Compiled program").rows and {"compute.attention", "compute.block"} <= {
        row[0] for row in table(found, "Environment").rows
    }
    assert "What differs first is attn_head (what each head has read" in found.verdict


@pytest.mark.slow
def test_a_number_of_the_model(sound: Path, texts: Path, tmp_path: Path) -> None:
    """The first tap that it changes."""
    course.train(declared(texts).replace(model=dict(norm=dict(eps=1e-3)), steps=2), tmp_path / "run")
    found = compare(sound, tmp_path / "run")
    assert "What differs first is attn_query (the queries of each head, as they meet the keys) of layer 0, head" in (
        found.verdict
    )
    assert found.verdict.endswith("in step 1.") and "part at step 1" in found.verdict


def test_what_differs_behind_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target's loss, else an array's gradient in some layers."""
    place = Summary(np.ones((2, 3, 4)), np.zeros((2, 3, 4), np.uint32))
    gradient = Sizes(np.ones(2), np.zeros(2, np.uint32))
    ordered = (("resid_pre", 0), ("resid_pre", 1))
    one = Examination({"resid_pre": place}, ordered, {"weights": np.ones((3, 4))}, {}, {"layers.0.query": gradient})
    target = np.ones((3, 4))
    target[1, 2] = np.nextafter(1, 2)
    other = {"layers.0.query": gradient._replace(bits=np.array([0, 1], np.uint32))}
    model = llama(vocab=258, layers=2, width=16, heads=2, mlp=32, context=32)
    run = SimpleNamespace(before=lambda step: (None, None), experiment=SimpleNamespace(model=model))
    for second, expected in (
        (one, ""),
        (dataclasses.replace(one, gradients=other), "the gradient of layers.0.query of layer 1"),
        (dataclasses.replace(one, gradients=other, targets={"weights": target}), "the loss in row 1 at token 2"),
        (
            dataclasses.replace(one, places={"resid_pre": place._replace(bits=place.bits + np.uint32(1))}, targets={}),
            "resid_pre (the residual stream before a layer) of layer 0, in row 0 at token 0",
        ),
    ):
        found = iter((one, second))
        monkeypatch.setattr(divergence, "examine", lambda *_, found=found: next(found))
        assert divergence._inside(run, run, 1) == expected  # type: ignore[arg-type]


# ---------------------------------------------------------------- other runs, and what is none


@pytest.mark.slow
def test_runs_of_different_models(sound: Path, texts: Path, tmp_path: Path) -> None:
    course.train(declared(texts).replace(model=dict(layers=1, width=8), steps=2), tmp_path / "run")
    found = compare(sound, tmp_path / "run")
    rows = {row[0] for row in table(found, "Experiment").rows}
    assert {"model.layers", "model.width", "steps"} <= rows
    assert "part at step 1" in found.verdict and "they learn other arrays" in found.verdict


def test_a_run_of_before_has_no_history(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "run")
    (folder / "history.json").unlink()
    found = compare(sound, folder, replay=False)
    assert "Not recorded in B." in table(found, "Compiled program").note and "are the same" in found.verdict
    assert table(found, "Environment").note == "The same."  # about.json has it too


def test_a_run_that_ended_before(sound: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sound, tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
    found = compare(sound, folder)
    assert found.verdict == "A and B are the same: the same to the bit in 2 steps. A has logged 4 steps, B 2."


@pytest.mark.parametrize(("second", "message"), [("nowhere", "nowhere is not a run"), ("damaged", "cannot be read")])
def test_what_is_no_run(
    second: str, message: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = shutil.copytree(sound, tmp_path / "damaged")
    (damaged / "history.json").write_text("[1")
    assert main(["diff", str(sound), str(tmp_path / second)]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_command(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(sound, tmp_path / "copy")
    assert main(["diff", str(sound), str(folder), "--no-replay", "--output", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("A and B are the same: the same to the bit in 4 steps.\n") and "Compiled program. The" in out
    assert "Compiled program" in (tmp_path / "page.html").read_text()
    assert main(["diff", str(sound), str(folder), "--no-replay", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["Data"]["rows"] == []
