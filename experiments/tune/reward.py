"""A reward model of our own: answers whose words are in order, from the model of `sft_small`.

    lm train experiments.quickstart
    lm train experiments.tune.sft_small
    lm train experiments.tune.reward

Each pair is a question about a function or class of the standard library, its docstring's first paragraph as the better
answer, and the same words shuffled as the worse: a known rule, so that nobody has to be asked and nothing is
downloaded. The score is new, and all parameters are trained. `lm score runs/reward "a text"` scores texts afterwards,
and `lm score runs/reward --records chats.jsonl` conversations.

On the 61 held-out pairs it prefers the right side in 95.1%, 80.3% and 95.1% (seeds 0, 1 and 2, all from one sft_small
of seed 0), where the longer side is the right one in 36.1%. The loss is 0.16, 0.29 and 0.23 nats a pair, the
calibration error 9.1%, 14.6% and 13.1%, which so few pairs bias upward. A run took 66 to 144 s on two cores that had
other work too. With another question's answer as the worse side, 60 steps reached 55.7% and 52.5% (seeds 0 and 2).
"""

from experiments.tune.sft_small import experiment as sft_small
from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.preferences import Preferences
from lm.data.talks import StdlibPairs
from lm.experiment import Experiment
from lm.model.families import scorer
from lm.train.optim import AdamW
from lm.train.schedule import Cosine
from lm.tune.reward import Reward
from lm.tune.start import Start

experiment = Experiment(
    name="reward",
    start=Start("runs/sft_small"),
    model=scorer(sft_small.model),
    method=Reward(centering=0.01),
    data=Data(
        mixture=Mixture(sources={"answers": Preferences(StdlibPairs())}, weights={"answers": 1.0}),
        packing=Pack(),
        chat_template=sft_small.data.chat_template,
    ),
    optimizer=AdamW(learning_rate=3e-4, schedule=Cosine(warmup_steps=10)),
    batch_tokens=8 * 256,
    steps=60,
    log_every_steps=5,
    eval_every_steps=30,
    checkpoint_every_steps=30,
)
