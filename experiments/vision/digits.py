"""A vision tower trained from nothing on real images: what digit is this?

    pip install -e ".[digits]"
    lm train experiments.vision.digits
    python -m experiments.vision.digits runs/digits     how many of the held-out digits it names right

The 1,797 handwritten digits that come with scikit-learn, 8 by 8 pixels each; a fifth of them is held out. A tower of
three layers reads sixteen patches of 2 by 2 pixels, each of which becomes a token before the question; only the answer
carries loss.

Measured on two busy cores, 4 minutes, of one seed: 97.9% of the 385 held-out digits are named right.
"""

import json
import sys

import numpy as np

from lm.data.captions import Captions
from lm.data.digits import Digits
from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.experiment import Experiment
from lm.model.config import Vision
from lm.model.families import llama, siglip
from lm.model.parts import RMSNorm
from lm.model.positions import Learned
from lm.text.tokenizer import Bytes
from lm.train.optim import AdamW
from lm.train.schedule import Cosine
from lm.tune.sft import SFT
from lm.tune.vision import captions_for

vision = Vision(
    tower=siglip(layers=3, width=64, heads=4, mlp=192, patches=16, positions=Learned(init_scale=0.5)),
    image_size=8,
    patch_size=2,
    image_token=255,  # a byte that is in no UTF-8
    projector_norm=RMSNorm(),
)
source = Captions(Digits(), **captions_for(vision))

experiment = Experiment(
    name="digits",
    model=llama(vocab=258, layers=2, width=64, heads=4, mlp=192, context=40, tied=True, dropout=0.1, vision=vision),
    method=SFT(),
    data=Data(mixture=Mixture({"digits": source}, {"digits": 1.0}), tokenizer=Bytes(), packing=Pack()),
    optimizer=AdamW(learning_rate=1e-3, weight_decay=0.1, schedule=Cosine(warmup_steps=50)),
    batch_tokens=64 * 40,
    steps=1500,
    eval_every_steps=250,
    checkpoint_every_steps=1500,
)


def right(run: str) -> float:
    """The share of the held-out digits that the model of a run names right."""
    from lm.decode.sampling import Sampling
    from lm.pretrained import load

    model = load(run)
    records = [json.loads(document) for document in source.documents("heldout")]
    assert model.tokenizer is not None
    prompts = [source.image_tokens.encode(record["prompt"], 1, model.tokenizer) for record in records]
    images = np.stack([source.read(json.dumps(record)) for record in records])
    rows: list[list[int]] = [[] for _ in records]
    for chunk in model.stream_ids(prompts, 4, Sampling(0.0), images=images):
        rows = [row + new for row, new in zip(rows, chunk, strict=True)]
    found = [model.tokenizer.decode(row) == record["completion"] for row, record in zip(rows, records, strict=True)]
    return float(np.mean(found))


if __name__ == "__main__":
    print(f"{right(sys.argv[1]):.1%} of the held-out digits")
