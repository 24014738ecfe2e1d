"""PaLM (2204.02311): attention and feed-forward side by side, one key and value for all heads, small, and the published
sizes (its weights are not public).

    lm train experiments.palm

The text, the tokenizer and the batches are the quickstart's; the z-loss is the paper's 1e-4 (section 5).

Measured: 2.05 bits per byte on code and 2.19 on prose after 240 steps (about 3 minutes on 2 CPU cores).
"""

from experiments.quickstart import experiment as quickstart
from lm.model.families import palm
from lm.tune.pretrain import Pretrain

experiment = quickstart.replace(
    name="palm",
    model=palm(vocab=4096, layers=4, width=256, heads=4, head_dim=64, context=256),
    method=Pretrain(z_loss=1e-4),
)

# Table 1 of the paper
palm_8b = palm(vocab=256000, layers=32, width=4096, heads=16, context=2048)
palm_62b = palm(vocab=256000, layers=64, width=8192, heads=32, context=2048)
palm_540b = palm(vocab=256000, layers=118, width=18432, heads=48, context=2048)
