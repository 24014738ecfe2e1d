"""nanoGPT's smallest run, character by character.

    lm train experiments.shakespeare --set data.mixture.sources.text.path=input.txt

The text is tinyshakespeare (1.1 MB; github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt), its first 90%
trained on, the rest held out. nanoGPT publishes a validation loss of 1.88 nats a character for this model, batch and
number of iterations; this one reaches 1.776 (eval/loss in metrics.jsonl; 1 min 32 s on 2 cores).
"""

from lm.data.mixture import Data, Mixture
from lm.data.pack import Chunk
from lm.data.source import TextFile
from lm.experiment import Experiment
from lm.model.families import gpt
from lm.model.parts import FeedForward
from lm.text.tokenizer import Characters
from lm.train.optim import AdamW
from lm.train.schedule import Cosine

experiment = Experiment(
    name="shakespeare",
    model=gpt(
        vocab=65,
        layers=4,
        width=128,
        heads=4,
        context=64,
        bias=False,
        ffn=FeedForward(mlp=512, activation="gelu"),
    ),
    data=Data(
        mixture=Mixture(sources={"text": TextFile("input.txt")}, weights={"text": 1.0}),
        tokenizer=Characters(),
        packing=Chunk(across_documents=True),
    ),
    optimizer=AdamW(learning_rate=1e-3, b2=0.99, weight_decay=0.1, schedule=Cosine(warmup_steps=100)),
    batch_tokens=12 * 64,
    steps=2000,
    eval_every_steps=250,
    checkpoint_every_steps=1000,
    prompts=("\n",),
    sample_tokens=60,
)
