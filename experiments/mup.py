"""muP (2203.03466): found at a small width, a learning rate is used at a large one.

    lm study experiments.mup:coordinates      what a few steps change in the activations, from width 64 to 512
    lm study experiments.mup:standard         the same in the standard parametrisation: it fails, as it should
    lm study experiments.mup:rates            the best learning rate at widths 64, 128 and 256, in both

A small Llama with an untied output, on the prose of the quickstart's text.

Measured: (to be run).
"""

from dataclasses import replace

from experiments.quickstart import experiment as quickstart
from lm.data.mixture import Mixture
from lm.data.stdlib import Stdlib
from lm.model.families import llama
from lm.model.parametrisation import MuP, Parametrisation
from lm.study.coordinates import Coordinates
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
