"""The first run: a small Llama learns Python from the machine's own standard library.

    make quickstart          or          lm train experiments.quickstart

Two sources are mixed by weight: the library's code, and the prose of its docstrings and language reference. Held-out
files are scored in bits per byte, beside what gzip -9 and xz -9e need for the same files.
"""

from lm.data.mixture import Data, Mixture
from lm.data.pack import Chunk
from lm.data.stdlib import Stdlib
from lm.experiment import Experiment
from lm.model.families import llama
from lm.text.tokenizer import SentencePieceSpec
from lm.train.optim import Muon
from lm.train.schedule import WSD

experiment = Experiment(
    name="quickstart",
    model=llama(vocab=4096, layers=4, width=256, heads=4, kv_heads=2, mlp=768, context=256, tied=True),
    data=Data(
        mixture=Mixture(
            sources={"code": Stdlib("code"), "prose": Stdlib("prose")},
            weights={"code": 0.75, "prose": 0.25},
        ),
        tokenizer=SentencePieceSpec(vocab_size=4096),
        packing=Chunk(),
    ),
    optimizer=Muon(learning_rate=0.01, adam_learning_rate=0.006, schedule=WSD(warmup_steps=10, decay_fraction=0.4)),
    batch_tokens=8 * 256,
    steps=240,
    log_every_steps=5,
    eval_every_steps=80,
    eval_tokens=16_384,
    checkpoint_every_steps=80,
    prompts=("def read_lines(path):\n", "The with statement "),
)
