"""The kernels of attention by name: functions of the same arguments with the same numbers, one of them chosen by a
value (`Compute.attention`)."""

from collections.abc import Callable

import jax

from lm.model.accelerators import cudnn, splash
from lm.model.compute import Compute
from lm.model.flash import flash
from lm.model.scoring import Scoring, blocked, plain

MOST_BLOCKS = 64  # each is compiled by itself


def blocked_or_flash(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring, compute: Compute) -> jax.Array:
    """`blocked`, and from more than MOST_BLOCKS blocks of queries on `flash`."""
    few = q.shape[1] <= MOST_BLOCKS * compute.block
    return (blocked if few else flash)(q, k, v, scoring, compute)


Kernel = Callable[[jax.Array, jax.Array, jax.Array, Scoring, Compute], jax.Array]
KERNELS: dict[str, Kernel] = {
    "plain": plain,
    "blocked": blocked_or_flash,
    "flash": flash,
    "splash": splash,
    "cudnn": cudnn,
}
