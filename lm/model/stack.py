"""A stack of layers, run by a scan over repetitions of its pattern.

Layers of one place in the pattern share their shapes and are stacked on a leading axis: slot p of a pattern of P kinds
holds layers p, p + P, p + 2P, ..., counted from the first that the pattern says. So one repetition is traced and
compiled, whatever the depth; the first layers, where they are of other kinds, come before it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lm.model.cache import TokenCache
from lm.model.compute import Compute
from lm.model.config import ModelConfig, Slot
from lm.model.inputs import EncoderOutput
from lm.model.mixer import LayerInputs
from lm.model.parts import dropout
from lm.model.products import materialize, sum_gradient_once
from lm.model.scoring import Mask
from lm.model.taps import Watch, tap
from lm.sharding.shardings import DEVICE, HOST
from lm.sharding.tracing import constrain, has_host_memory

Params = dict[str, Any]
Losses = dict[str, jax.Array]
Taps = dict[str, Any]
SHARED_KV = "shared_kv"
SOWN = ["losses", "taps", SHARED_KV]


def remat_policy(compute: Compute) -> Any:
    """What jax.checkpoint is to keep of a layer, where `compute.remat` is not "nothing".

    Raises ValueError where it names what is to wait on the host and the backend cannot."""
    if compute.saved is None:
        return jax.checkpoint_policies.nothing_saveable
    kept, offloaded = compute.saved
    if not offloaded:
        return jax.checkpoint_policies.save_only_these_names(*kept)
    if not has_host_memory():
        raise ValueError(
            f"compute.remat={compute.remat!r}: {compute.backend} has no memory of the host's that a device can "
            "read: choose minimal or full"
        )
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=kept, names_which_can_be_offloaded=offloaded, offload_src=DEVICE, offload_dst=HOST
    )


class Shared(NamedTuple):
    """What all layers of a stack share: the mask, each slot's table of positions, the bias by distance, the encoder's
    output, the distances of a bias (LayerInputs); what each layer is given of the tokens, `token_inputs` [L, B, T, P];
    and what first layers leave to later ones."""

    mask: Mask
    tables: dict[str, tuple[jax.Array, ...]]
    bias: jax.Array | None = None
    encoder: EncoderOutput | None = None
    distances: jax.Array | None = None
    token_inputs: jax.Array | None = None
    shared_kv: dict[int, Any] = {}

    def of(self, name: str, slot: Slot, own: jax.Array | None = None, keeps: bool = False) -> LayerInputs:
        """What a layer of the slot `name` reads of it, and of its `own`."""
        mask = replace(self.mask, window=slot.window, window_after=slot.window_after)
        common = self.bias, self.encoder, self.distances
        return LayerInputs(mask, self.tables[name], *common, own, self.shared_kv, keeps)


class Layer(nn.Module):
    """One layer: its mixer, in a decoder with an encoder also cross-attention, and feed-forward, joined as the slot's
    wiring says."""

    cfg: ModelConfig
    slot: Slot
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, inputs: LayerInputs, cache: Any) -> tuple[jax.Array, Any]:
        cfg, slot, compute = self.cfg, self.slot, self.compute
        x = tap(self, "resid_pre", x)
        bias = slot.positions.layer_bias(self, inputs.bias, inputs.distances, slot.mixer.query_heads, cfg.causal)
        inputs = inputs._replace(bias=bias)

        def mix(h: jax.Array) -> jax.Array:
            nonlocal cache
            y, cache = slot.mixer(self, h, inputs, slot.positions, cache, compute, cfg.layers)
            return dropout(self, constrain_residual(y, compute), cfg.dropout)

        def cross(h: jax.Array) -> jax.Array:
            nonlocal cache
            assert inputs.encoder is not None
            y, cache = slot.mixer.cross(self, h, inputs.encoder, cache, compute, cfg.layers)
            return dropout(self, constrain_residual(y, compute), cfg.dropout)

        def feed(h: jax.Array) -> jax.Array:
            y = checkpoint_name(slot.ffn(self, h, compute, cfg.layers, inputs.mask.is_token), "mlp_out")
            return dropout(self, constrain_residual(y, compute), cfg.dropout)

        others = {"cross": cross} if inputs.encoder is not None and not slot.mixer.merges_encoder else {}
        if inputs.own is not None:
            others["token"] = partial(self.token_branch, own=inputs.own)
        x = slot.wiring(self, cfg.norm, x, {"attention": mix, **others, "ffn": feed})
        return constrain_residual(x, compute), cache

    def token_branch(self, x: jax.Array, own: jax.Array) -> jax.Array:
        """What the residual stream x [B, T, D] gets of what the layer is given of its tokens, `own` [B, T, P]."""
        y = self.slot.wiring.token_branch(self, x, own, self.compute)
        return dropout(self, constrain_residual(y, self.compute), self.cfg.dropout)


class Final(nn.Module):
    """The residual stream [B, T, D] after the last layer -> the same, through the norm before the output, if any."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.cfg.wiring.final(self, self.cfg.norm, x)


def constrain_residual(x: jax.Array, compute: Compute) -> jax.Array:
    """x [B, T, D], the residual stream or what is added to it, laid out as that is."""
    return constrain(sum_gradient_once(x, compute), "batch", "residual_seq", "act_embed")


@dataclass(frozen=True)
class Stack:
    """The layers of `cfg`, computed as `compute` says; `watch` reads and edits values inside them."""

    cfg: ModelConfig
    compute: Compute
    watch: Watch | None = None

    def boxed(self, key: jax.Array, dtype: Any) -> Params:
        """Fresh parameters {slot: {name: [layers of the slot, ...]}}, with the logical axes of one layer."""
        cfg, x = self.cfg, jnp.zeros((1, 1, self.cfg.width), dtype)
        seen = jnp.zeros((1, 1, cfg.encoder_config.width), dtype) if cfg.has_encoder else None
        encoder = None if seen is None else EncoderOutput(seen, Mask(causal=False))
        shared = Shared(Mask(), self.tables(jnp.zeros((1, 1), jnp.int32)), None, encoder, jnp.zeros(1, jnp.int32))
        P = cfg.wiring.token_size
        own = jnp.zeros((1, 1, P), dtype) if P else None

        def born(name: str, slot: Slot) -> Any:
            layer, inputs = Layer(cfg, slot, self.compute), shared.of(name, slot, own)
            if (source := slot.mixer.reads_layer) is not None:
                inputs = inputs._replace(shared_kv={source: slot.mixer.example_of_shared(dtype)})
            # a key a layer, by its number: a deeper model starts with the same first layers
            keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.array(slot.layers))
            return jax.vmap(lambda k: layer.init(k, x, inputs, None)["params"])(keys)

        return {name: born(name, slot) for name, slot in cfg.slots.items()}

    def tables(self, positions: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
        """Each slot's table for positions [B, T], in memory: a compiler would work its sines into every layer."""
        tables = {
            name: slot.positions.table(positions, slot.mixer.rotary_dim) if slot.mixer.rotary_dim else ()
            for name, slot in self.cfg.slots.items()
        }
        return jax.tree.map(partial(materialize, compute=self.compute), tables)

    def __call__(
        self, params: Params, x: jax.Array, shared: Shared, caches: Any = None, key: jax.Array | None = None
    ) -> tuple[jax.Array, Any, Losses, Taps]:
        """x [B, T, D] through all layers.

        Args:
          params: {slot: {name: [layers of the slot, ...]}}, or where layers are unrolled {slot: a list of one tree a
            layer}.
          x: the residual stream, [B, T, D].
          shared: what the layers share.
          caches: as `empty_caches` makes them; None while training.
          key: of dropout; None for none.

        Returns: the residual stream; the caches with this call's tokens; the layers' own losses, means over the layers
        that have them; what `watch` reads, of the layers that have it, in their order."""
        cfg, (first, P) = self.cfg, (len(self.cfg.first_layers), len(self.cfg.pattern))
        repeats, rest = divmod(cfg.layers - first, P)
        keys = None if key is None else jax.random.split(key, cfg.layers)
        sown: dict[str, list[Any]] = {name: [] for name in cfg.slots}
        given, shared = shared.token_inputs, shared._replace(token_inputs=None)

        def one(name: str, j: int, x: jax.Array, caches: Any) -> tuple[jax.Array, Any]:
            """Layer j of a slot."""
            nonlocal shared
            own = params[name][j] if isinstance(params[name], list) else jax.tree.map(lambda a: a[j], params[name])
            layer = cfg.slots[name].layers[j]
            own_key, own_given = (None if every is None else every[layer] for every in (keys, given))
            x, caches, each = self._layer(name, j, x, shared, own, caches, own_key, own_given)
            if kept := each.pop(SHARED_KV, None):
                shared = shared._replace(shared_kv={**shared.shared_kv, layer: kept["kv"]})
            sown[name].append(jax.tree.map(lambda a: a[None], each))
            return x, caches

        def repetition(carry: Any, xs: Any) -> Any:
            (x, caches), (slots, j), outs = carry, xs, []
            for p, (own, own_key, own_given) in enumerate(slots):
                x, caches, each = self._layer(str(p), j, x, shared, own, caches, own_key, own_given)
                outs.append(each)
            return (x, caches), outs

        for i in range(first):
            x, caches = one(f"first{i}", 0, x, caches)
        apart = any(isinstance(slot, list) for slot in params.values())
        if self.compute.unroll == 0 and (apart or caches is not None):
            for i in range(repeats * P):
                x, caches = one(str(i % P), i // P, x, caches)
        else:
            by_slot = [
                (params[str(p)], *(None if every is None else every[first + p :: P] for every in (keys, given)))
                for p in range(P)
            ]
            numbers = None if caches is None and self.watch is None else jnp.arange(repeats)
            xs = jax.tree.map(lambda a: a[:repeats], by_slot), numbers
            (x, caches), outs = jax.lax.scan(repetition, (x, caches), xs, unroll=self._unroll(repeats))
            for p, each in enumerate(outs):
                sown[str(p)].append(each)
        for p in range(rest):  # the layers after the last whole repetition
            x, caches = one(str(p), repeats, x, caches)
        losses, taps = ({name: _values(pieces, kind) for name, pieces in sown.items()} for kind in ("losses", "taps"))
        return x, caches, _means(list(losses.values())), self._by_layer(taps)

    def _unroll(self, repeats: int) -> int:
        unroll = self.compute.unroll // len(self.cfg.pattern)
        return repeats if self.compute.unroll == 0 else max(1, min(unroll, repeats))

    @property
    def _sources(self) -> set[str]:
        """The slots whose layers leave keys and values to later ones."""
        return {f"first{slot.mixer.reads_layer}" for slot in self.cfg.slots.values()}

    def _layer(
        self, name: str, j: Any, x: jax.Array, shared: Shared, params: Params, caches: Any, key: Any, given: Any = None
    ) -> Any:
        """Layer j of the slot `name`, `given` its part of the tokens: x, the caches with its own, its losses and taps,
        and what it leaves to others."""
        slot = self.cfg.slots[name]
        layer = Layer(self.cfg, slot, self.compute)

        watch = {} if self.watch is None else self.watch.places(slot.layers.start + slot.layers.step * j)

        keeps = name in self._sources

        def run(x: jax.Array, params: Params, cache: Any, key: Any, shared: Shared, given: Any) -> Any:
            rngs = {} if key is None else {"dropout": key}
            inputs = shared.of(name, slot, given, keeps)
            (x, cache), sown = layer.apply(
                {"params": params, "watch": watch}, x, inputs, cache, rngs=rngs, mutable=SOWN
            )
            return x, cache, {kind: dict(values) for kind, values in sown.items()}

        if self.compute.remat != "nothing":
            run = jax.checkpoint(run, policy=remat_policy(self.compute), prevent_cse=self.compute.unroll != 1)
        x, cache, sown = run(x, params, self._read(caches, name, j), key, shared, given)
        return x, _write(caches, name, j, cache), sown

    def _read(self, caches: Any, name: str, j: Any) -> Any:
        """The cache of layer j of a slot; j is traced where they are stacked. On accelerators the layer writes its new
        tokens into the stack; XLA's CPU compiler would copy that."""
        if caches is None or isinstance(caches[name], list):
            return None if caches is None else caches[name][j]
        slot = caches[name]
        if self.compute.backend != "cpu" and isinstance(slot, TokenCache) and not self.cfg.has_encoder:
            return replace(slot, layer=jnp.asarray(j))
        return jax.tree.map(lambda a: a[j], slot)

    def _by_layer(self, slots: dict[str, list[Taps]]) -> Taps:
        """Of the taps {name: [layers, ...]} of each slot, those of all layers in their order."""
        slots = {slot: pieces for slot, pieces in slots.items() if pieces}
        have = {name: [s for s in slots if name in slots[s][0]] for s in slots for name in slots[s][0]}

        def joined(name: str) -> Any:
            parts = [piece[name] for slot in have[name] for piece in slots[slot]]
            order = np.argsort([i for slot in have[name] for i in self.cfg.slots[slot].layers])
            if len({str(jax.tree.map(lambda a: a.shape[1:], part)) for part in parts}) > 1:
                raise ValueError(f"{name} is of another shape in some layers: read a number of it, or edit it alone")
            every = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
            return every if (np.diff(order) > 0).all() else jax.tree.map(lambda a: a[order], every)

        return {name: joined(name) for name in have}

    def empty_caches(self, rows: int, length: int, encoder_length: int, rings: bool = True) -> dict[str, Any]:
        """Room for `length` tokens a row in every layer (with `rings`, in a windowed one for its window), and with an
        encoder for `encoder_length` of its tokens, in the dtype of activations: {slot: a list of one tree a layer where
        layers are unrolled, else trees stacked}. (XLA's CPU back end copies a stacked cache each step, NOTES.md.)"""
        caches: dict[str, Any] = {}
        for name, slot in self.cfg.slots.items():
            all_kept = slot.positions.biased or not rings  # a bias by distance is laid over all of them
            window = 0 if all_kept else slot.window
            one = slot.mixer.empty_cache(rows, length, encoder_length, window, self.compute.dtype)
            layers = len(slot.layers)
            unrolled = self.compute.unroll == 0
            caches[name] = [one] * layers if unrolled else jax.tree.map(lambda a, n=layers: jnp.stack([a] * n), one)
        return caches


def _write(caches: Any, name: str, j: Any, cache: Any) -> Any:
    """`caches` with that of layer j of a slot."""
    if caches is None:
        return None
    if isinstance(caches[name], list):
        return {**caches, name: [*caches[name][:j], cache, *caches[name][j + 1 :]]}
    if isinstance(cache, TokenCache) and cache.layer is not None:
        return {**caches, name: replace(cache, layer=None)}
    return {**caches, name: jax.tree.map(lambda a, new: a.at[j].set(new.astype(a.dtype)), caches[name], cache)}


def _values(pieces: list[Any], kind: str) -> list[dict[str, Any]]:
    """What the layers of a slot have sown of one kind."""
    return [piece[kind] for piece in pieces if kind in piece]


def _means(slots: list[list[Losses]]) -> Losses:
    """Of the losses {name: [layers]} of each slot, the mean of each over all layers."""
    pieces = [piece for slot in slots for piece in slot]
    names = {name: None for piece in pieces for name in piece}
    return {name: jnp.concatenate([piece[name] for piece in pieces if name in piece]).mean() for name in names}
