"""Experts: a feed-forward of which each token uses a few of many copies, chosen by a router (1701.06538).

No token is dropped: the tokens are sorted by expert and each expert multiplies its own run of them
(`jax.lax.ragged_dot`), whatever its length (2211.15841).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.compute import Compute
from lm.model.parts import FeedForward, add_bias, fan_in, param


@dataclass(frozen=True)
class Experts(FeedForward):
    """`experts` feed-forwards of inner width `mlp`, of which each token takes the `chosen` with the largest router
    logits, weighted by the softmax over those (`normalise`) or over all.

    `balance` is the weight of the load-balancing loss (2101.03961, equation 4, summed over the choices as Mixtral has
    it), `router_z` that of the router's z-loss (2202.08906, equation 5)."""

    experts: int = 8
    chosen: int = 2
    router_bias: bool = False
    normalise: bool = True
    balance: float = 0.0
    router_z: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.chosen <= self.experts:
            raise ValueError(f"ffn.chosen={self.chosen} of ffn.experts={self.experts}: expected 1 to {self.experts}")

    def __call__(self, module: nn.Module, x: jax.Array, compute: Compute, depth: int) -> jax.Array:
        (B, T, D), E, F, C = x.shape, self.experts, self.mlp, self.chosen

        weights, expert = self._route(module, x.reshape(-1, D))  # [B*T, C] both
        order = jnp.argsort(expert.reshape(-1))  # stable: a token's place depends on the tokens before it alone
        sizes = jnp.bincount(expert.reshape(-1), length=E).astype(jnp.int32)
        rows, owner = x.reshape(-1, D)[order // C], expert.reshape(-1)[order]

        def product(name: str, rows: jax.Array, inside: int, outside: int, axes: tuple[str, str]) -> jax.Array:
            scale = (2 * depth) ** -0.5 if name == "down" else 1.0
            w = param(module, name, (E, inside, outside), ("experts", *axes), fan_in(inside, scale))
            y = jax.lax.ragged_dot(
                rows.astype(compute.matmul), w.astype(compute.matmul), sizes, preferred_element_type=jnp.float32
            ).astype(compute.dtype)
            if not self.bias:
                return y
            bias = param(module, f"{name}_bias", (E, outside), ("experts", axes[1]), nn.initializers.zeros)
            return y + bias.astype(y.dtype)[owner]

        hidden = self.inner(*(product(name, rows, D, F, ("embed", "mlp")) for name in self.inputs))
        out = product("down", hidden, F, D, ("mlp", "embed"))
        back = out[jnp.argsort(order)].reshape(-1, C, D)  # each token's own, in the order of its choices
        return jnp.einsum("mcd,mc->md", back, weights.astype(back.dtype)).reshape(B, T, D)

    def _route(self, module: nn.Module, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The weights and numbers [M, C] of the experts of tokens x [M, D], in float32."""
        D, E = x.shape[-1], self.experts
        router = param(module, "router", (D, E), ("embed", None), fan_in(D))
        logits = x.astype(jnp.float32) @ router.astype(jnp.float32)
        if self.router_bias:
            logits = add_bias(module, "router_bias", logits, (None,))
        top, expert = jax.lax.top_k(logits, self.chosen)
        log_z = jax.nn.logsumexp(top if self.normalise else logits, axis=-1, keepdims=True)
        if self.balance:
            share = jax.nn.one_hot(expert, E).sum(1).mean(0)  # of the tokens that each expert gets: no gradient
            wanted = jax.nn.softmax(logits).mean(0)
            sow(module, "balance", self.balance * E * (share * wanted).sum())
        if self.router_z:
            sow(module, "router_z", self.router_z * jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean())
        return jnp.exp(top - log_z), expert


def sow(module: nn.Module, name: str, value: jax.Array) -> None:
    """Hand the loss `name` of this layer to the transformer, which gives it to the objective."""
    module.sow("losses", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: jnp.zeros(()))
