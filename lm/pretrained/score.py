"""The loss, perplexity and bits per byte of texts under any causal model that `load` returns.

A text is read in independent windows of at most WINDOW tokens, each of which begins with the last token of the one
before.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.paths import texts
from lm.model.transformer import Params, Transformer
from lm.pretrained.model import Pretrained
from lm.text.protocol import first_token_bytes

WINDOW = 1024  # tokens read together, where the context allows


def score(model: Pretrained, files: Sequence[str | Path]) -> dict[str, dict[str, float]]:
    """path -> loss (nats per token), perplexity, and bits per byte of the UTF-8 text of its documents
    (lm/data/paths.py), each read by itself.

    The bytes are those of tokens that are predicted: without a begin token, the first one's are not among them. Raises
    ValueError for a model with an encoder, or a file without text."""
    if not model.config.causal or model.config.has_encoder:
        raise ValueError("perplexity is defined for a decoder alone: this model has an encoder")
    model.config.check_generates()
    return {str(file): _score(model, file) for file in files}


def _score(model: Pretrained, file: str | Path) -> dict[str, float]:
    nats, targets, size, tokenizer = 0.0, 0, 0, model.tokenizer
    for text in texts(file):
        ids = model.encode(text)
        assert tokenizer is not None  # or there would be no ids
        begins = bool(ids) and ids[0] in tokenizer.controls
        nats, targets = nats + _document_nats(model, ids), targets + max(len(ids) - 1, 0)
        size += len(text.encode()) - (0 if begins else first_token_bytes(tokenizer, text, ids))
    if not targets or not size:
        raise ValueError(f"{file}: {targets} tokens after the first, nothing to predict")
    loss = nats / targets
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / size,
    }


def _document_nats(model: Pretrained, document: Sequence[int]) -> float:
    """The summed loss of all ids but the first."""
    ids, width, total = np.asarray(document, np.int32), min(WINDOW, model.config.context), 0.0
    for start in range(0, len(ids) - 1, width - 1):
        window = ids[start : start + width]
        padded = np.pad(window, (0, width - len(window)))[None]
        total += float(_nats(model.model, model.params, padded, len(window)))
    return total


@partial(jax.jit, static_argnums=0)
def _nats(model: Transformer, params: Params, ids: Any, length: Any) -> jax.Array:
    """The summed loss, in nats, of all but the first of ids [1, T], of which `length` are no padding."""
    logits = model(params, ids)[0, :-1]
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[0, 1:, None], axis=-1)[:, 0]
    return jnp.where(jnp.arange(1, ids.shape[1]) < length, nats, 0).sum()
