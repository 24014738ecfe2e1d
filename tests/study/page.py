"""Small studies, on the texts in the folder that TEXTS names."""

import os
from pathlib import Path

from lm.model.positions import Alibi
from lm.study.ablation import Ablation
from tests.tiny import experiment

BASE = experiment(Path(os.environ.get("TEXTS", "texts"))).replace(model=dict(layers=1, dropout=0.0))

pair = Ablation(BASE, {"base": {}, "alibi": dict(model=dict(positions=Alibi()))}, seeds=range(2))
broken = Ablation(
    BASE,
    {
        "base": {},
        "small": dict(model=dict(vocab=200)),
        "wild": dict(optimizer=dict(learning_rate=1e30, clip=0.0)),
    },
    seeds=[0],
    match="steps",
)
