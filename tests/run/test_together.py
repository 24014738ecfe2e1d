"""Runs in one program are the runs that they would be apart; what ends one ends no other."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from lm.data.pack import Chunk
from lm.experiment import Experiment
from lm.model.compute import Compute
from lm.run import course
from lm.run import together as together_module
from lm.run.outcome import OUTCOME, STOP
from lm.run.prepared import prepare_run
from lm.run.together import MOST, PROGRAM, LinesOnly, plan_execution, program_key, train
from lm.run.vmapped import faster
from lm.study.ablation import Ablation
from lm.study.executors import split
from lm.study.runner import groups
from lm.train.optim import Adafactor, AdamW, Lion, Muon
from lm.train.schedule import WSD, Constant, Cosine
from tests.run.programs import shared_programs, without_reports
from tests.tiny import experiment, lines, of, write_texts

LEAN = dict(prompts=(), log_every_steps=1, eval_every_steps=25, checkpoint_every_steps=25)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    tiny = experiment(write_texts(tmp_path_factory.mktemp("texts")))
    # bfloat16 would round elsewhere side by side, and over many steps what rounding changes grows
    return tiny.replace(LEAN, ema=0.0, steps=50, model=dict(layers=1), compute=dict(matmul="float32"))


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    """Those that are trained together share programs with those of other tests; those apart do not. No report."""
    with shared_programs(together_module), without_reports():
        yield


def told_seconds(folders: list[Path]) -> float:
    abouts = [folder / "about.json" for folder in folders if (folder / "about.json").exists()]
    return sum(float(json.loads(about.read_text())["seconds"]) for about in abouts)


def together(experiments: list[Experiment], folder: Path, how: str = "turns") -> list[Path]:
    folders = [course.claim(folder / str(i), e, "") for i, e in enumerate(experiments)]
    began, before = time.time(), told_seconds(folders)
    train(experiments, folders, how)
    assert told_seconds(folders) - before <= time.time() - began + 0.1 * len(folders)  # each counts its share
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


@pytest.mark.parametrize("name", [pytest.param("rates and seeds", marks=pytest.mark.slow), "schedules and lengths"])
def test_one_program_is_separate_runs(
    base: Experiment, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which take turns from evaluation to evaluation."""
    experiments = [base.replace(change, eval_every_steps=8) for change in ARMS[name]]
    assert len({program_key(e) for e in experiments}) == 1
    folders = together(experiments, tmp_path / "together")
    said = capsys.readouterr().out
    assert said.index("together/0: step 8: held-out") < said.index("together/1: first step finished")
    evaluated = re.findall(r"^together/(\d): step (\d+): held-out", said, re.MULTILINE)
    ends = [[(min(n, e.steps), i) for n in range(8, e.steps + 8, 8)] for i, e in enumerate(experiments)]
    assert evaluated == [(str(i), str(n)) for turn in zip_longest(*ends) for n, i in filter(None, turn)]
    for i, folder in enumerate(folders):
        course.train(experiments[i], tmp_path / str(i))
        found, wanted = (of(lines(f), "loss") for f in (folder, tmp_path / str(i)))
        assert list(found) == list(wanted) == list(range(1, experiments[i].steps + 1))
        assert found == wanted  # to the bit
        ours, theirs = (of(lines(f), "eval/loss") for f in (folder, tmp_path / str(i)))
        assert ours == theirs
        alone = {p.name for p in (tmp_path / str(i)).iterdir()}
        assert {p.name for p in folder.iterdir()} == alone - {"report.html"}  # which the study writes


SideBySide = Callable[[str], tuple[list[Experiment], list[Path]]]


@pytest.fixture(scope="module")
def side_by_side(base: Experiment, tmp_path_factory: pytest.TempPathFactory) -> SideBySide:
    """The name of arms -> their experiments, and the folders of their runs side by side."""

    @cache
    def trained(name: str) -> tuple[list[Experiment], list[Path]]:
        experiments = [base.replace(dict(steps=10) | change) for change in ARMS[name]]
        return experiments, together(experiments, tmp_path_factory.mktemp("vmap"), "vmap")

    return trained


@pytest.mark.parametrize("name", ["rates and seeds", pytest.param("schedules and lengths", marks=pytest.mark.slow)])
def test_side_by_side_is_in_turn_but_for_rounding(side_by_side: SideBySide, name: str, tmp_path: Path) -> None:
    experiments, found_in = side_by_side(name)
    wanted_in = together(experiments, tmp_path, "turns")
    for e, ours, theirs in zip(experiments, found_in, wanted_in, strict=True):
        for measure in ("loss", "eval/loss"):
            found, wanted = (of(lines(folder), measure) for folder in (ours, theirs))
            assert list(wanted)[-1] == e.steps and found == pytest.approx(wanted, rel=1e-5)
        assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}


def test_side_by_side_an_interruption_changes_no_bit(
    side_by_side: SideBySide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments, wanted = side_by_side("rates and seeds")
    with monkeypatch.context() as patch:
        once = iter([signal.SIGTERM])
        patch.setattr(LinesOnly, "update", lambda _, n, *__: n == 5 and [signal.raise_signal(one) for one in once])
        with pytest.raises(course.Interrupted):
            together(experiments, tmp_path / "cut", "vmap")
    assert all(max(of(lines(tmp_path / "cut" / str(i)), "loss")) < 10 for i in (0, 1))
    found = together(experiments, tmp_path / "cut", "vmap")
    for ours, theirs in zip(found, wanted, strict=True):
        assert of(lines(ours), "loss") == of(lines(theirs), "loss")
        assert of(lines(ours), "eval/loss") == of(lines(theirs), "eval/loss")


def test_which_way_is_said_and_can_be_refused(
    base: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = [base.replace(seed=seed) for seed in (0, 1)]
    runs = [together_module.Run(e, course.claim(tmp_path / str(e.seed), e, "")) for e in experiments]
    side_by_side, words = faster(runs)
    assert isinstance(side_by_side, bool) and "in turn" in words and "side by side" in words
    assert (
        plan_execution(runs, "auto") is None
        and plan_execution(runs, "turns") is None
        and plan_execution(runs, "vmap") is not None
    )
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(PROGRAM)]
    ways = "in turn (faster on CPUs)", "in turn (as asked)", "side by side (as asked)"
    assert said == [f"{PROGRAM}2 runs, {way}" for way in ways]
    with monkeypatch.context() as patch:  # the step of all has the compiler's options too
        patch.setattr(Compute, "compiler_options", {"xla_of_no_compiler": "1"})
        patch.setattr(runs[0].program, "_side_by_side", {})
        side_by_side, words = faster(runs)
    assert not side_by_side and "xla_of_no_compiler" in words
    kept = [run.prepared.heldout["eval"].kept for run in runs]
    assert kept[0] is kept[1]  # the same held-out rows are read once
    other = replace(base, data=replace(base.data, packing=Chunk()))
    prepared = prepare_run(other, course.claim(tmp_path / "other", other, ""), like=runs[0].prepared)
    assert prepared.heldout["eval"].kept is not kept[0]
    sharded = base.replace(mesh=dict(data=4, fsdp=2))
    runs = [course.Run(sharded, course.claim(tmp_path / "sharded", sharded, ""))] * 2
    assert plan_execution(runs, "auto") is None
    with pytest.raises(ValueError, match="mesh.fsdp splits each run over devices; --together turns can"):
        plan_execution(runs, "vmap")


@pytest.mark.parametrize(
    "optimizer",
    [Muon(), *(pytest.param(other, marks=pytest.mark.slow) for other in (Lion(), Adafactor(min_side=8)))],
    ids=lambda o: type(o).__name__,
)
def test_every_optimizer_takes_its_numbers_as_data(base: Experiment, optimizer: Any, tmp_path: Path) -> None:
    short = base.replace(steps=12, optimizer=replace(optimizer, schedule=Constant()))
    experiments = [short, short.replace(optimizer=dict(learning_rate=2 * optimizer.learning_rate, weight_decay=0.2))]
    if not optimizer.weight_decay:  # none is another program
        assert program_key(experiments[0]) != program_key(experiments[1])
        experiments[1] = short.replace(optimizer=dict(learning_rate=2 * optimizer.learning_rate))
    folders = together(experiments, tmp_path)
    course.train(experiments[1], tmp_path / "apart")
    found, wanted = (list(of(lines(f), "loss").values()) for f in (folders[1], tmp_path / "apart"))
    assert found == wanted
    assert found != list(of(lines(folders[0]), "loss").values())


@pytest.mark.parametrize("how", ["turns", "vmap"])
def test_an_arm_that_diverges_leaves_the_others(base: Experiment, how: str, tmp_path: Path) -> None:
    wild = base.replace(optimizer=dict(learning_rate=1e30), steps=12)
    tame = base.replace(optimizer=dict(learning_rate=1e-3), steps=12)
    folders = together([wild, tame], tmp_path, how)
    assert '"diverged"' in (folders[0] / OUTCOME).read_text()
    finished = json.loads((folders[1] / "about.json").read_text())["finished"]
    assert finished and not (folders[1] / OUTCOME).exists()


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
    folders = [course.claim(tmp_path / str(seed), one.replace(seed=seed), "") for seed in (0, 1)]
    (folders[0] / STOP).touch()
    train([one.replace(seed=seed) for seed in (0, 1)], folders)
    assert '"pruned"' in (folders[0] / OUTCOME).read_text() and len(of(lines(folders[0]), "loss")) <= 1
    assert max(of(lines(folders[1]), "loss")) == 12 and not (folders[1] / OUTCOME).exists()


def test_a_group_is_spread_over_the_workers(base: Experiment) -> None:
    trials = Ablation(base, {"base": {}}, seeds=range(5)).trials()
    assert [len(group) for group in split([trials], 1)] == [5]
    assert [len(group) for group in split([trials], 3)] == [2, 1, 2]
    assert sorted(t.seed for group in split([trials], 9) for t in group) == list(range(5))
    assert split([], 2) == []
