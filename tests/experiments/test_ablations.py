"""The pages of ablations: each declares arms that can be built and matched, cites its paper and says how to run it."""

import importlib
from pathlib import Path

import pytest

import experiments.ablations
from launch.find import find_study
from lm.study.ablation import Ablation

FOLDER = Path(next(iter(experiments.ablations.__path__)))
NAMES = [path.stem for path in sorted(FOLDER.glob("[!_]*.py")) if path.stem not in ("small", "optimizers")]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_a_matched_ablation(name: str) -> None:
    study, reference = find_study(f"experiments.ablations.{name}")
    assert isinstance(study, Ablation) and reference == f"experiments.ablations.{name}:{name}"
    assert all(abs(arm.steps - study.base.steps) < study.base.steps for arm, _ in study.resolved.values())
    told = importlib.import_module(f"experiments.ablations.{name}").__doc__ or ""
    assert f"lm study experiments.ablations.{name}" in told and any(c.isdigit() for c in told.partition("(")[2])
