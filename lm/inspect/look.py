"""Looking inside a model: what its places hold for some tokens, and what it says when they are edited."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax

from lm.inspect.edits import Edit, by_place
from lm.model.inputs import Inputs
from lm.model.taps import ENCODER, Watch, names
from lm.model.transformer import Params, Transformer
from lm.value import suggest


class Look(NamedTuple):
    """The logits [B, T, V], and of each place that was asked for its values, [layers that have it, ...]."""

    logits: jax.Array
    taps: Mapping[str, jax.Array]


def whole(x: jax.Array) -> jax.Array:
    """x itself: what `look` reads of a place."""
    return x


def watched(model: Transformer, taps: Sequence[str] = (), edits: Sequence[Edit] = ()) -> Transformer:
    """`model`, whose `hidden` reads the places `taps` and computes with `edits`. Raises ValueError for a place that no
    model has."""
    return replace(model, watch=Watch(dict.fromkeys(taps, whole), by_place(edits)))


def look(
    model: Transformer,
    params: Params,
    inputs: Inputs | jax.Array,
    taps: Sequence[str] = (),
    edits: Sequence[Edit] = (),
) -> Look:
    """What the model says, and has at the places `taps`, with `edits`. Pure: to be traced by jit, grad and vmap.

    Args:
      model: the model.
      params: its parameters.
      inputs: the tokens [B, T], and what belongs to them.
      taps: the places to read, of `places(model)`.
      edits: what is changed, in order.

    Raises ValueError for a place that this model has not: it lists those that it has."""
    known = places(replace(model, watch=None), isinstance(inputs, Inputs) and inputs.encoder is not None)
    for name in (*taps, *(edit.place for edit in edits)):
        if name not in known:
            kind = "this model has no tap" if name in names() else "unknown tap"
            raise ValueError(f"{kind} {name!r}: {suggest(name, known)}")
    for edit in edits:
        edit.check(model.cfg.encoder_config.layers if edit.place.startswith(ENCODER) else model.cfg.layers)
    hidden = watched(model, taps, edits).hidden(params, inputs)
    return Look(model.logits(params, hidden.x), hidden.taps)


@cache
def places(model: Transformer, encoder: bool = False) -> tuple[str, ...]:
    """The places that this model has (with what its `encoder` and the attention to it have), in the order in which they
    are computed: seen in an abstract run, so that none is said to be there that is not."""
    tokens = jax.ShapeDtypeStruct((1, 2), "int32")
    inputs = Inputs(tokens, encoder=Inputs(tokens) if encoder else None)  # type: ignore[arg-type]
    reads = jax.eval_shape(partial(_reads, model), model.shapes(), inputs)
    return tuple(name for name in names() if name in reads)


def _reads(model: Transformer, params: Params, inputs: Inputs) -> dict[str, Any]:
    numbers = dict.fromkeys(names(), jax.numpy.sum)  # of arrays of several shapes
    return dict(replace(model, watch=Watch(numbers)).hidden(params, inputs).taps)
