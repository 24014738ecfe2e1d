"""The pages of learning from preferences: their runs fit together, and arms are matched by what they draw."""

import importlib
from dataclasses import replace

import pytest

from experiments.rlhf import instructgpt as page
from experiments.rlhf import reviews
from launch.find import find_study
from lm.data.reviews import HELDOUT
from lm.study.ablation import Ablation
from lm.study.overoptimization import Overoptimization
from lm.tune.completion_eval import CompletionEval
from lm.tune.on_policy_method import OnPolicyMethod
from lm.tune.reward_functions import Completion

DRAWN = page.STEPS * page.ROWS


@pytest.mark.parametrize("name", ["instructgpt", "overoptimization"])
def test_a_page_says_how_to_run_it(name: str) -> None:
    study, reference = find_study(f"experiments.rlhf.{name}")
    assert isinstance(study, Ablation) and reference == f"experiments.rlhf.{name}:{name}"
    told = importlib.import_module(f"experiments.rlhf.{name}").__doc__ or ""
    steps = [told.index(f"lm train experiments.rlhf.reviews:{stage}\n") for stage in ("pretrained", "sft")]
    assert steps == sorted(steps) and told.index(f"lm study experiments.rlhf.{name}\n") > steps[-1]
    assert study.resolved and all(arm.start == page.base.start for arm, _ in study.resolved.values())


def test_the_three_steps_go_on_from_each_other() -> None:
    starts = [one.start and one.start.path for one in (reviews.pretrained, reviews.sft, reviews.reward, page.base)]
    assert starts == [None, *(f"runs/{one.name}" for one in (reviews.pretrained, reviews.sft, reviews.sft))]
    rewards = reviews.Rule()([""], [Completion.of(" the tea was great.", 5, True)], [{}])
    assert rewards == [1.0]


def test_arms_draw_as_many_completions_and_are_judged_alike() -> None:
    arms = {name: arm for name, (arm, _) in page.instructgpt.resolved.items()}
    for name, arm in arms.items():
        if isinstance(arm.method, OnPolicyMethod):
            assert arm.steps * arm.rows == DRAWN and arm.method.scorer == page.judge.scorer, name
        (evaluation,) = arm.evaluations.values()
        judge = evaluation.method
        assert isinstance(judge, CompletionEval) and replace(judge, best_of=1) == page.judge
        assert judge.best_of * HELDOUT == (DRAWN if name == "best_of_n" else HELDOUT)
    assert page.instructgpt.base_arm == "sft" and not arms["sft"].optimizer.learning_rate


def test_the_proxy_is_what_is_optimised() -> None:
    module = importlib.import_module("experiments.rlhf.overoptimization")
    study = module.overoptimization
    assert isinstance(study, Overoptimization) and study.base_arm == "start"
    for arm, _ in study.resolved.values():
        judge = arm.evaluations["completions"].method
        assert isinstance(judge, CompletionEval) and judge.scorer == f"runs/{module.proxy.name}"
        assert not isinstance(arm.method, OnPolicyMethod) or arm.method.scorer == judge.scorer
