"""Plain data under names of before is read under today's."""

from pathlib import Path

import pytest

from lm import renamed
from lm.data.masked import MaskedLM
from lm.experiment import Experiment
from lm.tune.pretrain import Pretrain
from lm.value import build, plain
from tests.tiny import experiment


def test_classes_fields_and_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(renamed.CLASSES, "Old", "New")
    monkeypatch.setitem(renamed.FIELDS, "New", {"a": "b"})
    monkeypatch.setitem(renamed.MOVED, "Outer", lambda data: {**data, "moved": data["inner"]["b"]})
    old = {"type": "Outer", "inner": {"type": "Old", "a": [{"type": "Old", "a": 1}]}}
    new = {"type": "New", "b": [{"type": "New", "b": 1}]}
    assert renamed.upgrade(old) == {"type": "Outer", "inner": new, "moved": new["b"]}
    assert renamed.upgrade(new) == new


def test_what_is_learned_was_two_fields_of_the_experiment() -> None:
    today = experiment(Path("texts")).replace(model=dict(causal=False), method=Pretrain(MaskedLM(rate=0.2), 1e-4))
    data = plain(today)
    method = data.pop("method")
    before = {**data, "objective": method["objective"], "z_loss": method["z_loss"]}
    assert build(Experiment, before) == build(Experiment, plain(today)) == today
    assert renamed.upgrade(renamed.upgrade(before)) == renamed.upgrade(before) == plain(today)
    assert build(Experiment, {**data, "z_loss": 0.5, "objective": method["objective"]}).method.z_loss == 0.5
