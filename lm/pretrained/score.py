"""The loss, perplexity and bits per byte of texts under any causal model that `load` returns."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.transformer import Params, Transformer
from lm.pretrained.model import Pretrained

WINDOW = 1024  # tokens read together, where the context allows


def score(model: Pretrained, files: Sequence[str | Path]) -> dict[str, dict[str, float]]:
    """file -> loss (nats per token), perplexity, and bits per byte of its UTF-8 text.

    A text is read in independent windows of at most WINDOW tokens, each of which begins with the last token of the one
    before. Raises ValueError for a model with an encoder, or a file without text."""
    if not model.config.causal or model.config.has_encoder:
        raise ValueError("perplexity is defined for a decoder alone: this model has an encoder")
    return {str(file): _score(model, file) for file in files}


def _score(model: Pretrained, file: str | Path) -> dict[str, float]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from None
    ids, width = np.asarray(model.encode(text), np.int32), min(WINDOW, model.config.context)
    if len(ids) < 2:
        raise ValueError(f"{file}: {len(ids)} tokens, nothing to predict")
    total = 0.0
    for start in range(0, len(ids) - 1, width - 1):
        window = ids[start : start + width]
        padded = np.pad(window, (0, width - len(window)))[None]
        total += float(_nats(model.model, model.params, padded, len(window)))
    loss = total / (len(ids) - 1)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": total / math.log(2) / len(text.encode()),
    }


@partial(jax.jit, static_argnums=0)
def _nats(model: Transformer, params: Params, ids: Any, length: Any) -> jax.Array:
    """The summed loss, in nats, of all but the first of ids [1, T], of which `length` are no padding."""
    logits = model(params, ids)[0, :-1]
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[0, 1:, None], axis=-1)[:, 0]
    return jnp.where(jnp.arange(1, ids.shape[1]) < length, nats, 0).sum()
