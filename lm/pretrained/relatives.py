"""Llama's relatives with tensors of its names: OLMo 2 and 3, SmolLM3, Granite."""

from typing import Any

from lm.model.config import LayerKind, ModelConfig
from lm.model.output import Output
from lm.model.parts import JointRMSNorm
from lm.model.positions import Positions, Rotary
from lm.model.wiring import PreNorm, ReorderedNorm, ScaledPreNorm
from lm.pretrained import defaults, llama
from lm.pretrained.architecture import (
    Architecture,
    attention_of,
    layer_kinds,
    layer_stacks,
    layer_types,
    layer_windows,
    require,
    window,
)
from lm.pretrained.fields import Fields
from lm.pretrained.gemma import sandwich_rows, two_rotaries, written_rotaries
from lm.pretrained.llama import IGNORED, PREFIX


def _olmo(fields: Fields, **parts: Any) -> ModelConfig:
    """The fields common to OLMo 2 and 3: branches normalised at their end, queries and keys over all heads at once."""
    norm = JointRMSNorm(float(fields.number("rms_norm_eps")))
    mixer = llama.attention(fields, bias=fields.flag("attention_bias"), qk_norm=norm)
    return llama.read(fields, attention=mixer, wiring=ReorderedNorm(), **parts)


def read_olmo2(fields: Fields) -> ModelConfig:
    """OLMo 2's config.json."""
    return _olmo(fields)


def write_olmo2(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_olmo2` reads."""
    return {**llama.write(cfg), "attention_bias": attention_of(cfg).bias}


def read_olmo3(fields: Fields) -> ModelConfig:
    """OLMo 3's config.json: windows in three of four layers, whose rotary positions are not scaled."""
    full, local = two_rotaries(fields, "rope_theta")
    kind = LayerKind(fields.integer("sliding_window") or 0, positions=local.rotary)
    pattern = layer_kinds(fields, fields.integer("num_hidden_layers"), kind, lambda i: (i + 1) % 4 == 0)
    return _olmo(fields, positions=full.rotary, context=full.context, pattern=pattern)


def write_olmo3(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_olmo3` reads. Raises ValueError where windowed layers have another theta, which its files
    said by one number before transformers 5."""
    fields = write_olmo2(cfg)
    both = written_rotaries(cfg, Rotary(require(cfg.positions, Rotary).theta))
    thetas = {values["rope_theta"] for values in both.values()}
    if len(thetas) > 1:
        raise ValueError(f"layers of several theta: {sorted(thetas)}")
    return {
        **fields,
        "rope_parameters": both,
        "sliding_window": window(cfg),
        "layer_types": layer_types(cfg),
    }


NOWHERE = Positions()


def read_smollm3(fields: Fields) -> ModelConfig:
    """SmolLM3's config.json: no positions in every fourth layer (2501.18795), which may have a window."""
    layers = fields.integer("num_hidden_layers")
    turned = _with_positions(fields, layers)
    used = fields.flag("use_sliding_window") and fields.take("sliding_window") is not None
    size = fields.integer("sliding_window") if used else 0
    fields.take("sliding_window")
    windows = layer_windows(fields, layers, size, lambda i: not used or turned[i])
    kinds = [LayerKind(window, positions=None if turned[i] else NOWHERE) for i, window in enumerate(windows)]
    mixer = llama.attention(fields, bias=fields.flag("attention_bias"))
    ffn = llama.dense(fields, fields.flag("mlp_bias"))
    return llama.read(fields, attention=mixer, ffn=ffn, **layer_stacks(kinds))


def _with_positions(fields: Fields, layers: int) -> list[bool]:
    """Whether each layer has positions: of the field no_rope_layers, whose 1 is yes, or of the interval."""
    interval, given = fields.integer("no_rope_layer_interval"), fields.take("no_rope_layers")
    found = [int((i + 1) % interval != 0) for i in range(layers)] if given is None else given
    if not isinstance(found, list) or len(found) < layers or not all(one in (0, 1) for one in found):
        raise fields.unsupported("no_rope_layers", found, f"a list of {layers}, each 1 (positions) or 0")
    return [bool(one) for one in found[:layers]]


def write_smollm3(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_smollm3` reads."""
    return {
        **llama.write_llama(cfg),
        "no_rope_layers": [int(slot.positions != NOWHERE) for slot in cfg.by_layer],
        "use_sliding_window": window(cfg) is not None,
        "sliding_window": window(cfg),
        "layer_types": layer_types(cfg),
    }


def read_granite(fields: Fields) -> ModelConfig:
    """Granite's config.json: Llama's, with numbers that multiply the embedding, the logits of attention (in place of
    1/sqrt(H)), each residual branch and, divided, the output."""
    by = {name: float(fields.number(name, above=0)) for name in MULTIPLIERS}
    mixer = llama.attention(fields, bias=fields.flag("attention_bias"), scale=by["attention_multiplier"])
    return llama.read(
        fields,
        attention=mixer,
        ffn=llama.dense(fields, fields.flag("mlp_bias")),
        embed_scale=by["embedding_multiplier"],
        wiring=ScaledPreNorm(by["residual_multiplier"]) if by["residual_multiplier"] != 1 else PreNorm(),
        output=Output(scale=1 / by["logits_scaling"]),
    )


MULTIPLIERS = ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")


def write_granite(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_granite` reads."""
    mixer, wiring = attention_of(cfg), require(cfg.wiring, PreNorm)
    divisor = 1 / cfg.output.scale
    near = round(divisor, 9)  # of which the inverse is this scale, where it was written so
    multipliers = (
        cfg.embed_scale,
        near if 1 / near == cfg.output.scale else divisor,
        wiring.branch_scale,
        mixer.scale or mixer.head_dim**-0.5,
    )
    return {**llama.write_llama(cfg), **dict(zip(MULTIPLIERS, multipliers, strict=True))}


OLMO2, OLMO3, SMOLLM3, GRANITE = (
    Architecture(f"{name}ForCausalLM", name.lower(), known, read, write, rows, IGNORED, prefix=PREFIX)
    for name, known, read, write, rows in (
        ("Olmo2", defaults.OLMO2, read_olmo2, write_olmo2, sandwich_rows),
        ("Olmo3", defaults.OLMO3, read_olmo3, write_olmo3, sandwich_rows),
        ("SmolLM3", defaults.SMOLLM3, read_smollm3, write_smollm3, llama.dense_rows),
        ("Granite", defaults.GRANITE, read_granite, write_granite, llama.dense_rows),
    )
)
