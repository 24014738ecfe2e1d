"""The first three steps of InstructGPT (2203.02155) in miniature: a language model, the same model fine-tuned to
answer, and a reward model of what is preferred.

    lm train experiments.rlhf.reviews:pretrained
    lm train experiments.rlhf.reviews:sft
    lm train experiments.rlhf.reviews:reward

Nothing is downloaded: reviews are of a made-up language, and of two the better one is known by a rule
(lm/data/reviews.py), so that what a policy learns from the reward model can be held against what was meant. "cafe in
Oslo, June:" may be answered by " the staff was local and the light was stale.", which is worth -1.

Measured with seed 0, on two cores that had much other work: 44, 30 and 84 s. The model of 131,392 parameters comes to
0.452 bits a byte, and fine-tuned to 3.62 perplexity on held-out answers, which by the rule are worth -0.41 on the mean.
Of 512 held-out pairs the reward model prefers the better side in 96.9%, where the longer side is it in 44.7%.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lm.data.conversations import Conversations
from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.preferences import Preferences
from lm.data.reviews import Reviews, worth
from lm.experiment import Experiment
from lm.model.families import llama, scorer
from lm.text.tokenizer import SentencePieceSpec
from lm.train.optim import AdamW
from lm.train.schedule import Cosine
from lm.tune.reward import Reward
from lm.tune.reward_functions import Completion, Record, RewardFunction
from lm.tune.sft import SFT
from lm.tune.start import Start


@dataclass(frozen=True)
class Rule(RewardFunction):
    """What a review is worth by the rule that made the preferences."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Completion], records: Sequence[Record]
    ) -> list[float | None]:
        return [worth(text) for text in completions]


pretrained = Experiment(
    name="reviews_pretrained",
    model=llama(vocab=512, layers=2, width=64, heads=4, kv_heads=2, mlp=192, context=64, tied=True),
    data=Data(
        mixture=Mixture(sources={"reviews": Reviews("texts")}, weights={"reviews": 1.0}),
        tokenizer=SentencePieceSpec(vocab_size=512, byte_fallback=False, indentations=0),
        packing=Pack(),
    ),
    optimizer=AdamW(learning_rate=4e-3, schedule=Cosine(warmup_steps=20)),
    batch_tokens=32 * 64,
    steps=300,
    eval_every_steps=150,
    checkpoint_every_steps=150,
    prompts=("cafe in Oslo, June:",),
    sample_tokens=48,
)

sft = replace(
    pretrained,
    name="reviews_sft",
    start=Start("runs/reviews_pretrained"),
    method=SFT(),
    data=Data(
        mixture=Mixture(sources={"answers": Conversations(Reviews("answers"))}, weights={"answers": 1.0}),
        packing=Pack(),
    ),
    optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup_steps=10)),
    steps=100,
    eval_every_steps=50,
    checkpoint_every_steps=50,
)

reward = replace(
    sft,
    name="reviews_reward",
    start=Start("runs/reviews_sft"),
    model=scorer(sft.model),
    method=Reward(centering=0.01),
    data=Data(
        mixture=Mixture(sources={"pairs": Preferences(Reviews("pairs"))}, weights={"pairs": 1.0}), packing=Pack()
    ),
    steps=300,
    eval_every_steps=100,
    checkpoint_every_steps=100,
    prompts=(),
)
