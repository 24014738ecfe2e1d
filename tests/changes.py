"""A page on which everything is new: a position, a norm, a mixer, an optimizer, a source, a family, a method and an
instrument. Nothing in lm/ knows of it: a class in the right place of an experiment is all that it takes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.source import Documents, Source
from lm.experiment import Experiment
from lm.model.config import LayerKind, ModelConfig
from lm.model.families import llama
from lm.model.mixer import LayerInputs, Mixer
from lm.model.parts import Norm, fan_in, param
from lm.model.positions import Positions
from lm.model.products import linear
from lm.model.transformer import Transformer
from lm.text.tokenizer import Bytes
from lm.train.method import Batch
from lm.train.optim import Optimizer
from lm.tune.pretrain import Pretrain, Pretraining


@dataclasses.dataclass(frozen=True)
class Ramp(Positions):
    """Adds the position, in contexts, to the last coordinate of the embedding."""

    def embed(self, module: nn.Module, x: jax.Array, positions: jax.Array, context: int) -> jax.Array:
        return x.at[..., -1].add((positions / context).astype(x.dtype))


@dataclasses.dataclass(frozen=True)
class MaxNorm(Norm):
    """Divides by the largest absolute coordinate."""

    def __call__(self, module: nn.Module, name: str, x: jax.Array) -> jax.Array:
        return x / (jnp.abs(x).max(-1, keepdims=True) + 1e-6)


@dataclasses.dataclass(frozen=True)
class RunningMean(Mixer):
    """The mean of a linear map of all tokens up to one's own."""

    def __call__(
        self, module: nn.Module, x: jax.Array, inputs: LayerInputs, positions: Any, cache: Any, compute: Any, depth: int
    ) -> tuple[jax.Array, Any]:
        D = x.shape[-1]
        y = linear(x, param(module, "mean", (D, D), ("embed", "act_embed"), fan_in(D)), compute)
        return jnp.cumsum(y, axis=1) / jnp.arange(1, x.shape[1] + 1)[:, None], cache

    def products(self, width: int) -> dict[str, float]:
        return {"value": 2.0 * width * width}


@dataclasses.dataclass(frozen=True)
class Signs(Optimizer):
    """The sign of the gradient (signSGD, 1802.04434)."""

    def direction(self, params_axes: Any) -> optax.GradientTransformation:
        return optax.scale_by_sign()


@dataclasses.dataclass(frozen=True)
class Squares(Source):
    """Squares of numbers, one a document."""

    count: int = 50

    def documents(self, split: str) -> Documents:
        start = 0 if split == "train" else self.count
        return Documents(self.count, lambda i: f"{start + i}^2 = {(start + i) ** 2}\n")

    def fingerprint(self) -> str:
        return f"{self.count:016x}"


@dataclasses.dataclass(frozen=True)
class Focal(Pretrain):
    """Pretraining whose loss is multiplied by `weight`."""

    weight: float = 2.0

    def build(self, model: Transformer, data: Any = None, own: Any = None) -> "Focused":
        return Focused(model, data, self, own)


class Focused(Pretraining):
    """Bound to a model and data."""

    method: Focal

    def loss(self, params: Any, frozen: Any, batch: Batch, key: Any) -> Any:
        total, metrics = super().loss(params, frozen, batch, key)
        return self.method.weight * total, metrics


def meanformer(**sizes: Any) -> ModelConfig:
    """Llama with running means in every second layer, and the parts of this page."""
    pattern = (LayerKind(mixer=RunningMean()), LayerKind())
    return llama(**{"positions": Ramp(), "norm": MaxNorm(), "pattern": pattern, **sizes})


def bits(model: Transformer, params: Any, tokens: jax.Array) -> jax.Array:
    """An instrument: the entropy of the next token, in bits, [B, T]."""
    log_p = jax.nn.log_softmax(model(params, tokens))
    return -(jnp.exp(log_p) * log_p).sum(-1) / jnp.log(2.0)


experiment = Experiment(
    name="changes",
    model=meanformer(vocab=258, layers=2, width=16, heads=2, mlp=32, context=32),
    data=Data(Mixture({"squares": Squares()}, {"squares": 1.0}), Bytes(), Pack()),
    method=Focal(),
    optimizer=Signs(learning_rate=1e-3),
    batch_tokens=8 * 32,
    steps=3,
    eval_every_steps=3,
    checkpoint_every_steps=3,
    prompts=(),
)
