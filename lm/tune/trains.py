"""What of the parameters a run trains, as a value of the experiment: all, only some, or adapters (lm/tune/lora.py)."""

from dataclasses import dataclass

from lm.model.config import ModelConfig
from lm.train.method import Learner
from lm.tune.partial import Partial
from lm.tune.paths import axes_of, by_path, select


@dataclass(frozen=True)
class Trains:
    """What a run trains. The base class and contract of all."""

    def check(self, model: ModelConfig) -> None:
        """Raises ValueError where it chooses nothing of `model`."""

    def wrap(self, learner: Learner) -> Learner:
        """`learner`, of whose parameters these are trained; the others are frozen."""
        return learner

    def added(self, model: ModelConfig) -> int:
        """How many parameters it adds to those of `model`."""
        return 0

    def frozen(self, model: ModelConfig) -> frozenset[str]:
        """The paths of the parameters of `model` that stay as they are."""
        return frozenset()


@dataclass(frozen=True)
class All(Trains):
    """All parameters."""


@dataclass(frozen=True)
class Only(Trains):
    """The parameters that `where` chooses; the others stay as they are, without optimizer state."""

    where: str

    def check(self, model: ModelConfig) -> None:
        select("trains.where", self.where, axes_of(model))

    def frozen(self, model: ModelConfig) -> frozenset[str]:
        return frozenset(axes_of(model)) - select("trains.where", self.where, axes_of(model))

    def wrap(self, learner: Learner) -> Learner:
        return Partial(learner, select("trains.where", self.where, by_path(learner.axes())))


@dataclass(frozen=True)
class Freeze(Trains):
    """All parameters but those that `where` chooses, which stay as they are, without gradients or optimizer state: a
    vision tower is Freeze("vision/stem/.*|vision/layers/.*")."""

    where: str

    def check(self, model: ModelConfig) -> None:
        if self.frozen(model) == frozenset(axes_of(model)):
            raise ValueError(f"trains.where={self.where!r} freezes every parameter: choose fewer")

    def frozen(self, model: ModelConfig) -> frozenset[str]:
        return select("trains.where", self.where, axes_of(model))

    def wrap(self, learner: Learner) -> Learner:
        axes = by_path(learner.axes())
        return Partial(learner, frozenset(axes) - select("trains.where", self.where, axes))
