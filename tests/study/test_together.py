"""Runs in one program are the runs that they would be apart; what ends one ends no other."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lm import run
from lm.experiment import Experiment
from lm.study.ablation import Ablation
from lm.study.local import spread
from lm.study.together import MOST, groups, key, train
from lm.study.trial import OUTCOME, STOP
from lm.train.optim import Adafactor, AdamW, Lion, Muon
from lm.train.schedule import WSD, Constant, Cosine
from tests.tiny import experiment, lines, of, write_texts

LEAN = dict(prompts=(), log_every_steps=1, eval_every_steps=25, checkpoint_every_steps=25)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return experiment(write_texts(tmp_path_factory.mktemp("texts"))).replace(LEAN, ema=0.0, steps=50)


def together(experiments: list[Experiment], folder: Path) -> list[Path]:
    folders = [run.claim(folder / str(i), e, "") for i, e in enumerate(experiments)]
    train(experiments, folders)
    return folders


ARMS: dict[str, list[dict[str, Any]]] = {
    "rates and seeds": [
        dict(optimizer=dict(learning_rate=3e-3)),
        dict(optimizer=dict(learning_rate=1e-2, weight_decay=0.3, b2=0.99), seed=3),
    ],
    "schedules and lengths": [
        dict(optimizer=dict(schedule=WSD(warmup_steps=4, decay_fraction=0.3)), steps=12),
        dict(optimizer=dict(schedule=Cosine(warmup_steps=9)), steps=20, model=dict(init_scale=0.05)),
    ],
}


@pytest.mark.parametrize("name", ARMS)
def test_one_program_is_separate_runs(base: Experiment, name: str, tmp_path: Path) -> None:
    experiments = [base.replace(change) for change in ARMS[name]]
    assert len({key(e) for e in experiments}) == 1
    for i, folder in enumerate(together(experiments, tmp_path / "together")):
        run.train(experiments[i], tmp_path / str(i))
        found, wanted = (of(lines(f), "loss") for f in (folder, tmp_path / str(i)))
        assert list(found) == list(wanted) == list(range(1, experiments[i].steps + 1))
        assert found == wanted  # to the bit
        ours, theirs = (of(lines(f), "eval/loss") for f in (folder, tmp_path / str(i)))
        assert ours == theirs
        assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / str(i)).iterdir()}


@pytest.mark.parametrize("optimizer", [Muon(), Lion(), Adafactor(min_side=8)], ids=lambda o: type(o).__name__)
def test_every_optimizer_takes_its_numbers_as_data(base: Experiment, optimizer: Any, tmp_path: Path) -> None:
    short = base.replace(steps=12, optimizer=replace(optimizer, schedule=Constant()))
    experiments = [short, short.replace(optimizer=dict(learning_rate=2 * optimizer.learning_rate, weight_decay=0.2))]
    if not optimizer.weight_decay:  # none is another program
        assert key(experiments[0]) != key(experiments[1])
        experiments[1] = short.replace(optimizer=dict(learning_rate=2 * optimizer.learning_rate))
    folders = together(experiments, tmp_path)
    run.train(experiments[1], tmp_path / "apart")
    found, wanted = (list(of(lines(f), "loss").values()) for f in (folders[1], tmp_path / "apart"))
    assert found == wanted
    assert found != list(of(lines(folders[0]), "loss").values())


def test_an_arm_that_diverges_leaves_the_others(base: Experiment, tmp_path: Path) -> None:
    wild = base.replace(optimizer=dict(learning_rate=1e30, clip=0.0), steps=12)
    tame = base.replace(optimizer=dict(learning_rate=1e-3, clip=0.0), steps=12)
    folders = together([wild, tame], tmp_path)
    assert '"diverged"' in (folders[0] / OUTCOME).read_text()
    assert (folders[1] / "report.html").exists() and not (folders[1] / OUTCOME).exists()


def test_what_shares_a_program(base: Experiment) -> None:
    arms: dict[str, Any] = {
        "base": {},
        "rate": dict(optimizer=dict(learning_rate=1.0)),
        "longer": dict(steps=70),
        "mixed": dict(data=dict(mixture=dict(weights={"sums": 0.1, "words": 0.9}))),
        "deep": dict(model=dict(layers=3)),
        "free": dict(optimizer=dict(weight_decay=0.0)),
        "lion": dict(optimizer=Lion()),
    }
    study = Ablation(base, arms, seeds=range(2), match="steps")
    found = [[f"{t.arm}{t.seed}" for t in group] for group in groups(study.trials())]
    shared = [f"{arm}{seed}" for seed in (0, 1) for arm in ("base", "rate", "longer", "mixed")]
    assert found == [shared, ["deep0", "deep1"], ["free0", "free1"], ["lion0", "lion1"]]
    many = Ablation(base, {"base": {}}, seeds=range(MOST + 1))
    assert [len(group) for group in groups(many.trials())] == [MOST, 1]
    assert isinstance(base.optimizer, AdamW)


def test_a_run_that_the_study_stops_leaves_the_others(base: Experiment, tmp_path: Path) -> None:
    one = base.replace(steps=12)
    folders = [run.claim(tmp_path / str(seed), one.replace(seed=seed), "") for seed in (0, 1)]
    (folders[0] / STOP).touch()
    train([one.replace(seed=seed) for seed in (0, 1)], folders)
    assert '"pruned"' in (folders[0] / OUTCOME).read_text() and len(of(lines(folders[0]), "loss")) <= 1
    assert max(of(lines(folders[1]), "loss")) == 12 and not (folders[1] / OUTCOME).exists()


def test_a_group_is_spread_over_the_workers(base: Experiment) -> None:
    trials = Ablation(base, {"base": {}}, seeds=range(5)).trials()
    assert [len(group) for group in spread([trials], 1)] == [5]
    assert [len(group) for group in spread([trials], 3)] == [2, 1, 2]
    assert sorted(t.seed for group in spread([trials], 9) for t in group) == list(range(5))
    assert spread([], 2) == []
