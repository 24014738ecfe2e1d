"""A method with all that pretraining has not: rollouts, a frozen reference, and a measure of its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lm.data.objective import CausalLM
from lm.model.transformer import Transformer
from lm.page.measure import Measure
from lm.train.method import Batch, Learner, Method, Sample
from lm.tune.samples import continuations


@dataclass(frozen=True)
class EvenTokens(Method):
    """Write even tokens, by REINFORCE on tokens that the model draws itself, and stay near the model of the start."""

    stay: float = 0.01

    objective = CausalLM()
    measures = (Measure("loss", "loss"), Measure("even", "even tokens", "of those drawn", percent=True))
    headline = measures[1]

    def check(self, model: Any) -> None:
        self.objective.check(model)

    def build(self, model: Transformer, data: Any = None, local_rows: Any = None) -> "Evening":
        return Evening(model, data, self, local_rows)


class Evening(Learner):
    def __init__(self, model: Transformer, data: Any, method: EvenTokens, local_rows: Any):
        self.model, self.data, self.method, self.local_rows = model, data, method, local_rows
        self.drawn = jax.jit(lambda p, tokens, key: jax.random.categorical(key, model(p, tokens)).astype(jnp.int32))

    def begin(self, start: Any, key: jax.Array, models: Any) -> Any:
        return start, jax.tree.map(jnp.copy, start)

    def frozen_axes(self) -> Any:
        return self.model.axes()

    def batches(self, step: int) -> Iterator[Batch]:
        return self.data.batches(step, self.local_rows)

    def rollout(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> Batch:
        return {**batch, "targets": self.drawn(params, batch["tokens"], key)}

    def loss(self, params: Any, frozen: Any, batch: Batch, key: Any) -> Any:
        even, weights = 1.0 - batch["targets"] % 2, batch["weights"]

        def log_p(params: Any) -> jax.Array:
            every = jax.nn.log_softmax(self.model(params, batch["tokens"]))
            return jnp.take_along_axis(every, batch["targets"][..., None], -1)[..., 0]

        own, start = log_p(params), log_p(frozen)
        loss = (weights * (self.method.stay * (own - start) ** 2 - (even - 0.5) * own)).sum()
        return loss, {"loss": loss, "even": (weights * even).sum()}

    def measure(self, sums: Mapping[str, float], data: Any, source: str) -> dict[str, float]:
        return {name: sums[name] / sums["tokens"] for name in ("loss", "even")}

    def samples(self, model: Any, settings: Any) -> Iterator[Sample]:
        return continuations(model, settings)
