"""What CONTRIBUTING.md says of eight kinds of change: each is a class or a function in one file, and no more."""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import value
from lm.experiment import Experiment
from lm.legal import check_mesh
from lm.model import count
from lm.model.transformer import Transformer
from lm.pretrained import load
from lm.run.course import train
from tests.changes import RunningMean, bits, experiment

ROOT = Path(__file__).parent.parent
CHANGES = ("position", "norm", "mixer", "optimizer", "mixture", "family", "method", "instrument")


def test_a_page_of_new_parts_trains_and_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(experiment, folder, "tests.changes:experiment")
    said = json.loads((folder / "experiment.json").read_text())["value"]
    assert value.build(Experiment, said) == experiment
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 3 and np.isfinite(lines[-1]["eval/squares/loss"])
    model = load(folder)
    entropy = bits(model.model, model.params, jnp.arange(8)[None])
    assert entropy.shape == (1, 8) and (entropy > 0).all() and (entropy < 8.1).all()


def test_a_new_mixer_is_counted_and_checked() -> None:
    both, half = experiment.model, replace(experiment.model, pattern=experiment.model.pattern[1:])
    shapes = Transformer(both, experiment.compute.resolve("cpu")).shapes()["layers"]
    assert shapes["0"]["mean"].shape == (1, 16, 16) and "query" not in shapes["0"]
    attention = sum(x.size for name, x in shapes["1"].items() if name in ("query", "key", "value", "out"))
    assert count.parameters(half) - count.parameters(both) == attention - 256
    lost = 6 * (attention - 256) + 12 * 16 * 32
    assert count.flops_per_token(half, 32) - count.flops_per_token(both, 32) == lost
    check_mesh(experiment, {"tensor": 2, "data": 4})
    with pytest.raises(ValueError, match="RunningMean takes no bias by distance: Alibi adds one"):
        value.parse(experiment, "model.positions=Alibi()")
    assert value.parse(experiment, "model.attention=RunningMean()").model.attention == RunningMean()


def test_the_table_names_files_that_are_there() -> None:
    table = re.findall(r"^\| an? ([a-z ]+?) \| (.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert tuple(name for name, _ in table) == CHANGES
    for _, files in table:
        named = re.findall(r"`([\w/.]+)`", files)
        assert 1 <= len(named) <= 2 and all((ROOT / name).exists() for name in named), files


def test_a_gradient_reaches_every_new_parameter() -> None:
    model = Transformer(experiment.model, experiment.compute.resolve("cpu"))
    params, ids = jax.jit(model.init)(jax.random.key(0)), jnp.arange(12)[None]
    gradient = jax.grad(lambda p: (model(p, ids) ** 2).mean())(params)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(gradient["layers"]))
