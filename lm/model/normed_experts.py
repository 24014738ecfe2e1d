"""Experts as Gemma 4 has them: beside a feed-forward that all tokens take, each reading the residual stream under a
norm of its own, and each normalised again before the two are added."""

from dataclasses import dataclass

import jax
from flax import linen as nn

from lm.bounds import Positive
from lm.model.compute import Compute
from lm.model.parts import Norm, RMSNorm, ones, param
from lm.model.shared_experts import SharedExperts


@dataclass(frozen=True)
class NormedExperts(SharedExperts):
    """`SharedExperts` with a `norm` before the router, before the experts and before the feed-forward of all tokens,
    and one behind each of the last two: what it is given is to be the residual stream as it is (`ScaledSandwich` with
    `ffn_norm=Norm()`).

    The router reads its x times `router_scale`, D^-0.5 in Gemma 4, and the weight of a chosen expert is multiplied by a
    learned number of that expert."""

    norm: Norm = RMSNorm()
    router_scale: Positive = 1.0

    def __call__(
        self, module: nn.Module, x: jax.Array, compute: Compute, depth: int, is_token: jax.Array | None = None
    ) -> jax.Array:
        chosen = self._route(module, self.norm(module, "router_norm", x) * self.router_scale, is_token)
        routed = self._routed(module, self.norm(module, "experts_norm", x), *chosen, compute, depth)
        y = self.norm(module, "experts_post_norm", routed)
        if not self.shared:
            return y
        dense = self._shared(module, self.norm(module, "shared_norm", x), compute, depth)
        return y + self.norm(module, "shared_post_norm", dense)

    def _choose(self, module: nn.Module, logits: jax.Array, is_token: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        weights, expert = super()._choose(module, logits, is_token)
        return weights * param(module, "expert_scale", (self.experts,), (None,), ones)[expert], expert
