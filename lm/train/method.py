"""Methods: what is learned, as a value of the experiment. Each is one file in lm/tune/.

A `Method` is plain data, open to `--set` and ablations, and has what needs no model: its objective and its measures.
`build` binds it to a model and data, as an optimizer's value is built into an Optax transformation. The result is a
`Learner`, the pure functions of which a run is made. The training loop, checkpoints, evaluation and the report know
nothing else about the method.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm.data.objective import Objective
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.sharding.rules import Layout
from lm.train.loss import Metrics

if TYPE_CHECKING:
    from lm.data.loader import Batches

Batch = dict[str, Any]


class Sample(NamedTuple):
    """A `prompt`, and the `text` of the prompt and the model's output, under a `title`; and the text as the model read
    and wrote it, for `lm inspect` to look into, where there is one."""

    title: str
    prompt: str
    text: str
    inspect: str = ""


class SavedModel(NamedTuple):
    """A model that a method reads beside the one that it trains: that at `path` (as a Start names it; None: drawn from
    the seed), of this `config`. It is in memory in every step where it is `resident`, else only before the first."""

    path: str | None
    config: ModelConfig
    resident: bool = True


class SampleSettings(Protocol):
    """What samples are drawn with: the fields of an Experiment."""

    @property
    def prompts(self) -> tuple[str, ...]: ...

    @property
    def sample_tokens(self) -> int: ...

    @property
    def sampling(self) -> Any: ...  # an lm.decode Sampling

    @property
    def seed(self) -> int: ...


class Writer(Protocol):
    """A model with its parameters and tokenizer, such as a Pretrained (lm/pretrained/model.py)."""

    @property
    def model(self) -> Transformer: ...

    @property
    def params(self) -> Params: ...

    def encode(self, prompt: str) -> list[int]: ...

    def stream(self, prompt: str, max_new_tokens: int, sampling: Any, seed: int) -> Iterator[list[str]]: ...

    def stream_ids(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: Any, seed: int
    ) -> Iterator[list[list[int]]]: ...


class ModelReader(Protocol):
    """The models that a method reads, by role, as a run has them: `params` are on the devices of `mesh`, and a batch is
    computed `rows` at a time. Raises ValueError where one can no longer be read, or is another than when the run
    began."""

    @property
    def mesh(self) -> Mesh: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def rows(self) -> int: ...

    def fingerprint(self, role: str) -> str: ...

    def params(self, role: str) -> Params: ...


class BatchReader(Protocol):
    """An iterator of host batches that reads ahead until it is closed; a generator is one too."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Method:
    """What is learned, as an experiment declares it.

    - `objective`: turns rows of the data into batches.
    - `target_name`: what a loss is of ("token").
    - `measures`: of held-out data. A step has a metric of the first one's name, and the best checkpoints are best in
      it.
    - `headline`: the measure to show where there is room for one.
    - `learns`: whether it can be trained by, and not only evaluated by (Evaluation.method)."""

    learns: ClassVar[bool] = True

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
        return self.objective.target_name

    @property
    def models(self) -> Mapping[str, SavedModel]:
        """The models that it reads beside the one that it trains, by role: `role` is the field that has a path, and
        `role`_model that of its config."""
        return {}

    def arrays(self, length: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """What batches have beside the objective's arrays: name -> shape, of a row with `length` outputs, and
        dtype."""
        return {}

    def smaller(self, shrink: Callable[[ModelConfig], ModelConfig]) -> "Method":
        """It with its models small and drawn afresh, for a smoke test."""
        return self

    @property
    def greedy_samples(self) -> bool:
        """Whether its samples have the likeliest tokens, whatever the experiment's `sampling`."""
        return False

    @property
    def updates(self) -> tuple[int, int]:
        """(minibatches, epochs): a step divides its batch into so many minibatches, and takes an update with each of
        them in each epoch."""
        return 1, 1

    @property
    def whole_groups(self) -> bool:
        """Whether the loss reads the rows of a prompt beside one another (Objective.row_copies), so that each
        micro-batch must have all of them."""
        return False

    def check(self, model: ModelConfig) -> None:
        """Raises ValueError where `model` cannot be trained by this method."""
        raise NotImplementedError

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "Learner":
        """Bind the method to `model` and `data` (None: for shapes and losses only), of whose batches this process reads
        the `local_rows` (None: all)."""
        raise NotImplementedError


class Learner:
    """A method bound to a model and data.

    `params` are trained. `frozen` are parameters that the loss reads and no update changes (a reference model, the
    weights under an adapter; a tree without leaves where there are none): they have neither optimizer state nor moving
    average. They are in checkpoints all the same: the file or run that they were read from may be changed or gone when
    a run resumes, and training against another reference would go unnoticed. What a method keeps from step to step
    beside parameters is there too (`advance`).

    `weights` maps the arrays of a batch that weigh its losses to the names of their sums in an evaluation. In a batch
    of training each is scaled to the sum 1, so that losses and gradients of micro-batches add up. "weights" is one."""

    weights: Mapping[str, str] = {"weights": "tokens"}
    model: Transformer
    updates: tuple[int, int] = (1, 1)  # see Method.updates
    reads_start: bool = False  # whether `frozen` is the model of the start, a reference

    @property
    def models(self) -> Mapping[str, Transformer]:
        """Those of `Method.models` that are resident."""
        return {}

    def init(
        self, key: jax.Array, start: Params | None = None, models: Mapping[str, Params] | None = None
    ) -> tuple[Params, Any]:
        """(params, frozen) before the first step, of the model's parameters `start` and those of other `models` by
        role; what is not given is drawn. Traced."""
        given, start = models or {}, self.model.init(key) if start is None else self.model.with_scores(start, key)
        own = {role: jax.random.fold_in(key, i) for i, role in enumerate(self.models, start=1)}
        every = {role: given[role] if role in given else model.init(own[role]) for role, model in self.models.items()}
        return self.begin(start, key, every)

    def begin(self, start: Params, key: jax.Array, models: Mapping[str, Params]) -> tuple[Params, Any]:
        """(params, frozen) before the first step.

        Args:
          start: the model's parameters, drawn or loaded.
          key: of what the method adds to them.
          models: the parameters of its `models`, by role.

        Traced."""
        return start, jax.tree.map(jnp.copy, start) if self.reads_start else ()

    adapts: bool = False

    def model_params(self, params: Params, frozen: Any) -> Params:
        """The parameters of the model itself, which generate, are exported and loaded; it reads `frozen` where the
        learner `adapts`. Traced."""
        return params

    def axes(self) -> Params:
        """The logical axes of `params`."""
        return self.model.axes()

    def frozen_axes(self) -> Any:
        """The logical axes of `frozen`."""
        return self.axes() if self.reads_start else ()

    def loss(self, params: Params, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Metrics]:
        """(loss, metrics) of a batch, sums weighed by the arrays that `weights` names. Traced; `key` is None where
        nothing may be random (evaluation)."""
        raise NotImplementedError

    def advance(self, frozen: Any, batch: Batch) -> Any:
        """`frozen` after a step with `batch`, for methods that keep something from step to step (a coefficient that
        adapts). Traced."""
        return frozen

    def prepare(self, steps: int, models: ModelReader) -> None:
        """Called once before `batches`, which may then compute for the run's `steps` what it needs of `models`."""

    def batches(self, step: int) -> "BatchReader":
        """The host batches from `step` on, prefetched: each a pure function of the seed and its step."""
        raise NotImplementedError

    def rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        """The batch to train on, for methods that learn from a model's own outputs; by default `batch` itself.

        Called on the host before each step, with the parameters that the step then updates, so that a batch is a pure
        function of (seed, step, params). It may run several programs and read their results.

        Args:
          params, frozen: the current parameters, on the devices. The step donates `params`, so the batch that is
            returned must not contain them.
          batch: arrays [B, ...] on the devices, rows split over the mesh.
          key: from the seed and the step.

        Returns: the batch that `loss` gets, arrays [B, ...] on the devices or the host."""
        return batch

    def heldout_rollout(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        """The batch that `evaluate` reads, of a held-out one; arguments as in `rollout`."""
        return self.rollout(params, frozen, batch, key)

    @property
    def has_rollout(self) -> bool:
        """Whether the method has a rollout of its own."""
        return type(self).rollout is not Learner.rollout

    def evaluate(self, params: Params, frozen: Any, batch: Batch) -> Metrics:
        """Sums over a held-out batch, from which `measure` computes the measures. Traced."""
        counts = {total: batch[name].sum() for name, total in self.weights.items() if name in batch}
        return {**self.loss(params, frozen, batch, None)[1], **counts}

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        """name -> value of the measures of a source, from the sums of `evaluate` over all of its held-out `data`;
        in the order of `Method.measures`."""
        raise NotImplementedError

    def baselines(self, data: "Batches") -> dict[str, dict[str, float]]:
        """source -> {name: value of a simpler method in the headline measure}."""
        return {}

    def check_samples(self, settings: SampleSettings) -> None:
        """Raises ValueError where `samples` would: called before the first step, for a run shall not fail at its
        end."""

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        """Samples of a finished run's model."""
        yield from ()

    def heldout_samples(self, batch: Batch, source: str) -> Iterator[Sample]:
        """Samples of a batch of `heldout_rollout`, of `source`, on the host."""
        yield from ()
