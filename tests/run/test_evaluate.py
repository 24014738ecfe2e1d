"""A run's newest checkpoint is measured by whatever devices there are, from its parameters alone."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from launch.__main__ import main
from lm.experiment import Experiment
from lm.pretrained import load
from lm.run import course
from lm.run.evaluate import evaluate, on_available_devices
from lm.sharding.rules import Layout
from lm.train.optim import AdamW
from tests.forked import Process, measure
from tests.pretrained.small import BY_NAME, LLAMA, checkpoint
from tests.run.programs import without_reports
from tests.tiny import experiment, lines, write_texts

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    base = experiment(write_texts(tmp_path_factory.mktemp("texts"))).replace(prompts=(), compute=dict(matmul="float32"))
    often = dict(steps=4, eval_every_steps=2, checkpoint_every_steps=2)
    return replace(base, **often, mesh={"fsdp": 4, "tensor": 2}, layout=Layout(sequence_parallel=True))


@pytest.fixture(scope="module")
def finished(declared: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with without_reports():
        course.train(declared, folder)
    return folder


def test_on_the_devices_that_trained_it_and_without_an_optimizer(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdamW, "build", lambda *_: pytest.fail("an optimizer was built"))
    check(evaluate(finished), finished)


def test_on_one_device(finished: Path, tmp_path: Path) -> None:
    """Those of a process of its own, which sees the CPU as it is."""
    said = Process(tmp_path / "said.txt", measure, finished).finish()
    check(json.loads(said.splitlines()[-1]), finished)


def test_another_checkpoint_than_the_newest(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(evaluate(finished, "2"), finished, 2)
    assert load(finished, step="2").step == 2 and load(finished).step == 4
    losses = {line["step"]: line["eval/loss"] for line in lines(finished) if "eval/loss" in line}
    assert load(finished, step="best").step == min(losses, key=losses.__getitem__)
    for command in (["sample"], ["evaluate"], ["convert", str(finished.parent / "converted")]):
        assert main([command[0], str(finished), *command[1:], "--step", "3"]) == 1
        assert "--step 3: " in (said := capsys.readouterr().err) and "no checkpoint of that step, kept are 2, 4" in said
    published = checkpoint(BY_NAME[LLAMA], finished.parent / "published")
    with pytest.raises(ValueError, match="--step 2: .* is no run, and has no checkpoints"):
        load(published, step="2")


def check(found: dict[str, dict[str, float]], run: Path, step: int = 4) -> None:
    """`found` is what training measured after `step`."""
    logged = next(line for line in lines(run) if line["step"] == step and "eval/sums/loss" in line)
    assert list(found) == ["sums", "words"]
    for source, values in found.items():
        assert list(values) == ["loss", "perplexity", "bits_per_byte", "gzip", "xz"]
        for name in list(values)[:3]:
            assert values[name] == pytest.approx(logged[f"eval/{source}/{name}"], rel=TOLERANCE)


@pytest.mark.parametrize(
    ("count", "shape"),
    [(8, {"fsdp": 4, "tensor": 2}), (4, {"fsdp": 4}), (3, {"fsdp": 2}), (1, {})],
)
def test_the_mesh_of_training_or_what_divides(
    count: int, shape: dict[str, int], declared: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:count])
    one, mesh = on_available_devices(declared)
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == shape
    assert one.layout == (declared.layout if count == 8 else Layout())


def test_where_the_width_does_not_divide_rows_do(declared: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = declared.replace(model=dict(width=18))
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:4])
    _, mesh = on_available_devices(odd)
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == {"data": 4}
