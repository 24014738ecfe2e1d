"""The experiment of two_tasks.sh: the tiny one, long enough to be requeued in the middle, on the texts in LM_TEXTS."""

import os
from pathlib import Path

from tests.tiny import experiment as tiny

experiment = tiny(Path(os.environ["LM_TEXTS"])).replace(
    steps=600,
    eval_every_steps=200,
    checkpoint_every_steps=50,
    eval_tokens=1024,
    prompts=(),
    compute=dict(matmul="float32"),
)
