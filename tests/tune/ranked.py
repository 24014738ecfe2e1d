"""Preference pairs of a few letters by a known rule, and an experiment that learns it."""

import json
import random
from dataclasses import replace
from pathlib import Path

from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.preferences import Preferences
from lm.data.records import Jsonl
from lm.experiment import Experiment
from lm.model.families import scorer
from lm.text.tokenizer import Bytes
from lm.tune.reward import Reward
from tests.tiny import experiment


def write(file: Path, count: int = 120) -> Path:
    """Of two answers the better one has the letter that the prompt asks for; sizes differ, and so do margins."""
    rng = random.Random(0)
    with file.open("w") as out:
        for i in range(count):
            asked, other = rng.sample("abc", 2)
            answers = [letter * rng.randint(1, 4) for letter in (asked, other)]
            record = dict(prompt=f"{asked}? ", chosen=answers[0], rejected=answers[1])
            out.write(json.dumps({**record, **({"margin": 0.5} if i % 2 else {})}) + "\n")
    return file


def ranking(file: Path) -> Experiment:
    data = Data(Mixture({"pairs": Preferences(Jsonl(str(file), heldout=0.3))}, {"pairs": 1.0}), Bytes(), Pack())
    base = replace(experiment(file.parent), data=data, prompts=(), steps=12, seq_len=32)
    model = scorer(replace(base.model, dropout=0.0))  # whose masks follow the order of a mesh's tokens
    return replace(base, model=model, method=Reward(centering=0.01))
