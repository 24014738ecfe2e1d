"""muP (2203.03466): found at a small width, a learning rate is used at a large one.

    lm train experiments.mup                  the base
    lm study experiments.mup:coordinates      what a few steps change in the activations, from width 64 to 512
    lm study experiments.mup:standard         the same in the standard parametrisation: it fails, as it should
    lm study experiments.mup:rates            the best learning rate at widths 64, 128 and 256, in both

A small Llama with an untied output, on the prose of the quickstart's text.

Measured after 5 steps, the exponents of the width in the change of activations: under muP from -0.15 to +0.01 at all
ten places, and it stands (exit 0); in the standard parametrisation +2.07 and +1.68 in the residual stream after each
layer, +2.16 and +1.31 in the feed-forwards, +0.93 and +0.89 in attention: it drifts, and `lm study` fails (exit 1). The
two take 3 and 1.5 minutes on one core.

Measured over 3 seeds, 120 steps of 512 tokens each (13 minutes on one core): the best learning rate, by the vertex of a
parabola, its 95% interval, the loss there, and the loss at the best rate of width 64.

    parametrisation  width  best rate  interval          loss    at that of 64   exponent of the width in the best rate
    MuP                 64     0.0094  0.0067 to 0.013   5.495   5.495           +0.07 (-0.07 to +0.21): transfers
                       128     0.0120  0.0065 to 0.022   5.343   5.345
                       256     0.0104  0.0061 to 0.018   5.269   5.264
    standard            64     0.0094  0.0067 to 0.013   5.495   5.495           -0.68 (-0.93 to -0.44): moves
                       128     0.0068  0.0051 to 0.0091  5.297   5.314
                       256     0.0037  0.0035 to 0.0039  5.148   5.281

So the paper's finding is found again: muP needs no new search. At so few steps the standard parametrisation, searched
anew, is the better one at width 256.
"""

from dataclasses import replace

from experiments.quickstart import experiment as quickstart
from lm.coordinates.check import Coordinates
from lm.data.mixture import Mixture
from lm.data.stdlib import Stdlib
from lm.model.families import llama
from lm.model.parametrisation import MuP, Parametrisation
from lm.study.transfer import Transfer
from lm.text.tokenizer import SentencePieceSpec
from lm.train.optim import AdamW
from lm.train.schedule import Cosine

experiment = quickstart.replace(
    name="mup",
    model=replace(
        llama(vocab=1024, layers=2, width=64, heads=4, mlp=192, context=64), parametrisation=MuP(base_width=64)
    ),
    data=dict(
        mixture=Mixture(sources={"prose": Stdlib("prose")}, weights={"prose": 1.0}),
        tokenizer=SentencePieceSpec(vocab_size=1024),
    ),
    optimizer=AdamW(learning_rate=8e-3, weight_decay=0.0, schedule=Cosine(warmup_steps=10)),
    batch_tokens=8 * 64,
    steps=120,
    eval_every_steps=120,
    checkpoint_every_steps=120,
)

coordinates = Coordinates(experiment, widths=(64, 128, 256, 512), steps=5, seeds=range(3))
standard = Coordinates(
    experiment.replace(model=dict(parametrisation=Parametrisation())),
    widths=(64, 128, 256, 512),
    steps=5,
    seeds=range(3),
)
rates = Transfer(experiment, widths=(64, 128, 256), rates=tuple(2e-3 * 2**k for k in range(6)), seeds=range(3))
