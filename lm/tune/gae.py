"""Rewards, advantages and losses of an actor with a critic, as pure functions of arrays.

What belongs to tokens is [B, T], and `mask` marks the tokens of completions, which are side by side in their row. A
value is of what is there before its token.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EPS = 1e-8  # added to a variance that is divided by


def token_rewards(scores: np.ndarray, kl: np.ndarray, coefficient: float, mask: np.ndarray) -> np.ndarray:
    """The reward of each token: -coefficient x kl, and at the last of a completion its score, of scores [B]."""
    last = mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1)
    return np.where(mask, np.where(last, scores[:, None], 0) - coefficient * kl, 0)


def whiten(values: np.ndarray, mask: np.ndarray, shift_mean: bool = True) -> np.ndarray:
    """`values` with the (biased) variance 1 over `mask`, and the mean 0 or that which they have; 0 outside of it."""
    count = max(mask.sum(), 1)
    mean = np.where(mask, values, 0).sum() / count
    variance = np.where(mask, values - mean, 0).var(where=mask) if mask.any() else 0.0
    return np.where(mask, (values - mean) / np.sqrt(variance + EPS) + (0 if shift_mean else mean), 0)


def advantages(rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, discount: float, decay: float) -> np.ndarray:
    """Generalized advantage estimates (1506.02438, equation 16): the sum over later tokens of (discount x decay)^l
    times reward + discount x the next value - value; nothing follows a completion."""
    found, after = np.zeros(rewards.shape), np.zeros(len(rewards))
    values, following = np.where(mask, values, 0), np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        after = np.where(mask[:, t], rewards[:, t] + discount * (following + decay * after) - values[:, t], 0)
        found[:, t], following = after, values[:, t]
    return found


def clipped_value_loss(values: Any, old: Any, returns: Any, clip: float) -> tuple[jax.Array, jax.Array]:
    """Half the square by which a value misses its return, or misses it within `clip` of the old value, whichever is
    more; and whether it is the latter."""
    free, near = jnp.square(values - returns), jnp.square(jnp.clip(values, old - clip, old + clip) - returns)
    return 0.5 * jnp.maximum(free, near), near > free
