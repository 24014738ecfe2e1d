"""What the places of a model hold, in two numbers a token and head: the largest size, and a checksum of the bits.

They are small where the values are large, so that all places are read in one pass; the first that is not finite, or of
which two models have other bits, is then found on the host, in the order of computation.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.decode.layout import layers_apart, unstack
from lm.inspect.look import places
from lm.model.inputs import Inputs
from lm.model.scoring import MINUS_INFINITY
from lm.model.taps import CROSS, ENCODER, PLACES, Watch, axes
from lm.model.transformer import Params, Transformer
from lm.train.loss import map_chunks

OUTPUT = "output"  # logits or scores, which are no layer's
PATTERN = "BNTS"  # the axes of attention's logits and pattern
MOST_NUMBERS = 2**29  # of such an array of a layer: they are laid out whole, where kernels are not


class Summary(NamedTuple):
    """Of a place, [layers that have it, rows, tokens] or [.., heads]: the `largest` size of its numbers (infinite where
    one is not finite; what a mask hides is left out), and the `bits` of all, a checksum."""

    largest: Any
    bits: Any


class Spot(NamedTuple):
    """A value in a model: a place of a `layer` (-1: of none), of a row's token, and of a head (-1: it has none)."""

    place: str
    layer: int
    row: int
    token: int
    head: int

    def __str__(self) -> str:
        """In words."""
        where = f"in row {self.row} at token {self.token}"
        if self.place == OUTPUT:
            return f"the output {where}"
        meaning = PLACES.get(self.place.removeprefix(ENCODER).removeprefix(CROSS), PLACES["resid_mid"])[1]
        head = f", head {self.head}" if self.head >= 0 else ""
        return f"{self.place} ({meaning.partition(';')[0]}) of layer {self.layer}{head}, {where}"


def summarize(letters: str, x: jax.Array, heads: int = 0) -> Summary:
    """The summary [rows, tokens] or [rows, tokens, heads] of the value x of one layer, whose axes have these `letters`;
    of fewer than so many `heads`, with zeros for the others."""
    token = "T" if "T" in letters else "S"
    kept = [letters.index(letter) for letter in ("B", token, "N", "K") if letter in letters]
    rest = [i for i in range(x.ndim) if i not in kept]
    x = jnp.transpose(x, [*kept, *rest]).reshape(*(x.shape[i] for i in kept), -1)
    size = jnp.where(jnp.isfinite(x), jnp.abs(x), jnp.inf).astype(jnp.float32)
    if letters == PATTERN:
        size = jnp.where(x <= MINUS_INFINITY / 2, 0, size)
    word = jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32
    words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    weights = 2 * jnp.arange(x.shape[-1], dtype=jnp.uint32) + 1
    found = Summary(size.max(-1), (words * weights).sum(-1, dtype=jnp.uint32))
    missing = max(0, heads - x.shape[-2]) if len(kept) > 2 else 0
    return jax.tree.map(lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, missing)]), found) if missing else found


def summaries(model: Transformer, params: Params, inputs: Inputs, key: jax.Array | None = None) -> dict[str, Summary]:
    """The summary of each place of the model that these inputs meet, and of its output; without attention's logits and
    pattern where a layer has more than MOST_NUMBERS of them. Traced.

    `key` switches dropout on."""
    most: dict[str, int] = {}  # layers of a hybrid have heads of their own
    for name, _, heads in _computed(replace(model, watch=None), inputs.encoder is not None):
        most[name] = max(heads, most.get(name, 0))
    (rows, length), keys = inputs.tokens.shape, inputs.encoder.tokens.shape[1] if inputs.encoder else 0
    numbers = {name: rows * heads * max(length, keys) ** 2 for name, heads in most.items() if axes(name) == PATTERN}
    read = {name: heads for name, heads in most.items() if numbers.get(name, 0) <= MOST_NUMBERS}
    reads = {name: partial(summarize, axes(name), heads=heads) for name, heads in read.items()}
    x, _, _, taps = replace(model, watch=Watch(reads)).hidden(params, inputs, key=key)

    def output(x: jax.Array) -> Summary:
        logits = model.cfg.output.logit_count(model.cfg.vocab)
        return summarize("BTV", model.logits(params, x) if logits else model.scores(params, x))

    return {**taps, OUTPUT: jax.tree.map(lambda a: a[None], map_chunks(output, model.compute.loss_chunk, x))}


def order(model: Transformer, encoder: bool = False) -> tuple[tuple[str, int], ...]:
    """(place, layer) in the order in which a model without a watch computes them, with its `encoder` or not; the
    output last."""
    return (*((name, layer) for name, layer, _ in _computed(model, encoder)), (OUTPUT, -1))


@cache
def _computed(model: Transformer, encoder: bool) -> tuple[tuple[str, int, int], ...]:
    """(place, layer, heads; 0 where it has none), in the order of computation: seen in an abstract run."""
    seen: list[tuple[str, int, int]] = []

    def noting(name: str) -> Any:
        head = next((i for i, letter in enumerate(axes(name)) if letter in "NK"), None)

        def edit(x: jax.Array, layer: int) -> jax.Array:
            seen.append((name, int(layer), 0 if head is None else x.shape[head]))
            return x

        return edit

    watch = Watch(edits={name: noting(name) for name in places(model, encoder)})
    apart, tokens = replace(layers_apart(model), watch=watch), jax.ShapeDtypeStruct((1, 2), "int32")
    inputs = Inputs(tokens, encoder=Inputs(tokens) if encoder else None)  # type: ignore[arg-type]

    def run(params: Params, inputs: Inputs) -> jax.Array:
        own = {"encoder": unstack(params["encoder"])} if "encoder" in params else {}
        return apart.hidden(unstack(params) | own, inputs).x

    jax.eval_shape(run, model.shapes(), inputs)
    return tuple(dict.fromkeys(seen))


def first_not_finite(found: Mapping[str, Summary], ordered: tuple[tuple[str, int], ...]) -> Spot | None:
    """The first value that is not finite, of its place the first row, token and head; None where all are."""
    return next(_spots({name: ~np.isfinite(one.largest) for name, one in found.items()}, ordered), None)


def first_difference(
    a: Mapping[str, Summary], b: Mapping[str, Summary], ordered: tuple[tuple[str, int], ...]
) -> Spot | None:
    """The first value whose bits differ in two models, among the places that have one shape in both; None where none
    does."""
    both = {name: (a[name].bits, b[name].bits) for name in a if name in b and a[name].bits.shape == b[name].bits.shape}
    return next(_spots({name: np.asarray(x != y) for name, (x, y) in both.items()}, ordered), None)


def by_layer(found: Mapping[str, Any], ordered: tuple[tuple[str, int], ...]) -> Iterator[tuple[str, int, Any]]:
    """(place, layer, its part of what was found [layers, ...]) of each place that was, in the order of computation."""
    layers = {name: [layer for place, layer in ordered if place == name] for name in found}
    for name, layer in ordered:
        if name in found:
            yield name, layer, found[name][layers[name].index(layer)]


def _spots(marked: Mapping[str, np.ndarray], ordered: tuple[tuple[str, int], ...]) -> Iterator[Spot]:
    """The first of the marked values of each place that has any."""
    for name, layer, one in by_layer(marked, ordered):
        if one.any():
            row, token, *head = (int(i) for i in np.argwhere(one)[0])
            yield Spot(name, layer, row, token, head[0] if head else -1)
