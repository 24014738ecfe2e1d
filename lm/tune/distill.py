"""Distillation: a student learns the next-token distributions of a frozen teacher (1503.02531).

The loss is a divergence of the two distributions at each target, both softened by a temperature, beside the
cross-entropy of the target itself. As in the pretraining loss, logits exist for a chunk of the sequence at a time, now
those of two models.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.bounds import Fraction, Natural, Positive, Share, check
from lm.data.objective import CausalLM, Objective, Replies
from lm.model.config import ModelConfig
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.page.measure import Measure
from lm.train.loss import Metrics, cross_entropy
from lm.train.method import Batch, Learner, Method, Sample, SampleSettings, SavedModel, Writer
from lm.tune.pretrain import Pretrain, Pretraining, of_output
from lm.tune.sft import SFT

if TYPE_CHECKING:
    from lm.data.loader import Batches

NONE = -1e30  # log of the probability 0, and finite: 0 x NONE is 0


@dataclass(frozen=True)
class Divergence:
    """How far the student's distribution p is from the teacher's q: a sum over outcomes."""

    def terms(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        """The term of each outcome, in nats."""
        raise NotImplementedError


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(q || p) = sum q (log q - log p), which is least where p covers all that q may say."""

    def terms(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        return jnp.exp(log_q) * (log_q - log_p)


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(p || q), under which p keeps to what q finds likely (2306.08543); of each token by itself, in the text of the
    data, where the paper's is of whole texts that the student writes."""

    def terms(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        return jnp.exp(log_p) * (log_p - log_q)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p (GKD, 2306.13649, equation 1)."""

    beta: Share = 0.5

    def terms(self, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
        log_m = jnp.logaddexp(math.log(self.beta) + log_q, math.log(1 - self.beta) + log_p)
        return self.beta * jnp.exp(log_q) * (log_q - log_m) + (1 - self.beta) * jnp.exp(log_p) * (log_p - log_m)


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
      renormalises in place of that (2503.19786, section 2.2), which asks for more than the teacher gives them."""

    teacher: str | None
    teacher_model: ModelConfig
    objective: Objective = CausalLM()
    divergence: Divergence = ForwardKL()
    temperature: Positive = 1.0
    top_k: Natural = 0
    hard_weight: Fraction = 0.0

    def __post_init__(self) -> None:
        check(self, "method")
        if self.teacher == "":
            raise ValueError("method.teacher='': expected a run's folder, a Hugging Face directory, or a GGUF file")
        if self.top_k > self.teacher_model.vocab:
            raise ValueError(f"method.top_k={self.top_k}: the teacher has {self.teacher_model.vocab} tokens")

    @property
    def likelihood(self) -> Pretrain | SFT:
        """The method that learns the text without a teacher."""
        return SFT() if isinstance(self.objective, Replies) else Pretrain(self.objective)

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (*self.likelihood.measures, Measure("divergence", "divergence", "nats from the teacher"))

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
        return {"teacher": SavedModel(self.teacher, self.teacher_model)}

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
        return Distillation(model, data, Pretrain(self.objective), local_rows, self)


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

    def _targets(self, frozen: Any, batch: Batch, inputs: Inputs) -> Batch:
        x = jax.lax.stop_gradient(self.teacher.hidden(frozen, inputs).x)
        return super()._targets(frozen, batch, inputs) | {"teacher": x}

    def _chunk_loss(self, heads: Params, x: jax.Array, rest: Batch) -> tuple[jax.Array, Metrics]:
        distill: Distill = self.distill
        logits, weights = self.model.logits(heads["student"], x), rest["weights"]
        theirs = jax.lax.stop_gradient(self.teacher.logits(heads["teacher"], rest["teacher"]))
        hard, metrics = cross_entropy(logits, rest["targets"], weights)
        log_q = jax.nn.log_softmax(theirs / distill.temperature)
        each = divergence(distill.divergence, logits / distill.temperature, *top(log_q, distill.top_k))
        soft, share = jnp.sum(weights * each), distill.hard_weight
        total = share * hard + (1 - share) * distill.temperature**2 * soft
        return total, metrics | {"divergence": soft}

    def measure(self, sums: Mapping[str, float], data: "Batches", source: str) -> dict[str, float]:
        return super().measure(sums, data, source) | {"divergence": sums["divergence"] / max(sums["tokens"], 1.0)}

    @property
    def _likelihood(self) -> Learner:
        return self.distill.likelihood.build(self.model, self.data, self.local_rows)

    def check_samples(self, settings: SampleSettings) -> None:
        self._likelihood.check_samples(settings)

    def samples(self, model: Writer, settings: SampleSettings) -> Iterator[Sample]:
        return self._likelihood.samples(model, settings)


def divergence(kind: Divergence, logits: jax.Array, log_q: jax.Array, log_rest: jax.Array | None = None) -> jax.Array:
    """[B, T] nats, from the teacher's `log_q` to the student's `logits` [B, T, V].

    With `log_rest` [B, T] the tokens that `log_q` gives NONE are one outcome, of this probability."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    log_p = logits - log_z[..., None]
    if log_rest is None:
        return kind.terms(log_p, log_q).sum(-1)
    kept = log_q > NONE / 2
    others = jax.nn.logsumexp(jnp.where(kept, NONE, logits), axis=-1) - log_z
    return kind.terms(jnp.where(kept, log_p, NONE), log_q).sum(-1) + kind.terms(others, log_rest)


def top(log_q: jax.Array, k: int) -> tuple[jax.Array, jax.Array | None]:
    """log_q [B, T, V] with NONE for all but its `k` likeliest tokens, and the log-probability [B, T] of all others
    together; for k = 0 as it is, and None."""
    if not k:
        return log_q, None
    values, ids = jax.lax.top_k(log_q, k)
    kept = spread(ids, values, log_q.shape[-1])
    return kept, jax.nn.logsumexp(jnp.where(kept > NONE / 2, NONE, log_q), axis=-1)


def spread(ids: jax.Array, values: jax.Array, vocab: int) -> jax.Array:
    """[..., V]: `values` [..., K] at `ids` [..., K], NONE elsewhere."""
    empty = jnp.full((*ids.shape[:-1], vocab), NONE, values.dtype)
    return jnp.put_along_axis(empty, ids, values, axis=-1, inplace=False)
