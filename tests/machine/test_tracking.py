"""Metrics at a service: what it gets, and that a run which goes on is the same one there."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lm.experiment import changed
from lm.machine.monitor import Metrics
from lm.machine.tracking import WandB
from lm.run import course
from lm.value import build, parse, plain
from tests.tiny import experiment, write_texts


class Service:
    """Stands for the module wandb."""

    class Error(Exception):
        pass

    Settings = SimpleNamespace

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.finished = 0

    def init(self, **given: Any) -> Any:
        if given["project"] == "refused":
            raise self.Error("No API key configured. Use `wandb login` to log in.")
        self.given.append(given)
        return SimpleNamespace(log=self.logged.append, finish=self.finish, define_metric=lambda *_, **__: None)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service()
    monkeypatch.setitem(sys.modules, "wandb", found)  # type: ignore[arg-type]
    monkeypatch.setattr("lm.machine.tracking.find_spec", lambda name: name)
    return found


def test_it_gets_what_metrics_jsonl_gets(service: Service, tmp_path: Path) -> None:
    tracker = WandB(project="p", entity="e", group="g", mode="offline")
    with Metrics(tmp_path, -1, [tracker.open(tmp_path, "run", {"steps": 3})]) as metrics:
        metrics.write(1, {"loss": 2.0, "eval/code/loss": 3.0})
    assert service.logged == [{"step": 1, "train/loss": 2.0, "eval/code/loss": 3.0}] and service.finished == 1
    given = service.given[0]
    assert given.items() >= dict(project="p", entity="e", group="g", mode="offline", name="run").items()
    assert (given["config"], given["dir"], given["resume"]) == ({"steps": 3}, str(tmp_path), "allow")
    tracker.open(tmp_path, "run", {})
    (tmp_path / "other").mkdir()
    tracker.open(tmp_path / "other", "run", {})
    ids = [one["id"] for one in service.given]
    assert ids[0] == ids[1] != ids[2] and json.loads((tmp_path / "wandb.json").read_text()) == {"id": ids[0]}


def test_it_is_a_value_that_changes_no_run(tmp_path: Path) -> None:
    declared = experiment(tmp_path)
    with_it = parse(declared, "trackers=(WandB(mode='offline'),)")
    assert with_it.trackers == (WandB(mode="offline"),) and build(type(declared), plain(with_it)) == with_it
    assert changed(plain(declared), plain(with_it)) == []


@pytest.mark.slow
def test_a_run_hands_its_metrics_on(service: Service, tmp_path: Path) -> None:
    declared = experiment(write_texts(tmp_path / "texts")).replace(prompts=(), eval_tokens=64, steps=4)
    with_it = declared.replace(trackers=(WandB(mode="offline"),))
    course.train(with_it, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    renamed = [{k if "/" in k or k == "step" else f"train/{k}": v for k, v in line.items()} for line in lines]
    assert service.logged == renamed and service.finished == 1
    assert service.given[0]["config"] == plain(with_it.on(8))


def test_what_it_needs_is_said(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Use `wandb login` to log in; or trackers=.WandB.mode='offline'"):
        WandB(project="refused").open(tmp_path, "run", {})
    with pytest.raises(ValueError, match="mode='dry': expected online, offline or disabled"):
        WandB(mode="dry")
    monkeypatch.setattr("lm.machine.tracking.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs wandb, which is not installed: pip install -e "\.\[wandb\]"'):
        WandB().check()


def test_the_package_itself_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="of the extra wandb")
    with Metrics(tmp_path, -1, [WandB(mode="offline").open(tmp_path, "run", {"steps": 3})]) as metrics:
        metrics.write(1, {"loss": 2.0})
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
