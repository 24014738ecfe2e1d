"""What a run says first and last: what it is, where, from which step on, and what it is for."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from launch.train import what_next
from lm.experiment import Experiment
from lm.model.config import Vision
from lm.model.families import bert, scorer, siglip
from lm.run.log import announcement
from tests.tiny import experiment


@pytest.fixture
def tiny(tmp_path: Path) -> Experiment:
    return experiment(tmp_path)


def test_the_first_line_says_what_where_and_from_when(tiny: Experiment, tmp_path: Path) -> None:
    said = announcement(tiny, tmp_path)
    assert said.startswith("tiny: 13.5k") and " parameters on " in said and str(tmp_path) in said
    assert said.endswith(": 12 steps of 256 tokens") and f"as {jax.device_count()} devices" in said
    for step, words in (4, "goes on after step 4 of 12"), (12, "all 12 steps are done"):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        assert announcement(tiny, tmp_path).endswith(f": {words}")


def test_the_last_line_says_what_the_run_is_for(tiny: Experiment) -> None:
    said = what_next(tiny, "runs/my run")
    assert said == "next: lm sample 'runs/my run' --prompt 'the '; lm evaluate 'runs/my run'; lm report 'runs/my run'"
    assert "lm sample r; " in what_next(tiny.replace(prompts=("two\nlines",)), "r")
    vision = Vision(siglip(layers=1, width=8, heads=2, mlp=8, patches=16), 8, 2, 255, pool=2)
    seeing: Any = SimpleNamespace(model=replace(tiny.model, vision=vision), prompts=("the ",))
    assert what_next(seeing, "r").startswith("next: lm sample r --image FILE --prompt 'What is this?'; ")
    scoring: Any = SimpleNamespace(model=scorer(tiny.model), prompts=())
    assert what_next(scoring, "r").startswith("next: lm score r 'a text'; lm evaluate r")
    masking: Any = SimpleNamespace(model=bert(vocab=300, layers=1, width=16, heads=2, mlp=32, context=32), prompts=())
    assert what_next(masking, "r").startswith("next: lm sample r --prompt '… [MASK] …'")
