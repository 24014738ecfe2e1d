"""An experiment: one frozen value from which everything that a run does follows.

A page in experiments/ builds one; `lm train` trains it; `--set` and ablations change it by the same `replace`. It is
written to a run's folder as plain data, and the folder of another experiment is never written to.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from lm import value
from lm.bounds import Count, Decay, Natural, NonNegative, Seed, Sentinel, check, whole
from lm.data.captions import Captions
from lm.data.denoise import UL2, SpanCorruption  # noqa: F401 - `--set method.objective=UL2()` finds what is imported
from lm.data.loader import Batches
from lm.data.masked import MaskedLM  # noqa: F401
from lm.data.mixture import Data
from lm.data.objective import Objective, ObjectiveContext
from lm.data.source import Source
from lm.decode.sampling import Sampling
from lm.inspect.watching import Watching
from lm.machine.tracking import Tracker, WandB  # noqa: F401 - `--set "trackers=(WandB(),)"` finds it
from lm.model import count
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.transformer import Transformer
from lm.sharding.rules import MESH_AXES, Layout
from lm.text.tokenizer import SentencePieceSpec, TokenizerFile
from lm.train.method import Learner, Method
from lm.train.optim import AdamW, Optimizer
from lm.train.schedule import Cosine
from lm.tune.completion_eval import CompletionEval  # noqa: F401 - evaluations read it back
from lm.tune.distill import Distill  # noqa: F401 - `--set method=Distill(…)`
from lm.tune.dpo import DPO  # noqa: F401
from lm.tune.grpo import GRPO  # noqa: F401
from lm.tune.kl_control import AdaptiveKL, FixedKL  # noqa: F401
from lm.tune.kto import KTO  # noqa: F401
from lm.tune.lora import DoRA, LoRA  # noqa: F401 - `--set trains=LoRA(rank=8)` finds what is imported
from lm.tune.online_dpo import OnlineDPO  # noqa: F401
from lm.tune.orpo import ORPO  # noqa: F401
from lm.tune.ppo import PPO  # noqa: F401
from lm.tune.pretrain import Pretrain
from lm.tune.reward import Reward  # noqa: F401 - `--set method=Reward()`
from lm.tune.sft import SFT  # noqa: F401 - `--set method=SFT()`
from lm.tune.simpo import SimPO  # noqa: F401
from lm.tune.start import Start
from lm.tune.trains import All, Freeze, Only, Trains  # noqa: F401
from lm.tune.vision import captions_for
from lm.value import suggest

EVERY = ("log_every_steps", "eval_every_steps", "checkpoint_every_steps")
PUBLISHED_LENGTH = 8192  # tokens
MOST_NAME = 200  # bytes of a name, which is a folder's
# fields that cannot change a run's results
INERT = {"name", "log_every_steps", "keep_last", "keep_best", "prompts", "sample_tokens", "sampling"}
INERT |= {"watch", "trackers"}


@dataclass(frozen=True)
class Evaluation:
    """An extra evaluation, in rows `times` as long as those of training, `rows` of them a batch (0: about as many
    tokens as in training): by the experiment's method, or by pretraining under `objective`, or by another `method`,
    whose reference is the model of the experiment's start. `sources`: whose held-out documents it reads, by name;
    empty: those of the experiment."""

    times: Count = 1
    objective: Objective | None = None
    method: Method | None = None
    sources: dict[str, Source] = field(default_factory=dict)
    rows: Annotated[Natural, Sentinel(0, "about as many tokens as in training")] = 0

    def __post_init__(self) -> None:
        check(self)
        if self.objective and self.method:
            raise ValueError("an evaluation has an objective, which is pretraining's, or a method: leave one out")


@dataclass(frozen=True)
class Experiment:
    """What is trained, on what, by which method, and how long.

    - `model` and how it is computed (`compute`), the `data`, the `method` that learns from them (lm/tune/), the
      `optimizer`.
    - `start`: the model whose parameters and tokenizer it starts from; None: parameters are drawn from `seed`, and the
      tokenizer is that of `data`. `trains`: which parameters are trained, or adapters in their place; the others are
      frozen.
    - `mesh`: axis -> devices, -1 for those that the others leave; empty: all devices data parallel. `layout`: the
      variant of the sharding rules on it (lm/sharding/rules.py).
    - `batch_tokens` a step, in rows of `seq_len` tokens (0: the model's context) and `accumulate` micro-batches; or
      `rows_per_device` in its place, which scales the batch with the devices (below 1 where several devices share a
      row).
    - `ema`: the decay of a moving average of the parameters (0: none). `embedding`: a .npy file of vectors that the
      embedding table starts with.
    - `eval_tokens`: the most held-out tokens a source that an evaluation on the way reads (0: all; the last one reads
      all). `evaluations`: extra ones by name (lm/run/extra_evals.py).
    - `watch`: which numbers of the model's inside are noted on the way (lm/inspect/watching.py); None: none.
    - `trackers`: where metrics go besides metrics.jsonl and TensorBoard, as WandB() (lm/machine/tracking.py)."""

    name: str
    model: ModelConfig
    data: Data
    steps: Count
    batch_tokens: Count
    method: Method = Pretrain()
    start: Start | None = None
    trains: Trains = All()
    optimizer: Optimizer = field(default_factory=AdamW)
    mesh: dict[str, Annotated[int, whole(-1), Sentinel(-1, "what the others leave")]] = field(default_factory=dict)
    layout: Layout = Layout()
    compute: Compute = Compute()
    seed: Seed = 0
    seq_len: Annotated[Natural, Sentinel(0, "the model's context")] = 0
    rows_per_device: Annotated[NonNegative, Sentinel(0, "as batch_tokens says")] = 0.0
    accumulate: Count = 1
    ema: Annotated[Decay, Sentinel(0, "none")] = 0.0
    embedding: str = ""
    log_every_steps: Count = 10
    eval_every_steps: Count = 250
    eval_tokens: Annotated[int, whole(0, 2**63 - 1), Sentinel(0, "all")] = 0
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    checkpoint_every_steps: Count = 250
    keep_last: Count = 2
    keep_best: Annotated[Natural, Sentinel(0, "none")] = 1
    prompts: tuple[str, ...] = ()
    sample_tokens: Natural = 128
    sampling: Sampling = Sampling(temperature=0.8, top_p=0.95)
    watch: Watching | None = None
    trackers: tuple[Tracker, ...] = ()

    def __post_init__(self) -> None:
        check(self)
        self._check_mesh()
        plain = self.name.isprintable() and "/" not in self.name and self.name not in (".", "..")
        if not plain or not 0 < len(self.name.encode()) <= MOST_NAME:
            raise ValueError(f"name={self.name!r}: expected a name that can be a folder's")
        if self.length > self.model.context:
            raise ValueError(
                f"seq_len={self.seq_len} is longer than model.context={self.model.context}: "
                "lower the one or raise the other"
            )
        micro = self.length * self.accumulate * self.method.updates[0]
        if not self.rows_per_device and self.batch_tokens % micro:
            parts = "micro-batches" if self.method.updates[0] == 1 else "minibatches and micro-batches"
            near = sorted({max(1, self.batch_tokens // micro) * micro, (self.batch_tokens // micro + 1) * micro})
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is not a multiple of {micro} (rows of {self.length} tokens x "
                f"{micro // self.length} {parts}): try {' or '.join(map(str, near))}"
            )
        if not self.method.learns:
            raise ValueError(f"method={type(self.method).__name__} trains nothing: it is for evaluations")
        self.method.check(self.model)
        self._check_copies()
        self._check_start()
        self.trains.check(self.model)
        self._check_evaluations()
        self._check_images()
        self.optimizer.schedule_fn(self.steps)  # raises where the schedule does not fit in the run

    def _check_copies(self) -> None:
        copies = self.method.objective.row_copies
        parts = self.accumulate * self.method.updates[0] if self.method.whole_groups else 1
        if not self.rows_per_device and self.rows % (copies * parts):
            each = f" in each of {parts} minibatches and micro-batches" if parts > 1 else ""
            raise ValueError(
                f"batch_tokens={self.batch_tokens} is {self.rows} rows of {self.length} tokens, no whole number of "
                f"groups of {copies}{each}: try {-(-self.rows // (copies * parts)) * copies * parts * self.length}"
            )

    def _check_mesh(self) -> None:
        for axis, size in self.mesh.items():
            if axis not in MESH_AXES:
                raise ValueError(f"mesh has no axis {axis!r}: {suggest(axis, MESH_AXES)}")
            if size == 0:
                raise ValueError(f"mesh.{axis}=0: expected a number of devices, or -1 for those that the others leave")

    def _check_start(self) -> None:
        if self.embedding and (self.start or self.trains != All()):
            other = "start" if self.start else "trains"
            raise ValueError(f"embedding={self.embedding!r} and {other} are both given: leave one of them out")
        makes = self.data.tokenizer != SentencePieceSpec() and not isinstance(self.data.tokenizer, TokenizerFile)
        if self.start and makes:
            raise ValueError(
                f"data.tokenizer={self.data.tokenizer!r}: a model that is the start has the tokenizer it learned with, "
                "so leave it out; or TokenizerFile(path=…) where the start comes without one"
            )

    def _check_images(self) -> None:
        vision = self.model.vision
        for name, source in self.data.mixture.sources.items():
            if not isinstance(source, Captions):
                continue
            if vision is None:
                raise ValueError(f"source {name!r} has images, and the model no vision tower: set model.vision")
            for what, wanted in captions_for(vision).items():
                if getattr(source, what) != wanted:
                    raise ValueError(
                        f"source {name!r}: {what}={getattr(source, what)!r}, and model.vision has {wanted!r}: give "
                        "Captions(..., **captions_for(vision)), of lm/tune/vision.py"
                    )

    def _check_evaluations(self) -> None:
        for name, one in self.evaluations.items():
            if not name or "/" in name or name in self.data.mixture.sources:
                raise ValueError(f"evaluations have the name {name!r}: expected one without a /, and of no source")
            if question := one.objective or one.method:
                question.check(self.model)

    @property
    def length(self) -> int:
        """Tokens a row."""
        return self.seq_len or self.model.context

    @property
    def rows(self) -> int:
        """Rows a step, over all micro-batches and devices."""
        return self.batch_tokens // self.length

    @property
    def lengths(self) -> tuple[int, int]:
        """(S, T) of a row, as the method's objective makes it: the tokens that an encoder reads, 0 where there is none,
        and those with outputs."""
        return self.method.objective.lengths(ObjectiveContext(self.length, encoder=self.model.has_encoder))

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs of a row's forward and backward pass, by its `length` tokens (count.flops_per_row); those of
        adapters as if each token met them all, the forward pass of other models that the method reads in a step, and
        for a model with a vision tower those of one image a row."""
        encoder, tokens = self.lengths
        frozen, added = self.trains.frozen(self.model), 6 * self.trains.added(self.model) * tokens
        read = [model.config for model in self.method.models.values() if model.resident]
        others = sum(count.flops_per_row(config, tokens, encoder) for config in read) / 3
        seen = count.flops_per_image(self.model, frozen)
        return (count.flops_per_row(self.model, tokens, encoder, frozen) + seen + added + others) / self.length

    def on(self, devices: int) -> "Experiment":
        """This experiment on that many devices: `batch_tokens` from `rows_per_device`, and the mesh without -1. Raises
        ValueError where these are not whole numbers."""
        mesh, rows = dict(self.mesh), self.rows_per_device * devices
        if left := [axis for axis, size in mesh.items() if size == -1]:
            taken = math.prod(size for size in mesh.values() if size != -1)
            if len(left) > 1 or taken < 1 or devices % taken:
                raise ValueError(f"mesh {mesh} leaves no whole number of {devices} devices to {' and '.join(left)}")
            mesh[left[0]] = devices // taken
        if not self.rows_per_device:
            return dataclasses.replace(self, mesh=mesh) if left else self
        if rows != int(rows) or int(rows) % (self.accumulate * self.method.updates[0]):
            raise ValueError(
                f"rows_per_device={self.rows_per_device} is {rows:g} rows on {devices} devices, in accumulate="
                f"{self.accumulate} micro-batches: expected whole rows, try rows_per_device={self.accumulate}"
            )
        return dataclasses.replace(self, batch_tokens=int(rows) * self.length, rows_per_device=0.0, mesh=mesh)

    def build(self, model: Transformer, data: Batches | None = None, local_rows: np.ndarray | None = None) -> Learner:
        """The method bound to `model` and `data` (see `Method.build`), over the parameters that are trained."""
        return self.trains.wrap(self.method.build(model, data, local_rows))

    def replace(self, changes: Mapping[str, Any] | None = None, **others: Any) -> "Experiment":
        """This experiment with `changes`; a dict is a nested change: replace(steps=10, model=dict(layers=2))."""
        return value.replace(self, {**(changes or {}), **others})

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that the result depends on.

        Batches depend on the order of the sources, which JSON's objects do not have: one that is not alphabetical is
        part of the fingerprint."""
        order = list(self.data.mixture.sources)
        return value.fingerprint(self) if order == sorted(order) else value.fingerprint([self, order])


def published(base: Experiment, name: str, model: ModelConfig) -> Experiment:
    """`base` with a model of published size, for many chips: AdamW, full rematerialisation, fully sharded state, and
    one row a device of the model's context or PUBLISHED_LENGTH tokens. A starting point, not a paper's recipe."""
    length = min(model.context, PUBLISHED_LENGTH)
    return dataclasses.replace(
        base,
        name=name,
        model=model,
        steps=100_000,
        batch_tokens=length,
        seq_len=length,
        rows_per_device=1.0,
        optimizer=AdamW(learning_rate=3e-4, schedule=Cosine(warmup_steps=2000)),
        mesh={"fsdp": -1},
        compute=dataclasses.replace(base.compute, remat="full"),
    )


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The differences of two experiments' plain data, without fields that cannot change a run's results; `before` may
    have been written by an earlier version."""
    if before == after:  # as most are: a study reads each of its runs again and again
        return []
    before = value.plain(value.build(Experiment, before))
    return [d for d in value.differences(before, after) if d[0].split(".")[0] not in INERT]
