"""A trained model at hand: `load` a run, then ask it for logits or text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm import value
from lm.decode.generate import stream as stream_ids
from lm.decode.sampling import Sampling
from lm.experiment import Experiment
from lm.model.config import ModelConfig
from lm.model.transformer import Params, Transformer
from lm.text.tokenizer import Stream, Tokenizer, load_tokenizer
from lm.train.checkpoint import Checkpoints


@dataclass(frozen=True)
class Pretrained:
    """A model with its parameters and tokenizer. `step` is how many updates it has had."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    model: Transformer
    step: int = 0

    def logits(self, input_ids: np.ndarray) -> jax.Array:
        """Token ids [B, T] -> float32 logits [B, T, V]."""
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or ids.shape[1] > self.config.context:
            raise ValueError(f"token ids of shape {ids.shape}: expected [B, T] with T up to {self.config.context}")
        if ids.size and not (0 <= ids.min() and ids.max() < self.config.vocab):
            raise ValueError(
                f"token ids from {ids.min()} to {ids.max()}: the vocabulary is 0 to {self.config.vocab - 1}"
            )
        return self.model(self.params, jnp.asarray(ids, jnp.int32))

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt, begun as the documents of the training text were."""
        bos = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        return bos + self.tokenizer.encode(prompt)

    def stream(
        self, prompt: str, max_new_tokens: int = 128, sampling: Sampling = Sampling(), seed: int = 0, n: int = 1
    ) -> Iterator[list[str]]:
        """`n` continuations of `prompt`: at each yield the new text of each, complete characters only."""
        texts = [Stream(self.tokenizer) for _ in range(n)]
        stop = [] if self.tokenizer.eos is None else [self.tokenizer.eos]
        prompts = [self.encode(prompt)] * n
        for rows in stream_ids(self.model, self.params, prompts, max_new_tokens, sampling, stop, seed):
            yield ["".join(map(text.push, ids)) for text, ids in zip(texts, rows, strict=True)]
        yield [text.close() for text in texts]

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """One continuation of `prompt`, greedy unless a temperature is given."""
        sampling = Sampling(temperature, top_k, top_p)
        return "".join(rows[0] for rows in self.stream(prompt, max_new_tokens, sampling, seed))


def read_experiment(run: str | Path) -> Experiment:
    """The experiment of a run's folder. Raises ValueError where there is none."""
    file = Path(run) / "experiment.json"
    try:
        return value.build(Experiment, json.loads(file.read_text())["value"])
    except FileNotFoundError:
        raise ValueError(f"{run} is not a run: it has no experiment.json; `lm train` makes one") from None
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ImportError) as error:
        raise ValueError(f"{file} cannot be read: {type(error).__name__}: {error}") from None


def load(run: str | Path) -> Pretrained:
    """The newest checkpoint of the run in folder `run`: its moving average where it keeps one, else its parameters.

    Raises ValueError for a folder that is not a run, or has no checkpoint yet."""
    experiment = read_experiment(run)
    model = Transformer(experiment.model, experiment.compute.resolve())
    tokenizer = load_tokenizer(Path(run) / "tokenizer")
    part = "ema" if experiment.ema else "params"
    checkpoints = Checkpoints(Path(run) / "checkpoints", experiment.keep_last, experiment.keep_best)
    state, _, step = checkpoints.restore({part: model.shapes()})
    checkpoints.close()
    return Pretrained(experiment.model, state[part], tokenizer, model, step)
