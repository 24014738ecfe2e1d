"""The gated delta rule (2412.06464; without decay 2406.06484): a state that maps keys to values forgets by a gate
and is corrected, token by token or by chunks.

Each head keeps a state S [H, Hv]. A token with key k and value v makes of it

    S <- exp(g) S;  S <- S + k^T beta (v - k S)

so that exp(g) of the past is kept, and of the value that the state has for k the share beta is replaced by v. The
token's query reads q S. Letters: N heads, H and Hv the sizes of a key and of a value, C the tokens of a chunk.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# float32 that no unit rounds to bfloat16 or TF32: an error in a state stays there
_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
BLOCK = 8  # tokens: powers of so small a triangular matrix stay small


class Tokens(NamedTuple):
    """What the delta rule reads of T tokens, heads first, in float32: queries and keys [B, N, T, H], values
    [B, N, T, Hv], log decays g and rates beta [B, N, T]; and of each token its document's number in the row, [B, 1, T],
    where 0 is the one that the state is of."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    g: jax.Array
    beta: jax.Array
    document: jax.Array


def recurrent(x: Tokens, state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the query of one token (T = 1) reads, [B, N, 1, Hv], and the state with that token, of the state before it
    [B, N, H, Hv] (2412.06464, equation 10)."""
    state = jnp.exp(x.g)[..., None] * state
    state = state + x.k.swapaxes(-1, -2) * (x.beta[..., None] * (x.v - _matmul(x.k, state)))
    return _matmul(x.q, state), state


def chunked(x: Tokens, state: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """`recurrent` of T tokens, by products within chunks and a scan over them.

    In a chunk that begins with the state S, token i adds its key times an error E_i, which depends on those before it:
    (I + A) E = beta (V - K' S), with A strictly lower triangular and K' the keys as the decayed S meets them. Of
    E = U - W S, U and W depend on no state, so that all chunks have theirs at once (the WY representation: 2406.06484,
    section 3.2; with decay 2412.06464, section 3.3).

    Args:
      x: the tokens.
      state: [B, N, H, Hv], before the first token.
      chunk: the most tokens of a chunk, a power of two.

    Returns: what the queries read, [B, N, T, Hv], and the state after the last token."""
    (B, N, T, V), C = x.v.shape, min(chunk, 1 << (x.v.shape[2] - 1).bit_length())
    q, k, v, g, beta = (_by_chunk(a, C, "constant") for a in x[:5])
    kept = _kept(g, _by_chunk(x.document, C, "edge"))
    past, within, beta = kept[..., :1], kept[..., 1:], beta[..., None]
    A = jnp.tril(beta * within * _matmul(k, k.swapaxes(-1, -2)), -1)
    UW = _matmul(_inverse(A), beta * jnp.concatenate([v, past * k], -1))
    scores = within * _matmul(q, k.swapaxes(-1, -2))
    written = (within[..., -1, :, None] * k).swapaxes(-1, -2)

    def one(S: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        UW, q, scores, written, kept = xs
        E = UW[..., :V] - _matmul(UW[..., V:], S)
        return kept * S + _matmul(written, E), _matmul(q, S) + _matmul(scores, E)

    state, read = jax.lax.scan(one, state, (UW, past * q, scores, written, past[..., -1:, :]))
    return jnp.moveaxis(read, 0, 2).reshape(B, N, -1, V)[:, :, :T], state


def _by_chunk(x: jax.Array, C: int, padding: Any) -> jax.Array:
    """x [B, N, T, ...] as [T / C, B, N, C, ...], filled up with tokens that change no state."""
    x = jnp.pad(x, [(0, -x.shape[i] % C if i == 2 else 0) for i in range(x.ndim)], padding)
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, C, *x.shape[3:]), 2, 0)


def _kept(g: jax.Array, document: jax.Array) -> jax.Array:
    """The share [n, B, N, C, 1 + C] that is left at token i of a chunk of the state before the chunk (0) and of what
    token j of the chunk wrote (1 + j): exp(g_j+1 + ... + g_i), and nothing of a later token or of another document."""
    C = g.shape[-1]
    before = jnp.pad(document[:-1, ..., -1:], [(1, 0), *[(0, 0)] * 3])
    sums = jnp.cumsum(g, -1)
    since = sums[..., :, None] - jnp.pad(sums, [*[(0, 0)] * 3, (1, 0)])[..., None, :]
    same = document[..., :, None] == jnp.concatenate([before, document], -1)[..., None, :]
    return jnp.exp(jnp.where(same & jnp.tri(C, C + 1, 1, dtype=bool), since, -jnp.inf))


@jax.custom_vjp
def _inverse(A: jax.Array) -> jax.Array:
    """(I + A)^-1 of strictly lower triangular matrices A [..., C, C], C a power of two, by products alone: solving by
    rows takes C steps. Blocks of BLOCK are (I - A)(I + A^2)(I + A^4); the powers of a larger A would outgrow float32
    where keys are alike."""
    h = A.shape[-1] // 2
    if 2 * h > BLOCK:
        upper, lower = _inverse(jnp.stack([A[..., :h, :h], A[..., h:, h:]]))
        corner = -_matmul(lower, _matmul(A[..., h:, :h], upper))
        return jnp.block([[upper, jnp.zeros_like(upper)], [corner, lower]])
    inverse, power = jnp.eye(A.shape[-1]) - A, A
    for _ in range(1, h.bit_length()):
        power = _matmul(power, power)
        inverse = inverse + _matmul(inverse, power)
    return inverse


def _inverse_forward(A: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = _inverse(A)
    return inverse, inverse.swapaxes(-1, -2)


_inverse.defvjp(_inverse_forward, lambda turned, g: (-_matmul(turned, _matmul(g, turned)),))
