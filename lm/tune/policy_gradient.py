"""Policy gradients as pure functions of arrays: advantages of groups, ratios, surrogate losses, how losses add up.

Rewards and advantages are [B], what belongs to tokens [B, T], and `mask` marks the tokens of completions.
"""

import jax
import jax.numpy as jnp
import numpy as np

EPS = 1e-4  # added to a deviation that is divided by, as in TRL


def equal_groups(rewards: np.ndarray, group: int) -> np.ndarray:
    """Which groups [B / group] of rewards [B] have no two that differ, NaN aside."""
    by_group = rewards.reshape(-1, group)
    least, most = (f(np.where(np.isnan(by_group), x, by_group), 1) for f, x in ((np.min, np.inf), (np.max, -np.inf)))
    return most <= least


def advantages(rewards: np.ndarray, group: int, scale: str = "group", baseline: str = "mean") -> np.ndarray:
    """[B] float32: what each of rewards [B] is beyond its group's; 0 where it is NaN, which counts nowhere."""
    by_group = rewards.astype(np.float64).reshape(-1, group)
    there = ~np.isnan(by_group)
    count, known = there.sum(1, keepdims=True), np.where(there, by_group, 0)
    centred = np.where(there, known - known.sum(1, keepdims=True) / np.maximum(count, 1), 0)
    if scale == "group":
        deviation = np.sqrt((centred**2).sum(1, keepdims=True) / np.maximum(count - 1, 1)) + EPS
    elif scale == "batch":
        deviation = np.std(by_group[there], ddof=1 if there.sum() > 1 else 0) + EPS if there.any() else 1.0
    else:
        deviation = 1.0
    if baseline == "leave_one_out":
        centred = centred * count / np.maximum(count - 1, 1)
    return (centred / deviation).reshape(-1).astype(np.float32)


def loss_weights(mask: np.ndarray, aggregation: str, max_new_tokens: int) -> np.ndarray:
    """[B, T] float32: by what each token's loss is multiplied in the sum that is the batch's, 0 outside of `mask`."""
    lengths = mask.sum(1, keepdims=True)
    divisor = {
        "sequence": len(mask) * np.maximum(lengths, 1),
        "token": np.maximum(lengths.sum(), 1),
        "constant": len(mask) * max_new_tokens,
    }[aggregation]
    return (mask / divisor).astype(np.float32)


def policy_ratio(new: jax.Array, old: jax.Array, mask: jax.Array, level: str) -> jax.Array:
    """new / old policy [B, T] from log-probabilities: of each token, or one a sequence: the geometric mean of its
    tokens' ("sequence"; GSPO, 2507.18071) or their "product"."""
    difference = jnp.where(mask, new - old, 0)
    if level != "token":
        count = jnp.maximum(mask.sum(1, keepdims=True), 1) if level == "sequence" else 1
        difference = jnp.broadcast_to(difference.sum(1, keepdims=True) / count, difference.shape)
    return jnp.exp(difference)


def clipped_surrogate(ratio: jax.Array, advantages: jax.Array, low: float, high: float) -> tuple[jax.Array, jax.Array]:
    """The loss [B, T] of each token, and whether clipping its ratio to 1 - low .. 1 + high made it constant (PPO,
    1707.06347, equation 7)."""
    low, high = 1 - low, 1 + high
    cut = (ratio < low) & (advantages < 0) | (ratio > high) & (advantages > 0)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, low, high) * advantages), cut


def cispo_surrogate(
    logprobs: jax.Array, ratio: jax.Array, advantages: jax.Array, high: float
) -> tuple[jax.Array, jax.Array]:
    """The loss [B, T] of each token, weighed by its ratio up to 1 + high as a constant, and whether it was more
    (2506.13585, equation 4)."""
    weight = jax.lax.stop_gradient(jnp.minimum(ratio, 1 + high))
    return -weight * advantages * logprobs, ratio > 1 + high


def k3(logprobs: jax.Array, reference: jax.Array, mask: jax.Array) -> jax.Array:
    """The estimate [B, T] of the KL divergence from the reference, at least 0 (Schulman 2020): r - log r - 1 of
    r = reference / policy."""
    log_r = jnp.where(mask, reference - logprobs, 0)
    return jnp.exp(log_r) - log_r - 1
