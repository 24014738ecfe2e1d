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
    """Of each target [B, T]: its log-probability, and the entropy of the distribution that it is of. `losses` are the
    layers' own (experts' routers). `values` [B, T] are the first of the model's scores before each target, where it has
    any."""

    logprobs: jax.Array
    entropy: jax.Array
    losses: Metrics
    values: jax.Array | None = None


def token_logprobs(
    model: Transformer, params: Params, batch: Batch, temperature: float = 1.0, entropy_gradient: bool = False
) -> TokenLogprobs:
    """The log-probabilities of `targets` in the softmax of logits / `temperature`, without dropout; the entropy has no
    gradient unless that is asked. Traced."""
    T = batch["tokens"].shape[1]
    read, zigzag = shard_sequence({name: batch[name] for name in READ if name in batch}, model.cfg.causal)
    x, _, losses, _ = model.hidden(params, Inputs.of(read, zigzag))

    def chunk(x: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.logits(params, x) / temperature
        log_z = jax.nn.logsumexp(logits, axis=-1)
        at = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
        still = logits - log_z[..., None]
        if not entropy_gradient:
            still = jax.lax.stop_gradient(still)
        entropy = -jnp.sum(jnp.exp(still) * jnp.maximum(still, jnp.finfo(still.dtype).min), axis=-1)
        return jnp.where(at, logits, 0.0).sum(-1) - log_z, entropy

    logprobs, entropy = map_chunks(chunk, model.compute.loss_chunk, x, read["targets"])
    values = model.scores(params, x)[..., 0] if model.cfg.output.scores else None
    logprobs, entropy, values = jax.tree.map(lambda a: _in_order(a, T, zigzag), (logprobs, entropy, values))
    return TokenLogprobs(logprobs, entropy, losses, values)


def token_scores(model: Transformer, params: Params, batch: Batch) -> jax.Array:
    """The first [B, T] of the model's scores of each token, which follow from it and those before. Traced."""
    read, zigzag = shard_sequence({name: batch[name] for name in READ if name in batch}, model.cfg.causal)
    scores = model.scores(params, model.hidden(params, Inputs.of(read, zigzag)).x)[..., 0]
    return _in_order(scores, batch["tokens"].shape[1], zigzag)


def _in_order(a: jax.Array, T: int, zigzag: bool) -> jax.Array:
    """Values [B, >= T] of a sharded sequence as those [B, T] of the batch's tokens."""
    return (zigzag_unshard(a, axis_size(AXIS)) if zigzag else a)[:, :T]
