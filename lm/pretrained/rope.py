"""Rotary positions in config.json: theta and scaling, in rope_parameters (transformers 5) or rope_scaling (4)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from lm.model.positions import Rotary
from lm.model.scaling import Dynamic, Linear, Llama3, Scaling, YaRN
from lm.pretrained.fields import Fields

ReadScaling = Callable[[Fields, int], Scaling]  # (fields, context)


def _yarn(fields: Fields, context: int) -> Scaling:
    original = fields.integer("original_max_position_embeddings", context)
    factor = float(fields.number("factor", context / original, above=0))
    own, all_dim = fields.number("mscale", 0), fields.number("mscale_all_dim", 0)
    attention = mscale(factor, own) / mscale(factor, all_dim) if own and all_dim else 0.0
    return YaRN(
        factor=factor,
        original_context=original,
        beta_fast=float(fields.number("beta_fast", 32.0, above=0)),
        beta_slow=float(fields.number("beta_slow", 1.0, above=0)),
        attention_factor=float(fields.number("attention_factor", attention)),
        truncate=fields.flag("truncate", True),
    )


def mscale(factor: float, multiplier: float) -> float:
    """How much longer YaRN makes queries and keys for contexts `factor` times as long (2309.00071, section 3.4); the
    `multiplier` is DeepSeek's."""
    return 0.1 * multiplier * math.log(factor) + 1 if factor > 1 else 1.0


def _llama3(fields: Fields, context: int) -> Scaling:
    low = float(fields.number("low_freq_factor"))
    return Llama3(
        factor=float(fields.number("factor", above=0)),
        low_freq_factor=low,
        high_freq_factor=float(fields.number("high_freq_factor", above=low)),
        original_context=fields.integer("original_max_position_embeddings", context),
    )


def _dynamic(fields: Fields, context: int) -> Scaling:
    # transformers scales the context of the config, and ignores original_max_position_embeddings here
    fields.expect("original_max_position_embeddings", context)
    return Dynamic(float(fields.number("factor", above=0)), context)


SCALINGS: Mapping[str, ReadScaling] = {
    "default": lambda fields, context: Scaling(),
    "linear": lambda fields, context: Linear(float(fields.number("factor", above=0))),
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}


def read(fields: Fields, context: int, theta: float = 10000.0) -> Rotary:
    """The rotary positions of a config; `theta` is the family's default."""
    theta = fields.number("rope_theta", theta, above=1)
    return rotary(fields, parameters(fields), context, theta)


def parameters(fields: Fields) -> Any:
    """The field rope_parameters, or rope_scaling as it was called before. Raises ValueError where both are there and
    differ."""
    new = fields.take("rope_parameters", None)
    if new is None:
        return fields.take("rope_scaling", {})
    fields.expect("rope_scaling", new)
    return new


def rotary(config: Fields, values: Any, context: int, theta: float) -> Rotary:
    """Rotary positions from one dict of parameters in `config`; `context` and `theta` are defaults. Raises ValueError
    for parameters that are not supported."""
    if not isinstance(values, dict):
        raise config.unsupported("rope_parameters", values, "an object")
    fields = Fields({"rope_type": values.get("type", "default"), **values}, f"{config.file}: rope_parameters")
    fields.take("type", None)
    theta = float(fields.number("rope_theta", theta, above=1))
    fields.expect("partial_rotary_factor", 1, 1.0)
    scaling = fields.choose("rope_type", SCALINGS)(fields, context)
    fields.finish()
    return Rotary(theta, scaling)


def write(rotary: Rotary) -> dict[str, Any]:
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
    return {"rope_theta": rotary.theta, **fields}
