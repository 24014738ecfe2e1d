"""A stack of layers, run by a scan over repetitions of its pattern.

Layers of one place in the pattern share their shapes and are stacked on a leading axis: slot p of a pattern of P kinds
holds layers p, p + P, p + 2P, ... So one repetition is traced and compiled, whatever the depth.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lm.model.attention import Cache
from lm.model.compute import Compute
from lm.model.config import LayerKind, ModelConfig
from lm.model.parts import dropout
from lm.model.products import in_memory, summed_once
from lm.model.scoring import Mask
from lm.sharding.shardings import DEVICE, HOST
from lm.sharding.tracing import constrain, has_host_memory, platform

Params = dict[str, Any]
Losses = dict[str, jax.Array]


def policy(compute: Compute) -> Any:
    """What jax.checkpoint is to keep of a layer, where `compute.remat` is not "nothing".

    Raises ValueError where it names what is to wait on the host and the backend cannot."""
    if compute.saved is None:
        return jax.checkpoint_policies.nothing_saveable
    kept, offloaded = compute.saved
    if not offloaded:
        return jax.checkpoint_policies.save_only_these_names(*kept)
    if not has_host_memory():
        raise ValueError(
            f"compute.remat={compute.remat!r}: {platform()} has no memory of the host's that a device can "
            "read: choose minimal or full"
        )
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=kept, names_which_can_be_offloaded=offloaded, offload_src=DEVICE, offload_dst=HOST
    )


class Memory(NamedTuple):
    """What a decoder reads of its encoder: the output [B, S, D] (None where the cache has its keys and values), and who
    may look at it."""

    x: jax.Array | None
    mask: Mask


class Context(NamedTuple):
    """What all layers of a stack share: the mask, each kind's table of positions, the bias by distance, the memory."""

    mask: Mask
    tables: tuple[tuple[jax.Array, ...], ...]
    bias: jax.Array | None = None
    memory: Memory | None = None


class Layer(nn.Module):
    """One layer: attention, in a decoder with an encoder also cross-attention, and feed-forward, joined as `cfg.wiring`
    says."""

    cfg: ModelConfig
    kind: LayerKind
    compute: Compute

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, table: tuple[jax.Array, ...], cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        cfg, kind, compute = self.cfg, self.kind, self.compute
        assert kind.positions is not None and kind.ffn is not None
        positions, ffn, mask = kind.positions, kind.ffn, replace(context.mask, window=kind.window)

        def attend(h: jax.Array) -> jax.Array:
            nonlocal cache
            y, cache = cfg.attention(self, h, mask, positions, table, context.bias, cache, compute, cfg.layers)
            return dropout(self, joined(y), cfg.dropout)

        def cross(h: jax.Array) -> jax.Array:
            nonlocal cache
            assert context.memory is not None
            y, cache = cfg.attention.cross(self, h, *context.memory, cache, compute, cfg.layers)
            return dropout(self, joined(y), cfg.dropout)

        def feed(h: jax.Array) -> jax.Array:
            y = checkpoint_name(ffn(self, h, compute, cfg.layers), "mlp_out")
            return dropout(self, joined(y), cfg.dropout)

        both = {"cross": cross} if context.memory is not None else {}
        x = cfg.wiring(self, cfg.norm, x, {"attention": attend, **both, "ffn": feed})
        return joined(x), cache


def joined(x: jax.Array) -> jax.Array:
    """x [B, T, D], the residual stream or what is added to it, laid out as that is."""
    return constrain(summed_once(x), "batch", "stream", "act_embed")


@dataclass(frozen=True)
class Stack:
    """The layers of `cfg`, computed as `compute` says."""

    cfg: ModelConfig
    compute: Compute

    @property
    def slots(self) -> list[range]:
        """The layers of each slot."""
        return [range(p, self.cfg.layers, len(self.cfg.pattern)) for p in range(len(self.cfg.pattern))]

    def boxed(self, key: jax.Array, dtype: Any) -> Params:
        """Fresh parameters {slot: {name: [layers of the slot, ...]}}, with the logical axes of one layer."""
        x = jnp.zeros((1, 1, self.cfg.width), dtype)
        tables = self.tables(jnp.zeros((1, 1), jnp.int32))
        memory = Memory(x, Mask(causal=False)) if self.cfg.encoder_layers else None
        context = Context(Mask(), tables, None, memory)

        def slot(p: int) -> Any:
            layer = Layer(self.cfg, self.cfg.kinds[p], self.compute)
            # a key a layer, by its number: a deeper model starts with the same first layers
            keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.array(self.slots[p]))
            return jax.vmap(lambda k: layer.init(k, x, context, tables[p], None)["params"])(keys)

        return {str(p): slot(p) for p in range(len(self.slots))}

    def tables(self, positions: jax.Array) -> tuple[tuple[jax.Array, ...], ...]:
        """Each kind's table for positions [B, T], in memory: a compiler would work its sines into every layer."""
        size = self.cfg.attention.head_dim
        tables = tuple(kind.positions.table(positions, size) for kind in self.cfg.kinds)  # type: ignore[union-attr]
        return jax.tree.map(in_memory, tables)

    def __call__(
        self, params: Params, x: jax.Array, context: Context, cache: Any = None, key: jax.Array | None = None
    ) -> tuple[jax.Array, Any, Losses]:
        """x [B, T, D] through all layers; the cache {slot: Cache} with this call's keys and values; the layers' own
        losses, means over the layers that have them."""
        P, repeats = len(self.cfg.pattern), self.cfg.layers // len(self.cfg.pattern)
        keys = None if key is None else jax.random.split(key, self.cfg.layers)
        slots = [
            (params[str(p)], None if cache is None else cache[str(p)], None if keys is None else keys[p::P])
            for p in range(P)
        ]

        def repetition(x: jax.Array, xs: Any) -> Any:
            outs = []
            for p, slot in enumerate(xs):
                x, out = self._layer(p, x, context, *slot)
                outs.append(out)
            return x, outs

        whole = jax.tree.map(lambda a: a[:repeats], slots)
        x, outs = jax.lax.scan(repetition, x, whole, unroll=self._unroll(repeats))
        if rest := self.cfg.layers % P:  # the layers after the last whole repetition
            tail = jax.tree.map(lambda a: a[repeats], slots[:rest])
            x, last = repetition(x, tail)
            joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), outs[:rest], last)
            outs = [*joined, *outs[rest:]]
        new = None if cache is None else {str(p): out[0] for p, out in enumerate(outs)}
        return x, new, _means([losses for _, losses in outs])

    def _unroll(self, repeats: int) -> int:
        unroll = self.compute.unroll // len(self.cfg.pattern)
        return repeats if self.compute.unroll == 0 else max(1, min(unroll, repeats))

    def _layer(self, p: int, x: jax.Array, context: Context, params: Params, cache: Any, key: Any) -> Any:
        """One layer of slot p: x, and (its cache, its losses)."""
        layer = Layer(self.cfg, self.cfg.kinds[p], self.compute)

        def run(x: jax.Array, params: Params, cache: Any, key: Any, context: Context) -> Any:
            rngs = {} if key is None else {"dropout": key}
            (x, cache), sown = layer.apply(
                {"params": params}, x, context, context.tables[p], cache, rngs=rngs, mutable=["losses"]
            )
            return x, (cache, dict(sown.get("losses", {})))

        if self.compute.remat != "nothing":
            run = jax.checkpoint(run, policy=policy(self.compute), prevent_cse=self.compute.unroll != 1)
        return run(x, params, cache, key, context)

    def empty_cache(self, batch: int, length: int, memory: int, dtype: Any) -> dict[str, Cache]:
        """Room for `length` tokens a sequence in every layer: [layers, B, S, K, H] twice a slot, and with an encoder
        for the keys and values of `memory` of its tokens."""
        a = self.cfg.attention

        def room(layers: int, length: int) -> jax.Array:
            return jnp.zeros((layers, batch, length, a.kv, a.head_dim), dtype)

        return {
            str(p): Cache(
                room(len(numbers), length),
                room(len(numbers), length),
                *((room(len(numbers), memory),) * 2 if self.cfg.encoder_layers else ()),
            )
            for p, numbers in enumerate(self.slots)
        }


def _means(losses: list[Losses]) -> Losses:
    """Of stacks of losses {name: [layers]}, one a slot, the mean of each over all layers."""
    names = {name: None for slot in losses for name in slot}
    return {name: jnp.concatenate([slot[name] for slot in losses if name in slot]).mean() for name in names}
