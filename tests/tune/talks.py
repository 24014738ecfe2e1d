"""Conversations of a few tokens, and an experiment that learns to answer them."""

import json
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

from lm.data.conversations import Conversations
from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.records import Jsonl
from lm.experiment import Experiment
from lm.text.tokenizer import Bytes
from lm.tune.sft import SFT
from tests.tiny import experiment

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ m.content + '=' }}{% endif %}{% endfor %}"
)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def write(file: Path) -> Path:
    """Talks of one to three turns: which letter comes after another."""
    turns = [(user(a), assistant(b)) for a, b in pairwise("abcdefghijklmnop")]
    talks = [[*chain(*turns[i : i + n])] for n in (1, 2, 3) for i in range(len(turns) - n + 1)]
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return file


def talking(file: Path) -> Experiment:
    source = Conversations(Jsonl(str(file), heldout=0.3))
    data = Data(Mixture({"talks": source}, {"talks": 1.0}), Bytes(), Pack(), TEMPLATE)
    base = replace(experiment(file.parent), data=data, method=SFT(), prompts=("c",), steps=12)
    return base.replace(model=dict(dropout=0.0))
