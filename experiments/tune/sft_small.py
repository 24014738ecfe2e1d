"""A model of our own learns to answer: supervised fine-tuning on talks about the standard library.

    lm train experiments.quickstart
    lm train experiments.tune.sft_small

It starts from the quickstart's run, in runs/quickstart. A talk is a question about a function or class, its docstring's
first paragraph as the answer, and a second question about its parameters; nothing is downloaded. `lm show
experiments.tune.sft_small --examples 3` shows which tokens carry loss, and `lm chat runs/sft_small` asks the model.

Seed 0 took 353 s on two cores that had other work too. On held-out talks (3,913 tokens) its perplexity is 137 on the
assistant's tokens, of which it gets 21.3% right. Replies have the form of a docstring's sentence and end there; they
are not true.
"""

from lm.data.conversations import Conversations
from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.talks import StdlibTalks
from lm.experiment import Experiment
from lm.model.families import llama
from lm.train.optim import AdamW
from lm.train.schedule import Cosine
from lm.tune.sft import SFT
from lm.tune.start import Start

TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message.role + ': ' + message.content + '\nassistant:\n' }}{% endif %}{% endfor %}"
)

experiment = Experiment(
    name="sft_small",
    start=Start("runs/quickstart"),
    model=llama(vocab=4096, layers=4, width=256, heads=4, kv_heads=2, mlp=768, context=256, tied=True),
    method=SFT(),
    data=Data(
        mixture=Mixture(sources={"talks": Conversations(StdlibTalks())}, weights={"talks": 1.0}),
        packing=Pack(),
        chat_template=TURNS,
    ),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup_steps=10)),
    batch_tokens=8 * 256,
    steps=60,
    log_every_steps=5,
    eval_every_steps=30,
    checkpoint_every_steps=30,
    prompts=("What does dedent in textwrap do?", "What is Path in pathlib?"),
    sample_tokens=48,
)
