"""Phi-3: Llama with query, key and value, and gate and up, fused; a part of each head turned; LongRoPE."""

from typing import Any

from lm.model.config import LayerKind, ModelConfig
from lm.model.positions import PartialRotary, Rotary
from lm.model.scaling import LongRoPE
from lm.pretrained import defaults, llama, rope
from lm.pretrained.architecture import Architecture, linear, require, same, window
from lm.pretrained.fields import Fields
from lm.pretrained.llama import AT, IGNORED, PREFIX
from lm.pretrained.rows import Concatenated, Kernel, Row, Transposed, row

FUSED = Transposed(Concatenated(Kernel()))
ROWS = [
    *llama.EMBEDDING,
    same("layers/*/attention_norm_scale", AT + "input_layernorm.weight"),
    row("layers/*/query layers/*/key layers/*/value", AT + "self_attn.qkv_proj.weight", FUSED),
    linear("layers/*/out", AT + "self_attn.o_proj.weight", inputs=2),
    *llama.FFN_NORM,
    row("layers/*/gate layers/*/up", AT + "mlp.gate_up_proj.weight", FUSED),
    linear("layers/*/down", AT + "mlp.down_proj.weight"),
    *llama.OUTPUT,
]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of Phi-3."""
    return ROWS


def read(fields: Fields) -> ModelConfig:
    """Phi-3's config.json. Raises ValueError for a field that is not supported."""
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.expect(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        fields.expect(name, 1)
    read_longrope = rope.longrope(fields.integer("original_max_position_embeddings"))
    names = dict.fromkeys(("longrope", "su", "yarn"), read_longrope)  # the last two as its first files called it
    positions, context = rope.read(fields, {"default": rope.SCALINGS["default"], **names}, partial=True)
    return llama.read(
        fields,
        attention=llama.attention(fields, bias=False),
        positions=positions,
        context=context,
        pattern=(LayerKind(window=fields.integer("sliding_window") or 0),),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads, as transformers 4 allows them too: its rope_scaling has three fields and no other.
    Raises ValueError for a model with other parts."""
    fields, positions = llama.write(cfg), require(cfg.positions, Rotary)
    fields["rope_scaling"] = None
    fields["original_max_position_embeddings"] = cfg.context
    if isinstance(s := positions.scaling, LongRoPE):
        factors = {"short_factor": list(s.short_factor), "long_factor": list(s.long_factor)}
        fields["original_max_position_embeddings"] = s.original_context
        fields["rope_scaling"] = {"type": "longrope", **factors}
        new = {"rope_type": "longrope", "rope_theta": positions.theta, **factors}
        usual, _ = rope.longrope(s.original_context)(Fields(new, "rope_parameters"), cfg.context)
        if usual != s:
            new["attention_factor"] = s.attention_factor
            fields["rope_scaling"]["attention_factor"] = s.attention_factor
        fields["rope_parameters"] = new
    fraction = positions.fraction if isinstance(positions, PartialRotary) else 1.0
    return {**fields, "partial_rotary_factor": fraction, "sliding_window": window(cfg)}


PHI3 = Architecture("Phi3ForCausalLM", "phi3", defaults.PHI3, read, write, rows, IGNORED, prefix=PREFIX)
