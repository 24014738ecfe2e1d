"""Log-probabilities of a batch's targets, one a token: what methods read that learn from sequences or ratios."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.model.context import AXIS, shard_sequence, zigzag_unshard
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.sharding.tracing import axis_size
from lm.train.loss import Metrics, map_chunks
from lm.train.method import Batch

READ = ("tokens", "targets", "segment_ids", "positions")


class TokenLogprobs(NamedTuple):
    """Of each target [B, T]: its log-probability, and the entropy of the distribution that it is of, without a
    gradient. `losses` are the layers' own (experts' routers)."""

    logprobs: jax.Array
    entropy: jax.Array
    losses: Metrics


def token_logprobs(model: Transformer, params: Params, batch: Batch, temperature: float = 1.0) -> TokenLogprobs:
    """The log-probabilities of `targets` in the softmax of logits / `temperature`, without dropout. Traced."""
    T = batch["tokens"].shape[1]
    read, zigzag = shard_sequence({name: batch[name] for name in READ if name in batch}, model.cfg.causal)
    x, _, losses = model.hidden(params, Inputs.of(read, zigzag))

    def chunk(x: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.logits(params, x) / temperature
        log_z = jax.nn.logsumexp(logits, axis=-1)
        at = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
        still = jax.lax.stop_gradient(logits - log_z[..., None])
        entropy = -jnp.sum(jnp.exp(still) * jnp.maximum(still, jnp.finfo(still.dtype).min), axis=-1)
        return jnp.where(at, logits, 0.0).sum(-1) - log_z, entropy

    logprobs, entropy = map_chunks(chunk, model.compute.loss_chunk, x, read["targets"])
    if zigzag:
        logprobs, entropy = (zigzag_unshard(a, axis_size(AXIS)) for a in (logprobs, entropy))
    return TokenLogprobs(logprobs[:, :T], entropy[:, :T], losses)
