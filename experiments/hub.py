"""Text from elsewhere: files of the Hugging Face Hub, of a bucket or of any URL, and a TFDS data set by its name.

    lm train experiments.hub

A path of TextFile, TextFolder, Jsonl and Parquet may be a URL of any file system that fsspec knows: hf://, or with the
extra gcs or s3 gs:// and s3://, or with aiohttp https://. A `*` in it names several files. They are fetched into the
cache (LM_CACHE) at the first run, and again where they change; `hf://datasets/OWNER/NAME@REVISION/…` pins them, and
`heldout` may be the URL of others. The stories are those of TinyStories (2305.07759), here its validation file, of
which 5% are held out. The extra is `pip install -e ".[datasets]"`; a network is needed once.
"""

from lm.data.mixture import Data, Mixture
from lm.data.pack import Chunk
from lm.data.records import Parquet, Tfds
from lm.experiment import Experiment
from lm.model.families import llama
from lm.text.tokenizer import SentencePieceSpec
from lm.train.optim import AdamW
from lm.train.schedule import Cosine

experiment = Experiment(
    name="hub",
    model=llama(vocab=4096, layers=4, width=256, heads=4, kv_heads=2, mlp=768, context=256, tied=True),
    data=Data(
        mixture=Mixture(
            sources={
                "stories": Parquet("hf://datasets/roneneldan/TinyStories/data/validation-*.parquet"),
                "shakespeare": Tfds("tiny_shakespeare", heldout="validation"),
            },
            weights={"stories": 0.8, "shakespeare": 0.2},
        ),
        tokenizer=SentencePieceSpec(vocab_size=4096),
        packing=Chunk(),
    ),
    optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(warmup_steps=20)),
    batch_tokens=8 * 256,
    steps=400,
    eval_every_steps=100,
    checkpoint_every_steps=200,
    prompts=("Once upon a time",),
)
