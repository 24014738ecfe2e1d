"""A step computed again: the run's own bits, and where its loss began."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch.__main__ import main
from lm.inspect.summary import Spot, Summary
from lm.run import course, diff, replay_report
from lm.run.examine import Examination, examine
from lm.run.replay import Replay
from lm.run.replay_report import _outlier, _places_table, replay
from lm.train.loop import NotFinite
from lm.train.method import Batch
from lm.train.schedule import Constant
from lm.train.state import TrainState
from tests.run.test_diff import altered, declared, losses, one_device, started
from tests.tiny import write_texts
from tests.tune import methods, sums

__all__ = ["one_device"]  # a fixture of both files
POISON = "#@%&*" * 6


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one document unlike all others."""
    folder = write_texts(tmp_path_factory.mktemp("texts"))
    (folder / "words" / "poison.txt").write_text(POISON)
    return folder


@pytest.fixture(scope="module")
def sound(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, with a checkpoint after the second and the last."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    course.train(declared(texts), folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def opened(sound: Path) -> Iterator[Replay]:
    """The run, opened once; others that one program serves are opened with what it has compiled."""
    run = diff.Replay(sound)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(replay_report, "Replay", lambda folder: run if folder == sound else Replay(folder, run))
        yield run


def test_every_step_is_the_one_that_was_logged(opened: Replay) -> None:
    steps = list(opened.steps(opened.start(1), 4))
    assert [step.n for step in steps] == [1, 2, 3, 4]
    assert [step.metrics["loss"] for step in steps] == losses(opened.folder)
    assert not any(opened.unlike(step) for step in steps)
    assert int(opened.start(3).step) == int(opened.start(4).step) == 2 and int(opened.start(2).step) == 0


@pytest.fixture(scope="module")
def examined(opened: Replay) -> tuple[TrainState, Batch, Examination]:
    """The last step: the state that it begins with, its batch, and what it has."""
    state, batch = opened.before(4)
    return state, batch, examine(opened, state, batch)


def test_each_target_s_loss_is_what_the_batch_s_is_the_sum_of(opened: Replay, examined: Any) -> None:
    """And that of a row alone."""
    state, batch, found = examined
    weights, nll = np.asarray(batch["weights"]), found.targets["weights"]
    assert (weights * nll).sum() / weights.sum() == pytest.approx(losses(opened.folder)[3], rel=1e-5)
    alone = {name: x[3:4] for name, x in batch.items()}
    total, _ = jax.jit(opened.run.prepared.learner.loss)(state.params, state.frozen, alone, None)
    assert (weights * nll)[3].sum() == pytest.approx(float(total), rel=1e-5)


def test_the_gradients_are_the_step_s(opened: Replay, examined: Any) -> None:
    _, _, found = examined
    assert found.gradients.keys() == found.params.keys() and found.spot is None
    query, kernel = (found.gradients[name].largest for name in ("layers.0.query", "head.kernel"))
    assert query.shape == (2,) and kernel.shape == (1,)
    largest = max(float(one.largest.max()) for one in found.gradients.values())
    size = sum(x.size for x in jax.tree.leaves(opened.run.state_shapes().params))
    norm = opened.logged[4]["grad_norm"]
    assert norm / np.sqrt(size) <= largest <= norm


def test_the_command_proves_the_step_and_writes_the_page(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (sound / "metrics.jsonl").read_bytes()
    assert main(["replay", str(sound), "--step", "3"]) == 0
    out, err = capsys.readouterr()
    verdict, proof, path = out.splitlines()
    assert "computing" not in err  # of steps before it, since a checkpoint is just before
    assert verdict.startswith(f"Step 3: the loss is {losses(sound)[2]:.6g}. Row ")
    assert proof == "Computed from checkpoint 2: its metrics are those that the run logged, to the bit."
    page = Path(path).read_text()
    assert path == str(sound / "replay-3.html") and "Values by place and layer" in page and "attn_pattern" in page
    assert (sound / "metrics.jsonl").read_bytes() == before


def test_a_poisoned_document(opened: Replay) -> None:
    """Its row has the most of the loss, at one of its bytes."""
    batches, learner = opened.run.prepared.data, opened.run.prepared.learner
    reader = learner.batches(0)
    tokens = [next(reader)["tokens"] for _ in range(4)]
    reader.close()
    step = next(n for n in (2, 3, 4) if (tokens[n - 1] == ord("#")).any())
    row = int(np.argwhere(tokens[step - 1] == ord("#"))[0][0])
    report, _ = replay(opened.folder, step)
    assert f"Row {row} of 8 has" in report.verdict and "(poison.txt)" in report.verdict
    assert batches.origin(step - 1, row, int(np.argmax(tokens[step - 1][row] == ord("#")))).where == "poison.txt"


def test_a_spike_is_said(sound: Path, tmp_path: Path) -> None:
    """Beside the steps before it, whose logs here say less than half of what they had."""
    folder = shutil.copytree(sound, tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[:2] = [line | {"loss": 2.0} for line in lines[:2]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report, _ = replay(folder, 3)
    loss = losses(sound)[2]
    assert f"the loss is {loss:.6g}, {loss / 2:.2g} times that of the steps before it. Row " in report.verdict
    assert "those that the run logged, to the bit" in report.proof
    report, _ = replay(folder, 2)  # from the start, over a step that is not as it was logged
    assert report.proof.startswith("Computed from the state before the first step: step 1 is not what the run logged.")
    assert report.proof.endswith("The environment is the same as far as it is recorded.")


def test_the_first_value_out_of_line_in_a_row() -> None:
    """Ten times what the other rows have at most; of what is finite everywhere."""
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(1, 2, (2, 4, 5, 3)).astype(np.float32) for name in ("attn_head", "attn_pattern")}
    values["attn_head"][1, 2, 3, 1] = 30.0
    values["attn_pattern"][1, 2] *= 100
    values["attn_head"][0, 1, 0, 0] = 90.0  # of another row
    places = {name: Summary(x, x) for name, x in values.items()}
    ordered = tuple((name, layer) for layer in (0, 1) for name in ("attn_pattern", "attn_head"))
    found = Examination(places, ordered, {}, {}, {})
    token, head = np.unravel_index(values["attn_pattern"][1, 2].argmax(), (5, 3))
    assert _outlier(found, 2) == Spot("attn_pattern", 1, 2, token, head)
    assert _outlier(found, 1) == Spot("attn_head", 0, 1, 0, 0) and _outlier(found, 0) is None
    fewer = replace(found, places={"attn_head": places["attn_head"]})
    assert "Too large to be laid out: attn_pattern." in _places_table(fewer).note
    assert "Too large" not in _places_table(found).note and len(_places_table(found).rows) == 2


def overflowing(leaves: dict[str, Any]) -> None:
    """Queries and keys of the last layer's second head whose logits are beyond float32."""
    for name in ("query", "key"):
        leaves[f"layers.0.{name}"][1, :, 1] *= 1e25


def test_an_overflow_in_one_head(
    opened: Replay, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = altered(opened, tmp_path / "start", overflowing)
    folder = tmp_path / "b run"
    with pytest.raises(NotFinite, match="step 1: .*no checkpoint was written yet") as stopped:
        started(texts, start, folder, opened)
    assert f"`lm replay '{folder}' --step 1` says in which layer, row and document it began." in str(stopped.value)
    capsys.readouterr()
    assert main(["replay", str(folder), "--step", "1"]) == 0
    verdict, proof, _ = capsys.readouterr().out.splitlines()
    assert verdict.startswith("Step 1: the loss is nan") and "of layer 1, head 1, in row 0 at token" in verdict
    assert "The first value that is not finite is attn_logits (attention's logits by query head)" in verdict
    assert ".txt)" in verdict and "nothing proves it" in proof
    assert "not finite" in (folder / "replay-1.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo-lora", "kto", "distill", "reward", "grpo"])
def test_other_methods(name: str, tmp_path: Path) -> None:
    """Their steps are the logged ones too, rollouts included, and have the losses of their own targets."""
    folder = methods.write(tmp_path / "texts")
    every = {"grpo": sums.summing(sums.write(folder / "sums.jsonl"))} if name == "grpo" else methods.experiments(folder)
    short = dict(steps=3, checkpoint_every_steps=2, eval_every_steps=3, eval_tokens=64)
    course.train(every[name].replace(**short, optimizer=dict(schedule=Constant())), tmp_path / "run")
    report, _ = replay(tmp_path / "run", 3)
    assert report.proof == "Computed from checkpoint 2: its metrics are those that the run logged, to the bit."
    assert "Row " in report.verdict and ", document " in report.verdict


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("0", "has taken 4 steps: expected a step from 1 to 4"),
        ("5", "expected a step from 1 to 4"),
        ("x", "invalid int"),
    ],
)
def test_a_step_that_the_run_has_not(step: str, message: str, sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(sound), "--step", step]) == (2 if step == "x" else 1)
    said = capsys.readouterr().err.splitlines()[-1]
    assert message in said and said.startswith("lm: ")


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path), "--step", "1"]) == 1
    assert "is not a run: it has no experiment.json" in capsys.readouterr().err


def test_without_a_checkpoint_before_it_and_without_its_start(
    sound: Path, opened: Replay, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = shutil.copytree(sound, tmp_path / "start")
    folder = started(texts, start, tmp_path / "run", opened)
    shutil.rmtree(start)
    capsys.readouterr()
    assert main(["replay", str(folder), "--step", "1"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lm: ") and "start" in said and "is not a run" in said
