"""Should the learning rate fall? Constant, half a cosine, and a straight fall over the last part alone.

    lm study experiments.course.pretraining

docs/course/pretraining.md has what was measured.
"""

from experiments.course.base import experiment as course
from lm.study.ablation import Ablation
from lm.train.schedule import WSD, Constant

schedules = Ablation(
    course.replace(prompts=()),
    arms={
        "cosine": {},
        "constant": dict(optimizer=dict(schedule=Constant(warmup_steps=10))),
        "wsd": dict(optimizer=dict(schedule=WSD(warmup_steps=10, decay_fraction=0.3))),
    },
    seeds=range(3),
    match="steps",
    measure="bits_per_byte",
)
