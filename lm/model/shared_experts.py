"""Experts as DeepSeek's models have them: beside a feed-forward that all tokens take, chosen within a few groups, and
balanced by a bias of the choice alone in place of a loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.bounds import Count, Natural, Positive, Sentinel
from lm.model.compute import Compute
from lm.model.experts import Experts, add_aux_loss, mean_of_tokens
from lm.model.parts import fan_in, matrix, param, zeros
from lm.model.products import linear, linears
from lm.sharding.tracing import constrain
from lm.value import suggest

UNSEEN = 1e-12
SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


@dataclass(frozen=True)
class SharedExperts(Experts):
    """Experts, and with `shared` a feed-forward of that inner width beside them, which every token takes (2401.06066),
    times the sigmoid of a number of its own with `shared_gate` (Qwen2-MoE).

    A token's `scores` are the softmax or the sigmoid of its router's logits. It takes the `top_k` best experts of the
    `top_groups` best of `groups` groups, a group being worth the sum of its `group_best` best scores (2405.04434,
    section 2.2.2). With `choice_bias` a number of each expert is added to its scores for these choices alone, and
    moved against its load in every step, so that experts are even without a loss (2408.15664; DeepSeek-V3, 2412.19437).
    The weights are the chosen scores, summing to 1 under `renormalize`, times `scale`."""

    choices: ClassVar[Mapping[str, Any]] = {**Experts.choices, "scores": tuple(SCORES)}

    shared: Annotated[Natural, Sentinel(0, "none")] = 0
    shared_gate: bool = False
    scores: str = "softmax"
    choice_bias: bool = False
    groups: Count = 1
    top_groups: Count = 1
    group_best: Count = 1
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores not in SCORES:
            raise ValueError(f"unknown scores {self.scores!r}: {suggest(self.scores, SCORES)}")
        size, odd = divmod(self.experts, self.groups)
        if odd or self.top_groups > self.groups or self.group_best > size or self.top_k > self.top_groups * size:
            raise ValueError(
                f"ffn.experts={self.experts} in ffn.groups={self.groups}, of which ffn.top_groups={self.top_groups} by "
                f"their ffn.group_best={self.group_best} for ffn.top_k={self.top_k}: expected groups of one size, no "
                "more of them than there are, and as many experts in each, and in all, as are taken"
            )

    @property
    def active_mlp(self) -> int:
        return super().active_mlp + self.shared

    def __call__(
        self, module: nn.Module, x: jax.Array, compute: Compute, depth: int, is_token: jax.Array | None = None
    ) -> jax.Array:
        y = super().__call__(module, x, compute, depth, is_token)
        return y + self._shared(module, x, compute, depth) if self.shared else y

    def _shared(self, module: nn.Module, x: jax.Array, compute: Compute, depth: int) -> jax.Array:
        """What the feed-forward of all tokens makes of x [B, T, D]."""
        D, F = x.shape[-1], self.shared
        weights = [matrix(module, f"shared_{n}", (D, F), ("embed", "mlp"), fan_in(D)) for n in self.inputs]
        hidden = constrain(self.inner(*linears(x, weights, compute)), "batch", "seq", "mlp")
        down = matrix(module, "shared_down", (F, D), ("mlp", "embed"), fan_in(F, (2 * depth) ** -0.5))
        y = linear(hidden, down, compute, back=True)
        if not self.shared_gate:
            return y
        gate = param(module, "shared_router", (D, 1), ("embed", None), fan_in(D))
        return y * jax.nn.sigmoid(x.astype(jnp.float32) @ gate).astype(y.dtype)

    def _choose(self, module: nn.Module, logits: jax.Array, is_token: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        scores = SCORES[self.scores](logits)
        bias = param(module, "choice_bias", (self.experts,), ("balance",), zeros) if self.choice_bias else 0.0
        _, expert = jax.lax.top_k(self._within_groups(scores + bias), self.top_k)
        if self.choice_bias:
            self._balance(module, expert, is_token, jnp.asarray(bias))
        weights = jnp.take_along_axis(scores, expert, axis=-1)
        if self.renormalize:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        return weights * self.scale, expert

    def _balance(self, module: nn.Module, expert: jax.Array, is_token: jax.Array | None, bias: jax.Array) -> None:
        """A loss of 0 whose gradient to the `bias` is by how much each expert's share of the tokens is above the mean,
        so small that the gradients' norm has none of it: an optimizer takes its sign (lm/train/optim.py)."""
        share = mean_of_tokens(jax.nn.one_hot(expert, self.experts).sum(2), is_token)
        excess = UNSEEN * (share - self.top_k / self.experts)
        add_aux_loss(module, "choice_bias", (excess * (bias - jax.lax.stop_gradient(bias))).sum())

    def _within_groups(self, scores: jax.Array) -> jax.Array:
        """The scores [B, T, E], those outside the best groups below all others."""
        if self.groups == self.top_groups:
            return scores
        grouped = scores.reshape(*scores.shape[:-1], self.groups, -1)
        worth = jax.lax.top_k(grouped, self.group_best)[0].sum(-1)
        _, best = jax.lax.top_k(worth, self.top_groups)
        among = jax.nn.one_hot(best, self.groups).sum(-2)[..., None] > 0
        return jnp.where(among, grouped, -jnp.inf).reshape(scores.shape)

    def router_probs(self, logits: jax.Array) -> jax.Array:
        scores = SCORES[self.scores](logits)
        return scores / scores.sum(-1, keepdims=True)
