"""Every number of every value of an experiment has a legal range, and what is outside is refused by its field."""

import dataclasses
import inspect
import math
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.__main__ import main
from lm import bounds, value
from lm.bounds import Bounds, Count, Decay, Fraction, Natural, Positive, Seed, Share
from lm.experiment import Experiment
from lm.model.parts import RMSNorm
from lm.model.positions import Rotary
from lm.tune.completion_eval import CompletionEval
from lm.tune.grpo import GRPO
from lm.tune.on_policy_method import OnPolicyMethod
from lm.tune.online_dpo import OnlineDPO
from lm.tune.ppo import PPO
from lm.tune.reward_functions import ExactAnswer, Format, SoftLength
from tests.knobs import base, samples
from tests.tiny import experiment

TINY = experiment(Path("texts"))
REWARDED = (
    *(of((ExactAnswer(),)) for of in (OnPolicyMethod, CompletionEval, GRPO, OnlineDPO, PPO)),
    Format("a+"),
    SoftLength(4, 8),
)


def classes(hint: Any, found: dict[str, type]) -> dict[str, type]:
    """The dataclasses of ours that a field annotated `hint` may hold, and those that theirs may."""
    for one in (hint, *typing.get_args(hint)):
        if one is not hint:
            classes(one, found)
        elif inspect.isclass(one) and one.__module__.startswith("lm.") and one.__name__ not in found:
            if dataclasses.is_dataclass(one):
                found[one.__name__] = one
                for inner in bounds.hints(one).values():
                    classes(inner, found)
            for sub in type.__subclasses__(one):
                classes(sub, found)
    return found


CLASSES = {name: cls for name, cls in classes(Experiment, {}).items() if not name.startswith("_")}


def numeric(cls: type) -> dict[str, Bounds | None]:
    """The fields that may be numbers, each with the bounds that it declares."""

    def number(hint: Any) -> bool:
        return hint in (int, float) or any(map(number, typing.get_args(hint)))

    known = {name: hint for name, hint in bounds.hints(cls).items() if number(hint)}
    return {name: next(iter(bounds.bounds_in(hint)), None) for name, hint in known.items()}


def sample(name: str) -> Any:
    """A legal value of the class `name`."""
    e = base()
    parts = [e, e.model, e.data, e.data.mixture, *e.data.mixture.breakpoints, e.model.attention, *REWARDED]
    known = {type(part).__name__: part for part in parts} | samples()
    return known.get(name) or CLASSES[name]()


def test_the_walk_comes_to_every_value() -> None:
    assert {"Experiment", "ModelConfig", "RMSNorm", "YaRN", "Muon", "WSD", "UL2", "TextFile", "MuP"} <= CLASSES.keys()
    assert sum(len(numeric(cls)) for cls in CLASSES.values()) > 120


@pytest.mark.parametrize("name", CLASSES)
def test_every_number_of_every_value_has_a_legal_range(name: str) -> None:
    """It is declared, and what is outside is refused, when the value is made or when it is checked, by its field."""
    for field, declared in numeric(CLASSES[name]).items():
        assert declared, f"{name}.{field} declares no range: see lm/bounds.py"
        legal = sample(name)
        bounds.check(legal)
        near = [declared.low - 1, declared.high + 1] if declared.high < 1e30 else []
        for outside in (math.nan, math.inf, -math.inf, -1e39, 1e39, *near):
            number = int(outside) if declared.whole and math.isfinite(outside) else outside
            holds = isinstance(getattr(legal, field), dict)
            wrong = dict.fromkeys(getattr(legal, field) or ["data"], number) if holds else number
            with pytest.raises(ValueError, match=field):
                bounds.check(dataclasses.replace(legal, **{field: wrong}))


@given(st.floats(), st.sampled_from([Positive, Fraction, Share, Decay]))
def test_real_numbers(number: float, kind: Any) -> None:
    (declared,) = bounds.bounds_in(kind)
    inside = {Positive: number > 0, Fraction: 0 <= number <= 1, Share: 0 < number < 1, Decay: 0 <= number < 1}[kind]
    assert (not declared.fault(number)) == (inside and number < 3.5e38)


@given(st.integers(-3, 3) | st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**32]))
def test_whole_numbers(number: int) -> None:
    for kind, low, high in ((Count, 1, 2**31), (Natural, 0, 2**31), (Seed, 0, 2**32)):
        (declared,) = bounds.bounds_in(kind)
        assert (not declared.fault(number)) == (low <= number < high)
        assert declared.fault(number + 0.5) == declared.fault(float(number)) == "expected a whole number"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mesh.fdsp=4", "mesh has no axis 'fdsp': did you mean fsdp"),
        ("mesh.fsdp=0", "mesh.fsdp=0: expected a number of devices, or -1"),
        ("mesh.fsdp=-2", "mesh.fsdp=-2: expected at least -1"),
        ("model.norm.eps=-1", "model.norm.eps=-1.0: expected at least 0"),
        ("model.positions.theta=nan", "model.positions.theta=nan: expected a finite number"),
        ("model.positions=Rotary(theta=-5)", "model.positions.theta=-5.0: expected more than 0"),
        ("optimizer.learning_rate=1e400", "optimizer.learning_rate=1e400: AdamW.learning_rate=inf: expected a finite"),
        ("optimizer.learning_rate=1e39", "AdamW.learning_rate=1e+39: expected at most"),
        ("steps=99999999999999999999", "steps=99999999999999999999: expected at most 2,147,483,647"),
        ("seed=4294967296", "seed=4294967296: expected at most 4,294,967,295"),
        ("seed=-1", "seed=-1: expected at least 0"),
        ("ema=1", "ema=1.0: expected at least 0 and less than 1"),
        ("data.mixture.weights.sums=nan", "weights give sums nan"),
    ],
)
def test_a_setting_outside_its_range_is_refused_by_its_field(setting: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        value.parse(TINY.replace(model=dict(positions=Rotary(), norm=RMSNorm())), setting)
    assert message in str(refused.value)


def test_show_refuses_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "experiments.quickstart", "--set", "model.norm.eps=-1"]) == 1
    assert capsys.readouterr().err == "lm: model.norm.eps=-1.0: expected at least 0\n"
    assert main(["show", "experiments.quickstart", "--set", "mesh.tensor=3"]) == 1
    assert "cannot be divided over mesh tensor=3" in capsys.readouterr().err
    assert main(["show", "experiments.quickstart", "--set", "mesh.fsdp=2147483647", "mesh.data=2147483647"]) == 1
    assert "cannot be divided over mesh" in capsys.readouterr().err  # at once
    assert main(["show", "experiments.quickstart", "--host-devices", "100000"]) == 1
    assert capsys.readouterr().err == "lm: compute.devices=100000: expected at least 0 and at most 1,024\n"


def test_a_number_that_declares_nothing_is_finite() -> None:
    @dataclasses.dataclass(frozen=True)
    class Free:
        x: tuple[float, ...] = (1.0, -2.0)
        y: bool = True

    bounds.check(Free())
    with pytest.raises(ValueError, match=r"here\.x\[1\]=nan: expected a finite number"):
        bounds.check(Free((1.0, math.nan)), "here")
