"""Distillation: a student learns the next-token distributions of a frozen teacher (1503.02531).

The loss is a divergence of the two distributions at each target, both softened by a temperature, beside the
cross-entropy of the target itself. As in the pretraining loss, logits exist for a chunk of the sequence at a time, now
those of two models.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Fraction, Natural, Positive, Sentinel, check
from lm.data.loader import Reader
from lm.data.objective import CausalLM, Objective, Replies
from lm.model.config import ModelConfig
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.sharding.batches import place_batch
from lm.sharding.tracing import use_mesh
from lm.train.loss import Metrics, cross_entropy, map_chunks
from lm.train.method import (
    Batch,
    BatchReader,
    Learner,
    Method,
    ModelReader,
    Sample,
    SampleSettings,
    SavedModel,
    Writer,
)
from lm.tune.divergence import Divergence, ForwardKL, divergence, likeliest, spread, top
from lm.tune.outputs import Outputs, by_rows
from lm.tune.pretrain import Pretrain, Pretraining, of_output
from lm.tune.sft import SFT
from lm.value import fingerprint

if TYPE_CHECKING:
    from lm.data.loader import Batches

IDS, LOG_PROBS, REST = "teacher_ids", "teacher_log_probs", "teacher_rest"  # of a batch, where the teacher is cached


@dataclass(frozen=True)
class Distill(Method):
    """Learn the teacher's distributions: hard_weight x cross-entropy + (1 - hard_weight) x temperature^2 x divergence,
    by which gradients of the divergence keep their size when the temperature changes (1503.02531, section 2).

    - `teacher`: a run's folder, a Hugging Face directory, or a GGUF file, of any size and the student's vocabulary;
      None: drawn from the seed, to try out speed and memory. `teacher_model` is its config (`read_config(path)` of
      lm.pretrained).
    - `objective`: CausalLM(), or Replies() for conversations, where the assistant's tokens alone count.
    - `temperature`: divides the logits of both. The loss and the cross-entropy are at temperature 1, and so are the
      measures but `divergence`, which is without the factor temperature^2.
    - `top_k`: the teacher's likeliest tokens, which the divergence sees beside one outcome for all others (0: every
      token by itself). Thus it is 0 exactly where the student gives these tokens the teacher's probabilities. Gemma 3
      renormalises in place of that (2503.19786, section 2.2), which asks for more than the teacher gives them.
    - `cached`: those of every row are computed before the first step and kept in the cache's folder, top_k x 6 bytes a
      token (8 from 65,537 tokens of vocabulary on). While training there is no teacher in memory nor in checkpoints,
      and no divergence of held-out data. Several processes compute their rows on one device each."""

    teacher: str | None
    teacher_model: ModelConfig
    objective: Objective = CausalLM()
    divergence: Divergence = ForwardKL()
    temperature: Positive = 1.0
    top_k: Annotated[Natural, Sentinel(0, "every token")] = 0
    cached: bool = False
    hard_weight: Fraction = 0.0

    def __post_init__(self) -> None:
        check(self, "method")
        if self.teacher == "":
            raise ValueError("method.teacher='': expected a run's folder, a Hugging Face directory, or a GGUF file")
        if self.top_k > self.teacher_model.vocab:
            raise ValueError(f"method.top_k={self.top_k}: the teacher has {self.teacher_model.vocab} tokens")
        if self.cached and not self.top_k:
            raise ValueError("method.cached=True keeps the teacher's likeliest tokens: set method.top_k, to 64 say")

    @property
    def likelihood(self) -> Pretrain | SFT:
        """The method that learns the text without a teacher."""
        return SFT() if isinstance(self.objective, Replies) else Pretrain(self.objective)

    @property
    def measures(self) -> tuple[Measure, ...]:
        far = Measure("divergence", "divergence", "nats from the teacher")
        return (*self.likelihood.measures, *(() if self.cached else (far,)))

    @property
    def headline(self) -> Measure:
        return self.likelihood.headline

    @property
    def target_name(self) -> str:
        return self.objective.target_name

    @property
    def greedy_samples(self) -> bool:
        return self.likelihood.greedy_samples

    @property
    def models(self) -> Mapping[str, SavedModel]:
        return {"teacher": SavedModel(self.teacher, self.teacher_model, resident=not self.cached)}

    def arrays(self, length: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
        likely = (length, self.top_k)
        found = {IDS: (likely, "int32"), LOG_PROBS: (likely, "float32"), REST: ((length,), "float32")}
        return found if self.cached else {}

    def smaller(self, shrink: Callable[[ModelConfig], ModelConfig]) -> "Distill":
        small = shrink(self.teacher_model)
        return replace(self, teacher=None, teacher_model=small, top_k=min(self.top_k, small.vocab))

    def check(self, model: ModelConfig) -> None:
        teacher = self.teacher_model
        self.objective.check(model)
        self.objective.check(teacher)
        for name in ("vocab", "has_encoder", "causal"):
            if (own := getattr(model, name)) != (theirs := getattr(teacher, name)):
                raise ValueError(f"model.{name} is {own} and method.teacher_model.{name} {theirs}: expected the same")

    def build(
        self, model: Transformer, data: "Batches | None" = None, local_rows: np.ndarray | None = None
    ) -> "Distillation":
        kind = FromCache if self.cached else Distillation
        return kind(model, data, Pretrain(self.objective), local_rows, self)


@dataclass(frozen=True)
class Distillation(Pretraining):
    """Pretraining by the divergence of `distill` from a teacher, whose parameters are what is frozen."""

    distill: Any = None  # a Distill

    @property
    def models(self) -> Mapping[str, Transformer]:
        return {"teacher": self.teacher}

    @property
    def teacher(self) -> Transformer:
        return Transformer(self.distill.teacher_model, self.model.compute)

    def begin(self, start: Params, key: jax.Array, models: Mapping[str, Params]) -> tuple[Params, Any]:
        return start, models["teacher"]

    def frozen_axes(self) -> Any:
        return self.teacher.axes()

    def _heads(self, params: Params, frozen: Any) -> Params:
        return {"student": of_output(params), "teacher": of_output(frozen)}

    def _head_axes(self) -> Params:
        return {"student": of_output(self.model.axes()), "teacher": of_output(self.teacher.axes())}

    def _student(self, heads: Params) -> Params:
        """The student's part of `_heads`."""
        return heads["student"]

    def _targets(self, frozen: Any, batch: Batch, inputs: Inputs) -> Batch:
        x = jax.lax.stop_gradient(self.teacher.hidden(frozen, inputs).x)
        return super()._targets(frozen, batch, inputs) | {"teacher": x}

    def _chunk_loss(self, heads: Params, x: jax.Array, rest: Batch) -> tuple[jax.Array, Metrics]:
        distill: Distill = self.distill
        logits, weights = self.model.logits(self._student(heads), x), rest["weights"]
        hard, metrics = cross_entropy(logits, rest["targets"], weights)
        theirs = jax.lax.stop_gradient(self._theirs(heads, rest))
        each = divergence(distill.divergence, logits / distill.temperature, *theirs)
        soft, share = jnp.sum(weights * each), distill.hard_weight
        total = share * hard + (1 - share) * distill.temperature**2 * soft
        return total, metrics | {"divergence": soft}

    def _theirs(self, heads: Params, rest: Batch) -> tuple[jax.Array, jax.Array | None]:
        """The teacher's log-probabilities of a chunk, as `divergence` reads them."""
        return top(self._log_probs(heads["teacher"], rest["teacher"]), self.distill.top_k)

    def _log_probs(self, head: Params, x: jax.Array) -> jax.Array:
        """[B, t, V] of the teacher's hidden states x [B, t, D]."""
        return jax.nn.log_softmax(self.teacher.logits(head, x) / self.distill.temperature)

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        return super().measure(sums, data, source) | {"divergence": sums["divergence"] / max(sums["tokens"], 1.0)}

    @property
    def _likelihood(self) -> Learner:
        return self.distill.likelihood.build(self.model, self.data, self.local_rows)

    def check_samples(self, settings: SampleSettings) -> None:
        self._likelihood.check_samples(settings)

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        return self._likelihood.samples(model, settings)


class FromCache(Distillation):
    """Distillation by what the teacher has said of the rows before."""

    steps = 0
    reader: ModelReader | None = None

    @property
    def models(self) -> Mapping[str, Transformer]:
        return {}

    def begin(self, start: Params, key: jax.Array, models: Mapping[str, Params]) -> tuple[Params, Any]:
        return start, ()

    def frozen_axes(self) -> Any:
        return ()

    def _heads(self, params: Params, frozen: Any) -> Params:
        return of_output(params)

    def _head_axes(self) -> Params:
        return of_output(self.model.axes())

    def _student(self, heads: Params) -> Params:
        return heads

    def _targets(self, frozen: Any, batch: Batch, inputs: Inputs) -> Batch:
        return {name: batch[name] for name in ("targets", "weights", IDS, LOG_PROBS, REST)}

    def _theirs(self, heads: Params, rest: Batch) -> tuple[jax.Array, jax.Array | None]:
        return spread(rest[IDS], rest[LOG_PROBS], self.model.cfg.vocab), rest[REST]

    def evaluate(self, params: Params, frozen: Any, batch: Batch) -> Metrics:
        return self._likelihood.evaluate(params, frozen, batch)

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        return self._likelihood.measure(sums, data, source)

    def prepare(self, steps: int, models: ModelReader) -> None:
        self.steps, self.reader = steps, models

    def batches(self, step: int) -> BatchReader:
        """The batches with the teacher's outputs, of which those that are not kept are computed now."""
        outputs = Outputs(self._key())
        outputs.complete(step, self.steps, self._batch, self._computed)
        return Reader(lambda n: outputs.beside(n, self._batch(n)), step, threads=1, ahead=4)

    def _batch(self, step: int) -> Batch:
        return self.data.batch(step, self.local_rows)

    def _key(self) -> str:
        """Of all that the outputs depend on."""
        assert self.reader
        compute, distill = self.model.compute, self.distill
        teacher = self.reader.fingerprint("teacher"), distill.teacher_model, compute.dtype, compute.matmul
        return fingerprint([*teacher, distill.top_k, distill.temperature, self.data.fingerprint(self.local_rows)])

    def _computed(self) -> Callable[[Batch], Batch]:
        """(batch) -> the teacher's outputs, by its parameters."""
        assert self.reader
        reader, params, of_rows = self.reader, self.reader.params("teacher"), jax.jit(self._outputs)
        dtype = np.uint16 if self.model.cfg.vocab <= 2**16 else np.uint32

        def compute(batch: Batch) -> Batch:
            with use_mesh(reader.mesh, reader.layout):
                found = by_rows(lambda some: of_rows(params, place_batch(some, reader.mesh)), batch, reader.rows)
            return {**found, IDS: found[IDS].astype(dtype)}

        return compute

    def _outputs(self, params: Params, batch: Batch) -> Batch:
        """The teacher's likeliest tokens in a batch, by name."""

        def of_chunk(x: jax.Array) -> Batch:
            ids, values, rest = likeliest(self._log_probs(of_output(params), x), self.distill.top_k)
            return {IDS: ids, LOG_PROBS: values, REST: rest}

        return map_chunks(of_chunk, self.model.compute.loss_chunk, self.teacher.hidden(params, Inputs.of(batch)).x)
