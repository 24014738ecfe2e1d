"""Sums of two digits as prompts with answers, and an experiment that learns them from rewards."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm.data.mixture import Data, Mixture
from lm.data.pack import OnePerRow
from lm.data.prompts import Prompts
from lm.data.records import Jsonl
from lm.experiment import Experiment
from lm.text.tokenizer import Bytes
from lm.tune.grpo import GRPO
from lm.tune.reward_functions import ExactAnswer, RewardFunction
from tests.tiny import experiment


@dataclass(frozen=True)
class Digits(RewardFunction):
    """The share of digits in a completion."""

    def __call__(self, prompts: Any, completions: Any, records: Any) -> list[float | None]:
        return [sum(c.isdigit() for c in text) / max(text.tokens, 1) for text in completions]


@dataclass(frozen=True)
class Failing(RewardFunction):
    """Raises."""

    def __call__(self, prompts: Any, completions: Any, records: Any) -> Any:
        raise ZeroDivisionError("by zero")


def write(file: Path) -> Path:
    sums = [{"prompt": f"{a}+{b}=", "answer": a + b} for a in range(9) for b in range(9)]
    file.write_text("".join(json.dumps(one) + "\n" for one in sums))
    return file


def summing(file: Path, **fields: Any) -> Experiment:
    """Eight groups of four completions a step, at a rate at which rewards rise in twelve steps whatever is drawn."""
    method = GRPO(**{"rewards": (Digits(), ExactAnswer()), "group": 4, "max_new_tokens": 6, **fields})
    source = Prompts(Jsonl(str(file), heldout=0.3))
    data = Data(Mixture({"sums": source}, {"sums": 1.0}), Bytes(), OnePerRow())
    base = replace(experiment(file.parent), data=data, method=method, prompts=(), seq_len=12, batch_tokens=32 * 12)
    return base.replace(model=dict(dropout=0.0), ema=0.0, steps=12, optimizer=dict(learning_rate=3e-2))
