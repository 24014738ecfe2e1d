"""Eyes trained from nothing on pictures of coloured shapes: how many are red, what colour is the circle?

lm train experiments.vision.shapes
"""

from lm.data.captions import Captions
from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.shapes import QUESTIONS, Shapes
from lm.data.source import Source
from lm.experiment import Experiment
from lm.model.config import Vision
from lm.model.families import llama, siglip
from lm.model.parts import RMSNorm
from lm.model.positions import Learned
from lm.text.tokenizer import Bytes
from lm.train.optim import AdamW
from lm.train.schedule import Cosine
from lm.tune.eyes import captions_for
from lm.tune.sft import SFT

SIZE = 24
vision = Vision(
    tower=siglip(layers=3, width=96, heads=3, mlp=288, patches=36, positions=Learned(init_scale=0.5)),
    image_size=SIZE,
    patch_size=4,
    image_token=255,  # a byte that is in no UTF-8
    pool=2,
    projector_norm=RMSNorm(),
)
sources: dict[str, Source] = {q: Captions(Shapes(q, size=SIZE, most=3), **captions_for(vision)) for q in QUESTIONS}

experiment = Experiment(
    name="shapes",
    model=llama(vocab=258, layers=3, width=96, heads=3, mlp=288, context=64, tied=True, vision=vision),
    method=SFT(),
    data=Data(mixture=Mixture(sources, dict.fromkeys(sources, 1 / len(sources))), tokenizer=Bytes(), packing=Pack()),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup_steps=50)),
    batch_tokens=32 * 64,
    steps=3000,
    eval_every_steps=500,
    eval_tokens=20_000,
    checkpoint_every_steps=1000,
)
