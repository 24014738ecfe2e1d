"""The page of sums: its two runs fit together, and its rewards read the format that fine-tuning teaches."""

import json

from experiments.grpo_arithmetic import experiment, sft
from lm.tune.grpo import GRPO
from lm.tune.reward_functions import Completion


def test_the_second_run_starts_from_the_first_and_rewards_its_format() -> None:
    assert experiment.start and experiment.start.path == f"runs/{sft.name}" and experiment.model == sft.model
    assert isinstance(experiment.method, GRPO)
    (talks,), (prompts,) = sft.data.mixture.sources.values(), experiment.data.mixture.sources.values()
    for split in ("train", "heldout"):
        assert list(talks.documents(split)) == list(prompts.documents(split))
    record = json.loads(prompts.documents("heldout")[0])
    right, wrong, unclosed = (
        Completion.of(text, 5, True) for text in (record["completion"], "<x>", record["completion"][:-1])
    )
    for reward in experiment.method.rewards:
        assert reward([record["prompt"]] * 3, [right, wrong, unclosed], [record] * 3) == [1, 0, 0]
    longest = max(len(json.loads(text)["prompt"]) for text in prompts.documents("train"))
    assert longest + 1 <= experiment.length - experiment.method.max_new_tokens
