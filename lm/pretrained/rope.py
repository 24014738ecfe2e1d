"""Rotary positions in config.json: theta and scaling, in rope_parameters (transformers 5) or rope_scaling (4)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lm.model.positions import PartialRotary, Rotary
from lm.model.scaling import Dynamic, Linear, Llama3, LongRoPE, Scaling, YaRN
from lm.pretrained.fields import Fields


class Scaled(NamedTuple):
    """A scaling, and the tokens of one sequence that it is for."""

    scaling: Scaling
    context: int


ReadScaling = Callable[[Fields, int], Scaled]  # (fields, max_position_embeddings)


def _stretched(factor: float, context: int, original: int) -> int:
    """The tokens that a scaling is for: `context`, or `factor` times it where it was left at the `original`."""
    return int(context * max(1.0, factor)) if context == original else context


def _yarn(fields: Fields, context: int) -> Scaled:
    original = fields.integer("original_max_position_embeddings", context)
    factor = float(fields.number("factor", context / original, above=0))
    own, all_dim = fields.number("mscale", 0), fields.number("mscale_all_dim", 0)
    attention = mscale(factor, own) / mscale(factor, all_dim) if own and all_dim else 0.0
    scaling = YaRN(
        factor=factor,
        original_context=original,
        beta_fast=float(fields.number("beta_fast", 32.0, above=0)),
        beta_slow=float(fields.number("beta_slow", 1.0, above=0)),
        attention_factor=float(fields.number("attention_factor", attention, above=0)),
        truncate=fields.flag("truncate", "truncate" not in fields.values),  # null is false
    )
    return Scaled(scaling, _stretched(factor, context, original))


def mscale(factor: float, multiplier: float) -> float:
    """How much longer YaRN makes queries and keys for contexts `factor` times as long (2309.00071, section 3.4); the
    `multiplier` is DeepSeek's."""
    return 0.1 * multiplier * math.log(factor) + 1 if factor > 1 else 1.0


def _llama3(fields: Fields, context: int) -> Scaled:
    low = float(fields.number("low_freq_factor"))
    original = fields.integer("original_max_position_embeddings", context)
    scaling = Llama3(
        factor=float(fields.number("factor", above=0)),
        low_freq_factor=low,
        high_freq_factor=float(fields.number("high_freq_factor", above=low)),
        original_context=original,
    )
    return Scaled(scaling, _stretched(scaling.factor, context, original))


def _dynamic(fields: Fields, context: int) -> Scaled:
    # transformers scales the context of the config, and ignores original_max_position_embeddings here
    fields.expect("original_max_position_embeddings", context)
    factor = float(fields.number("factor", above=0))
    return Scaled(Dynamic(factor, context), int(context * factor))


def _linear(fields: Fields, context: int) -> Scaled:
    factor = float(fields.number("factor", above=0))
    original = fields.integer("original_max_position_embeddings", context)  # GGUF's alone
    return Scaled(Linear(factor), _stretched(factor, context, original))


def longrope(original: int) -> ReadScaling:
    """Phi-3's scaling, whose config has the `original` context beside the rotary parameters."""

    def read(fields: Fields, context: int) -> Scaled:
        fields.expect("original_max_position_embeddings", original)
        factor = float(fields.number("factor", context / original, above=0))
        size = longrope_size(factor, original)
        short, long = (_factors(fields, name) for name in ("short_factor", "long_factor"))
        size = float(fields.number("attention_factor", size, above=0))
        return Scaled(LongRoPE(short, long, original, size), context)

    return read


def longrope_size(factor: float, original: int) -> float:
    """How much longer LongRoPE makes queries and keys for contexts `factor` times the `original` (2402.13753)."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _factors(fields: Fields, name: str) -> tuple[float, ...]:
    found = fields.take(name)
    if not isinstance(found, list) or not all(type(x) in (int, float) and x > 0 for x in found):
        raise fields.unsupported(name, found, "a list of numbers above 0")
    return tuple(map(float, found))


SCALINGS: Mapping[str, ReadScaling] = {
    "default": lambda fields, context: Scaled(Scaling(), context),
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}


class Positions(NamedTuple):
    """Rotary positions, and the tokens of one sequence that they are for."""

    rotary: Rotary
    context: int


def read(fields: Fields, scalings: Mapping[str, ReadScaling] = SCALINGS, partial: bool = False) -> Positions:
    """The rotary positions of a config, of the `scalings` that its class has; `partial`: its class may turn a part of
    each head alone. Raises ValueError for parameters that are not supported."""
    given = parameters(fields)
    fraction = float(fields.number("partial_rotary_factor", 1.0, above=0)) if partial else None
    theta = fields.number("rope_theta", above=1)
    return rotary(fields, {} if given is None else given, theta, scalings, fraction)


def parameters(fields: Fields) -> dict[str, Any] | None:
    """The field rope_parameters, or rope_scaling as it was called before; None where both are missing or null. Raises
    ValueError where both are there and differ."""
    new, old = fields.take("rope_parameters"), fields.take("rope_scaling")
    for name, values in (("rope_parameters", new), ("rope_scaling", old)):
        if values is not None and not isinstance(values, dict):
            raise fields.unsupported(name, values, "an object")
    if not old:
        return new
    if new and _plain(new, fields) != _plain(old, fields):
        raise fields.unsupported("rope_scaling", old, f"rope_parameters, {new}")
    return dict(old)


def _plain(values: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    """Rotary parameters with the type and theta that they have by default, and without nulls."""
    default = {"rope_theta": fields.take("rope_theta"), "rope_type": values.get("type", "default")}
    return {k: v for k, v in {**default, **values}.items() if k != "type" and v is not None}


def rotary(
    config: Fields,
    values: Mapping[str, Any],
    theta: float,
    scalings: Mapping[str, ReadScaling] = SCALINGS,
    fraction: float | None = None,
) -> Positions:
    """Rotary positions from one dict of parameters in `config`, which says the context; `theta` and `fraction` are the
    defaults (None: whole heads are turned). Raises ValueError for parameters that are not supported."""
    fields = Fields({"rope_type": values.get("type", "default"), **values}, f"{config.file}: rope_parameters")
    fields.take("type", None)
    theta = float(fields.number("rope_theta", theta, above=1))
    part = 1.0 if fraction is None else float(fields.number("partial_rotary_factor", fraction, above=0))
    scaled = fields.choose("rope_type", scalings)(fields, config.integer("max_position_embeddings"))
    fields.finish()
    rotary = Rotary(theta, scaled.scaling) if part == 1 else PartialRotary(theta, scaled.scaling, part)
    return Positions(rotary, scaled.context)


def write(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that `read` reads, with `parameters` as of `written`, by their names of transformers 5 and of 4: each
    knows its own alone."""
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    scaled = scaling["rope_type"] != "default"
    return {
        "rope_parameters": dict(parameters),
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": scaling if scaled else None,
    }


def written(rotary: Rotary) -> dict[str, Any]:
    """The parameters that `rotary` reads."""
    s = rotary.scaling
    fields: dict[str, Any] = {"rope_type": "default"}
    if isinstance(s, Linear):
        fields = dict(rope_type="linear", factor=s.factor)
    elif isinstance(s, Dynamic):
        fields = dict(rope_type="dynamic", factor=s.factor)
    elif isinstance(s, Llama3):
        fields = dict(
            rope_type="llama3", factor=s.factor, low_freq_factor=s.low_freq_factor, high_freq_factor=s.high_freq_factor
        )
        fields |= dict(original_max_position_embeddings=s.original_context)
    elif isinstance(s, YaRN):
        fields = dict(
            rope_type="yarn", factor=s.factor, beta_fast=s.beta_fast, beta_slow=s.beta_slow, truncate=s.truncate
        )
        fields |= dict(original_max_position_embeddings=s.original_context)
        fields |= dict(attention_factor=s.attention_factor) if s.attention_factor else {}
    elif isinstance(s, LongRoPE):
        fields = dict(rope_type="longrope", short_factor=list(s.short_factor), long_factor=list(s.long_factor))
        fields |= dict(original_max_position_embeddings=s.original_context, attention_factor=s.attention_factor)
    return {"rope_theta": rotary.theta, **fields}


def written_context(context: int, rotary: Rotary) -> int:
    """The field max_position_embeddings of a model that reads `context` tokens: of scalings that leave it at the
    original, that (as the documentation of transformers 4 asks, and vLLM reads it)."""
    s = rotary.scaling
    if isinstance(s, Dynamic):
        return s.original_context
    return math.ceil(context / max(1.0, s.factor)) if isinstance(s, Linear) else context
