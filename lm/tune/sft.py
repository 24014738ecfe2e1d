"""Supervised fine-tuning: maximum likelihood of the assistant's tokens in conversations (2203.02155, section 3.5).

Pretraining's cross-entropy, weighed by the mask of the assistant's tokens (lm/data/conversations.py): the loss is the
mean over those of the whole batch. Plain texts of the mixture carry loss on every token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np

from lm.bounds import NonNegative, Sentinel, check
from lm.data.objective import Objective, Replies
from lm.model.config import ModelConfig
from lm.model.transformer import Transformer
from lm.page.measure import Measure
from lm.train.method import Method, Sample, SampleSettings, Writer
from lm.tune import samples
from lm.tune.pretrain import Pretrain, Pretraining

if TYPE_CHECKING:
    from lm.data.loader import Batches


@dataclass(frozen=True)
class SFT(Method):
    """Predict the assistant's tokens by cross-entropy, with a z-loss of weight `z_loss` (lm/train/loss.py)."""

    z_loss: Annotated[NonNegative, Sentinel(0, "none")] = 0.0

    def __post_init__(self) -> None:
        check(self)

    @property
    def objective(self) -> Objective:
        return Replies()

    @property
    def _likelihood(self) -> Pretrain:
        return Pretrain(self.objective, self.z_loss)

    @property
    def measures(self) -> tuple[Measure, ...]:
        return self._likelihood.measures

    @property
    def target_name(self) -> str:
        return self.objective.target_name

    def check(self, model: ModelConfig) -> None:
        self.objective.check(model)

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "FineTuning":
        return FineTuning(model, data, self._likelihood, local_rows)


class FineTuning(Pretraining):
    """Pretraining on the assistant's tokens; its samples are replies."""

    def check_samples(self, settings: SampleSettings) -> None:
        samples.check_prompts(self.data.tokenizer, self.model.cfg, settings.prompts, samples.reply_prompt)

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        """A reply to each prompt."""
        return samples.replies(model, settings, self.data.tokenizer)
