"""What a run notes of its model's inside on the way: a few numbers of each layer and head, of the same rows always."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.bounds import Count, Natural, check
from lm.inspect.views import entropy
from lm.model.inputs import Inputs
from lm.model.scoring import MINUS_INFINITY
from lm.model.taps import Watch
from lm.model.transformer import Params, Transformer

DEAD = 0.01  # of the largest hidden unit of its layer


@dataclass(frozen=True)
class Watching:
    """Numbers of the model's inside, noted every `every_steps` steps in the run's inside.jsonl and drawn in its report:
    of `rows` held-out rows of the first source, and of as many in which `repeated` random ones of their tokens come
    twice.

    Of the texts `probes`, every `probe_every_steps` steps, attention, the residual stream's norms and the next tokens'
    probabilities are kept whole, as `read_probes` reads them (lm/inspect/probes.py).

    All is read by programs of their own, so that the steps and their bits are those of a run without it."""

    every_steps: Count = 50
    rows: Count = 2
    repeated: Natural = 32
    probes: tuple[str, ...] = ()
    probe_every_steps: Count = 500

    def __post_init__(self) -> None:
        check(self, "watch")
        if "" in self.probes or len(set(self.probes)) < len(self.probes):
            raise ValueError(f"watch.probes={self.probes!r}: expected texts, each once")


@partial(jax.jit, static_argnums=(1, 2, 3))
def repeated_tokens(known: jax.typing.ArrayLike, rows: int, length: int, seed: int = 0) -> jax.Array:
    """Random ones of the tokens `known` [K], [rows, 2 * length], whose second half is the first (2209.11895, section on
    induction heads)."""
    half = jax.random.choice(jax.random.key(seed), jnp.asarray(known), (rows, length))
    return jnp.concatenate([half, half], axis=1)


def inside(model: Transformer, params: Params, text: Inputs | None, repeated: jax.Array | None) -> dict[str, jax.Array]:
    """Measure -> its values, of those layers that have it: of text [L, N] of heads' attention_entropy, sink_mass (the
    share that the first token gets), previous_token and largest_logit, [L] of the residual_norm behind a layer and its
    dead_units, [L, E] of router_load; and [L, N] of induction, the attention to what stood behind the same token.
    Traced.

    Args:
      model: the model.
      params: its parameters.
      text: rows of text; None: the measures of text are left out.
      repeated: as `repeated_tokens` makes them; None: induction is left out."""
    found: dict[str, jax.Array] = {}
    if text is not None:
        reads = {
            "attn_pattern": partial(_of_pattern, text),
            "attn_logits": lambda x: {"largest_logit": jnp.where(x > MINUS_INFINITY / 2, x, -jnp.inf).max((0, 2, 3))},
            "resid_post": lambda x: {"residual_norm": jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean())},
            "mlp_inner": lambda x: {"dead_units": _dead(x)},
            "router_logits": lambda x: {"router_load": _load(x)},
        }
        found |= _read(model, params, text, reads)
    if repeated is not None:
        found |= _read(model, params, Inputs(repeated), {"attn_pattern": _induction})
    return found


def _read(model: Transformer, params: Params, inputs: Inputs, reads: Any) -> dict[str, jax.Array]:
    taps = replace(model, watch=Watch(reads)).hidden(params, inputs).taps
    return {name: values for one in taps.values() for name, values in one.items()}


def _of_pattern(text: Inputs, pattern: jax.Array) -> dict[str, jax.Array]:
    """The measures [N] of attention's probabilities [B, N, T, T] among the tokens of `text`."""
    B, T = text.tokens.shape
    real = jnp.ones((B, T), bool) if text.segments is None else text.segments > 0
    place = jnp.broadcast_to(jnp.arange(T), (B, T)) if text.positions is None else text.positions
    later = real & (place > 0)  # queries that are not a text's first token

    def mean(values: jax.Array, over: jax.Array) -> jax.Array:
        return jnp.einsum("bnt,bt->n", values, over.astype(jnp.float32)) / jnp.maximum(over.sum(), 1)

    to_first = (pattern * (place == 0)[:, None, None]).sum(-1)
    before = jnp.pad(jnp.diagonal(pattern, -1, -2, -1), [(0, 0), (0, 0), (1, 0)])
    return {
        "attention_entropy": mean(entropy(pattern), real),
        "sink_mass": mean(to_first, later),
        "previous_token": mean(before, later),
    }


def _induction(pattern: jax.Array) -> dict[str, jax.Array]:
    """The score [N] of attention's probabilities [B, N, 2 P, 2 P] of repeated tokens."""
    period = pattern.shape[-1] // 2
    return {"induction": jnp.diagonal(pattern, 1 - period, -2, -1)[..., 1:].mean((0, 2))}


def _dead(hidden: jax.Array) -> jax.Array:
    most = jnp.abs(hidden).max((0, 1)).astype(jnp.float32)
    return (most < DEAD * most.max()).mean()


def _load(logits: jax.Array) -> jax.Array:
    return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1]).mean((0, 1))
