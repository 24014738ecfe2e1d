"""A small student learns from the quickstart's model, beside the same student that learns from the text alone.

    lm train experiments.quickstart
    lm train experiments.tune.distill
    lm study experiments.tune.distill:distillation      with a teacher and without, three seeds each

Hinton et al. (1503.02531). The teacher, of seed 0, has 4 layers of width 256; the student 2 of width 128 and the same
text, tokenizer, rows and steps. `--set method.top_k=64 method.cached=True` asks the teacher before the first step, once
for all runs that read the same rows.

Measured (12 minutes on two cores that had other work too; held-out bits per byte, the difference to the student alone
paired by 3 seeds with its 95% interval, p of a paired t-test; each run 42 s alone and 178 s with a teacher):

                          code     prose    mean
    alone                 1.991    2.169    2.080
    teacher               1.953    2.142    2.047    -0.033 [-0.057, -0.009]  p 0.027
    the teacher itself    1.924    2.112    2.018

The student keeps a divergence of 0.11 to 0.12 nats a token from the teacher, on held-out text. At equal steps it costs
2.5 times the FLOPs of learning alone; whether they were better spent on more steps alone was not measured.
"""

from dataclasses import replace

from experiments.quickstart import experiment as quickstart
from lm.experiment import Experiment
from lm.model.families import llama
from lm.study.ablation import Ablation
from lm.text.tokenizer import TokenizerFile
from lm.tune.distill import Distill

alone: Experiment = replace(
    quickstart,
    name="alone",
    model=llama(vocab=4096, layers=2, width=128, heads=4, kv_heads=2, mlp=384, context=256, tied=True),
    data=replace(quickstart.data, tokenizer=TokenizerFile("runs/quickstart")),
)
experiment = replace(alone, name="distill", method=Distill("runs/quickstart", quickstart.model))

distillation = Ablation(
    alone,
    arms={"alone": {}, "teacher": dict(method=experiment.method)},
    seeds=range(3),
    match="steps",
    measure="bits_per_byte",
)
