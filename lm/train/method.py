"""Methods: what is learned, as a value of the experiment. Each is one file in lm/tune/.

A `Method` is declared: plain data, open to `--set` and ablations, and it answers what can be asked without a model (its
objective, its measures). `build` binds it to a model and its data, as an optimizer's value becomes an Optax
transformation. The `Learner` that comes of it is what a run uses: pure functions of what they are handed. The training
loop, checkpoints, evaluation and the report know nothing else about the method.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from lm.data.objective import Objective
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.train.loss import Metrics

if TYPE_CHECKING:
    from lm.data.loader import Batches

Batch = dict[str, Any]


class Sample(NamedTuple):
    """`prompt` is what the model was given, `text` that with what it made of it; `title` names the two."""

    title: str
    prompt: str
    text: str


class SampleSettings(Protocol):
    """What samples are drawn by; an Experiment has it."""

    @property
    def prompts(self) -> tuple[str, ...]: ...

    @property
    def sample_tokens(self) -> int: ...

    @property
    def sampling(self) -> Any: ...  # an lm.decode Sampling

    @property
    def seed(self) -> int: ...


class Writer(Protocol):
    """A model with its parameters and tokenizer, which writes text; a Pretrained (lm/pretrained/model.py) is one."""

    @property
    def model(self) -> Transformer: ...

    @property
    def params(self) -> Params: ...

    def encode(self, prompt: str) -> list[int]: ...

    def stream(self, prompt: str, max_new_tokens: int, sampling: Any, seed: int) -> Iterator[list[str]]: ...


@dataclass(frozen=True)
class Method:
    """What is learned: the value that an experiment declares.

    `objective` turns rows of its data into batches, `target_name` is what one loss is of. `measures` are what held-out
    data are measured in: the first is the one that training lowers (each step has a metric of that name, and the best
    checkpoints are lowest in it), and `headline` is the one to show where there is room for one."""

    @property
    def objective(self) -> Objective:
        raise NotImplementedError

    @property
    def measures(self) -> tuple[Measure, ...]:
        raise NotImplementedError

    @property
    def headline(self) -> Measure:
        return self.measures[0]

    @property
    def target_name(self) -> str:
        return "token"

    def check(self, model: ModelConfig) -> None:
        """Raises ValueError where `model` cannot learn by it."""
        raise NotImplementedError

    def build(self, model: Transformer, data: "Batches | None" = None, own: np.ndarray | None = None) -> "Learner":
        """This method for `model`, reading `data` (None: only shapes and losses are asked for), of whose batches this
        process reads the rows `own` (None: all)."""
        raise NotImplementedError


class Learner:
    """A method bound to a model and data: the functions of which a run is made.

    `params` is the tree that is trained, `frozen` one that the loss reads and nothing updates (a reference model, the
    weights below an adapter; a tree without leaves where there is none). Frozen parameters have neither optimizer state
    nor moving average. They are part of the state and of its checkpoints all the same: what they were made from (a
    file, another run's folder) may have changed or gone by the time a run goes on, and a run that then trained
    against another reference would not notice.

    `weights` names the arrays of a batch that weigh its losses, and their sums in an evaluation: over a whole training
    batch each is scaled to the sum 1, so that the losses and gradients of micro-batches add up. "weights" is one."""

    weights: ClassVar[Mapping[str, str]] = {"weights": "tokens"}

    def init(self, key: jax.Array) -> tuple[Params, Any]:
        """Fresh (params, frozen). Traced."""
        raise NotImplementedError

    def axes(self) -> Params:
        """The logical axes of `params`."""
        raise NotImplementedError

    def frozen_axes(self) -> Any:
        """The logical axes of `frozen`."""
        return ()

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """The loss of a batch, and metrics: both are sums weighed by the arrays that `weights` names. Traced; `key` is
        None where nothing may be random (evaluation)."""
        raise NotImplementedError

    def batches(self, step: int) -> Iterator[Batch]:
        """The host batches of `step` and those after it: a pure function of the seed and the step, read ahead."""
        raise NotImplementedError

    def rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        """`batch` with what the parameters make of it, for methods that learn from a model's own outputs.

        Called on the host before each step, with the parameters that the step is about to update, so that a batch is a
        pure function of (seed, step, params). It may run several programs and look at what they give.

        Args:
          params, frozen: the current parameters, on the devices; the step donates `params`, so what is returned must
            hold none of them.
          batch: arrays [B, ...] on the devices, rows split over the mesh.
          key: from the seed and the step.

        Returns: the batch that `loss` gets, arrays [B, ...] on the devices or the host."""
        return batch

    @property
    def has_rollout(self) -> bool:
        """Whether `rollout` is more than the batch itself."""
        return type(self).rollout is not Learner.rollout

    def evaluate(self, params: Params, frozen: Any, batch: Batch) -> Metrics:
        """What a held-out batch adds to the sums from which `measure` makes measures. Traced."""
        counts = {total: batch[name].sum() for name, total in self.weights.items() if name in batch}
        return {**self.loss(params, frozen, batch, None)[1], **counts}

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        """The method's measures of the held-out data of `source`, from the sums of `evaluate` over all its batches."""
        raise NotImplementedError

    def baselines(self, data: "Batches") -> dict[str, dict[str, float]]:
        """source -> {name: what something simpler reaches in the headline measure}."""
        return {}

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        """What a finished run shows of its model."""
        yield from ()
