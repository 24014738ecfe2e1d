"""Experts: a feed-forward of which each token uses a few of many copies, chosen by a router (1701.06538).

No token is dropped: the tokens are sorted by expert and each expert multiplies its own run of them, whatever its length
(lm/model/ragged.py, 2211.15841).
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lm.bounds import Count, NonNegative, Sentinel
from lm.model.compute import Compute
from lm.model.parts import FeedForward, add_bias, fan_in, param, zeros
from lm.model.products import cast
from lm.model.ragged import ragged
from lm.model.taps import tap
from lm.sharding.collectives import all_gather, axis_index, per_device, psum, psum_scatter
from lm.sharding.tracing import mesh_axes_for


@dataclass(frozen=True)
class Experts(FeedForward):
    """`experts` feed-forwards of inner width `mlp`, of which each token takes the `top_k` with the largest router
    logits, weighted by the softmax over those (`renormalize`) or over all.

    `load_balance_weight` is that of the load-balancing loss (2101.03961, equation 4, summed over the choices as Mixtral
    has it), `router_z_weight` that of the router's z-loss (2202.08906, equation 5). Both are statistics of all
    tokens of a batch, on all devices and without padding; with micro-batches (`accumulate`), of each micro-batch."""

    experts: Count = 8
    top_k: Count = 2
    router_bias: bool = False
    renormalize: bool = True
    load_balance_weight: Annotated[NonNegative, Sentinel(0, "no such loss")] = 0.0
    router_z_weight: Annotated[NonNegative, Sentinel(0, "no such loss")] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"ffn.top_k={self.top_k} of ffn.experts={self.experts}: expected 1 to {self.experts}")

    def __call__(
        self, module: nn.Module, x: jax.Array, compute: Compute, depth: int, is_token: jax.Array | None = None
    ) -> jax.Array:
        return self._routed(module, x, *self._route(module, x, is_token), compute, depth)

    def _routed(
        self, module: nn.Module, x: jax.Array, weights: jax.Array, expert: jax.Array, compute: Compute, depth: int
    ) -> jax.Array:
        """What the experts of tokens x [B, T, D], by number and `weights` [B, T, C], make of them: [B, T, D]."""
        D, E, F = x.shape[-1], self.experts, self.mlp
        arrays: dict[str, jax.Array] = {}
        axes: dict[str, tuple[str, ...]] = {}
        for name in (*self.inputs, "down"):
            inside, outside, ends = (F, D, ("mlp", "embed")) if name == "down" else (D, F, ("embed", "mlp"))
            axes[name], scale = ("experts", *ends), (2 * depth) ** -0.5 if name == "down" else 1.0
            w = param(module, name, (E, inside, outside), axes[name], fan_in(inside, scale))
            arrays[name] = cast(w, compute.matmul, compute)
            if self.bias:
                axes[f"{name}_bias"] = ("experts", ends[1])
                arrays[f"{name}_bias"] = param(module, f"{name}_bias", (E, outside), axes[f"{name}_bias"], zeros)
        if module.is_initializing():  # nothing is read of it, and not every ragged product is one of several layers
            return x
        tokens = ("expert_batch", "seq", "expert_embed"), *[("expert_batch", "seq", None)] * 2
        run = per_device(partial(self._mix, compute, axes), (*tokens, *axes.values()), tokens[0])
        return run(x, weights, expert, *arrays.values())

    @property
    def active_mlp(self) -> int:
        return self.top_k * self.mlp

    def sizes(self) -> dict[str, tuple[str, int]]:
        return super().sizes() | {"experts": ("experts", self.experts)}

    def _mix(
        self,
        compute: Compute,
        axes: dict[str, tuple[str, ...]],
        x: jax.Array,
        weights: jax.Array,
        expert: jax.Array,
        *arrays: jax.Array,
    ) -> jax.Array:
        """The weighted outputs [B, T, D] of the experts of tokens x [B, T, D]: of all of them, or on a mesh of one
        device's. Experts stay where they are, and what their weights are split over besides is gathered; the tokens of
        all devices along the expert axis come to each, which adds what its own experts make of them (all-gather and
        reduce-scatter: a token travels once, however many experts it has)."""
        D, F, C = x.shape[-1], arrays[-1 - self.bias].shape[1], self.top_k
        transposed = {
            "down": (axes["down"][0], *axes["down"][:0:-1])
        }  # [E, D, F]: gathered on D, the last would be copied
        arrays = tuple(w.swapaxes(1, 2) if n in transposed else w for n, w in zip(axes, arrays, strict=True))
        whole = {n: _gathered(w, a, D) for (n, a), w in zip((axes | transposed).items(), arrays, strict=True)}
        mine = whole["down"].shape[0]  # experts, of which the first has number `first`
        split = mine < self.experts
        first = axis_index("expert") * mine if split else 0
        if split:
            x, weights, expert = (all_gather(a, "expert", 0) for a in (x, weights, expert))
        own = expert.reshape(-1) - first
        own = jnp.where((own >= 0) & (own < mine), own, mine)
        order = jnp.argsort(own)  # stable: a token's place depends on the tokens before it alone
        sizes = jnp.bincount(own, length=mine + 1)[:mine].astype(jnp.int32)
        rows, owner = x.reshape(-1, D)[order // C], own[order]

        def product(name: str, rows: jax.Array) -> jax.Array:
            rows = rows.astype(compute.matmul)
            if split:  # the rows of other devices' experts
                rows = jnp.where((owner < mine)[:, None], rows, 0)
            y = ragged(rows, whole[name], sizes, compute, name in transposed)
            if self.bias:
                bias = whole[f"{name}_bias"].astype(y.dtype)
                if name == "down" and F < self.mlp:  # the sum over tensor is to have it once
                    bias = jnp.where(axis_index("tensor") == 0, bias, 0)
                y = y + bias[jnp.minimum(owner, mine - 1)]
            if split:
                y = jnp.where((owner < mine)[:, None], y, 0)
            return checkpoint_name(y, "mlp_out" if name == "down" else "mlp_in")

        hidden = self.inner(*(product(name, rows) for name in self.inputs))
        back = product("down", hidden)[jnp.argsort(order)].reshape(*expert.shape, D)  # in the order of its choices
        y = jnp.einsum("btcd,btc->btd", back, weights.astype(back.dtype))
        if split:
            y = psum_scatter(y, "expert", 0)
        return psum(y, "tensor") if F < self.mlp else y

    def _route(self, module: nn.Module, x: jax.Array, is_token: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The weights and numbers [B, T, C] of the experts of tokens x [B, T, D], in float32."""
        D, E = x.shape[-1], self.experts
        router = param(module, "router", (D, E), ("embed", None), fan_in(D))
        logits = x.astype(jnp.float32) @ router.astype(jnp.float32)
        if self.router_bias:
            logits = add_bias(module, "router_bias", logits, (None,))
        logits = tap(module, "router_logits", logits)
        weights, expert = self._choose(module, logits, is_token)
        mean = partial(mean_of_tokens, is_token=is_token)
        if self.load_balance_weight:
            share = mean(jax.nn.one_hot(expert, E).sum(2))  # of the tokens that each expert gets: no gradient
            router_probs = mean(self.router_probs(logits))
            add_aux_loss(module, "balance", self.load_balance_weight * E * (share * router_probs).sum())
        if self.router_z_weight:
            z = jax.nn.logsumexp(logits, axis=-1)
            add_aux_loss(module, "router_z", self.router_z_weight * mean(jnp.square(z)))
        return weights, expert

    def _choose(self, module: nn.Module, logits: jax.Array, is_token: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The weights and numbers [B, T, C] of the experts of tokens with router logits [B, T, E]."""
        top, expert = jax.lax.top_k(logits, self.top_k)
        log_z = jax.nn.logsumexp(top if self.renormalize else logits, axis=-1, keepdims=True)
        return jnp.exp(top - log_z), expert

    def router_probs(self, logits: jax.Array) -> jax.Array:
        """What the load-balancing loss takes for the probabilities of the experts, [B, T, E]."""
        return jax.nn.softmax(logits)


def mean_of_tokens(values: jax.Array, is_token: jax.Array | None) -> jax.Array:
    """The mean of values [B, T, ...] over tokens that are not padding."""
    if is_token is None:
        return values.mean((0, 1))
    mask = is_token.astype(values.dtype)
    return jnp.einsum("bt,bt...->...", mask, values) / jnp.maximum(mask.sum(), 1)


def _gathered(w: jax.Array, axes: tuple[str, ...], width: int) -> jax.Array:
    """A device's weights with the whole model width, over which they may be split."""
    if "embed" not in axes or w.shape[axis := axes.index("embed")] == width:
        return w
    return all_gather(w, mesh_axes_for(axes, "embed"), axis)


def add_aux_loss(module: nn.Module, name: str, value: jax.Array) -> None:
    """Hand the loss `name` of this layer to the transformer, which gives it to the objective."""
    module.sow("losses", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: jnp.zeros(()))
