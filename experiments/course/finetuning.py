"""How much of a model must move for it to learn a form? All of it, or LoRA's factors of rank 1 and 8.

    lm train experiments.rlhf.reviews:pretrained
    lm study experiments.course.finetuning

The start is a language model of made-up reviews (experiments/rlhf/reviews.py), what is learned how to answer.
docs/course/fine-tuning.md has what was measured.
"""

from experiments.rlhf import reviews
from lm.study.ablation import Ablation
from lm.tune.lora import LoRA

FASTER = dict(learning_rate=1e-2)  # factors begin at zero

answering = Ablation(
    reviews.sft.replace(prompts=()),
    arms={
        "full": {},
        "rank_1": dict(trains=LoRA(rank=1), optimizer=FASTER),
        "rank_8": dict(trains=LoRA(rank=8), optimizer=FASTER),
    },
    seeds=range(3),
    match="steps",
    measure="answers/loss",
)
