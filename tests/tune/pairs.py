"""Preference pairs of a few tokens, and an experiment that learns them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.preferences import Preferences, UnpairedPreferences
from lm.data.records import Jsonl
from lm.experiment import Experiment
from lm.text.tokenizer import Bytes
from lm.tune.dpo import DPO
from lm.tune.kto import KTO
from tests.tiny import experiment

LETTERS = "abcdefghijklmnop"


def write(file: Path) -> Path:
    """After two letters the capital one is better than the small one."""
    pairs = [{"prompt": a + b, "chosen": b.upper(), "rejected": b * (1 + (a < b))} for a in LETTERS for b in LETTERS]
    file.write_text("".join(json.dumps(one) + "\n" for one in pairs))
    return file


def preferring(file: Path, method: Any = None, **fields: Any) -> Experiment:
    """Eight rows of 24 tokens a step, each with two or three pairs."""
    method, records = method or DPO(), Jsonl(str(file), heldout=0.2)
    source = (UnpairedPreferences if isinstance(method, KTO) else Preferences)(records)
    data = Data(Mixture({"pairs": source}, {"pairs": 1.0}), Bytes(), Pack())
    base = replace(experiment(file.parent), data=data, method=method, prompts=("cd",), seq_len=24, batch_tokens=8 * 24)
    return base.replace(model=dict(dropout=0.0), ema=0.0, **fields)
