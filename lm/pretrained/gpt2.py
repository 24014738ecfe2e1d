"""GPT-2: fused query, key and value, matrices [inputs, outputs]."""

from typing import Any

from lm.model.attention import Attention
from lm.model.config import ModelConfig
from lm.model.families import gpt, head_size
from lm.model.parts import FeedForward, LayerNorm
from lm.pretrained import defaults
from lm.pretrained.architecture import ACTIVATION, Architecture, attention_of, linear, read_sizes, require, same
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Concatenated, Flattened, Kernel, Row, row

SIZES = dict(vocab="vocab_size", layers="n_layer", width="n_embd", heads="n_head", context="n_positions")
AT = "transformer.h.{i}."
ROWS = [
    same("stem/tokens", "transformer.wte.weight"),
    same("stem/positions", "transformer.wpe.weight"),
    same("layers/*/attention_norm_scale", AT + "ln_1.weight"),
    same("layers/*/attention_norm_bias", AT + "ln_1.bias"),
    row("layers/*/query layers/*/key layers/*/value", AT + "attn.c_attn.weight", Concatenated(Kernel())),
    row(
        "layers/*/query_bias layers/*/key_bias layers/*/value_bias", AT + "attn.c_attn.bias", Concatenated(Flattened())
    ),
    row("layers/*/out", AT + "attn.c_proj.weight", Kernel(inputs=2)),
    same("layers/*/out_bias", AT + "attn.c_proj.bias"),
    same("layers/*/ffn_norm_scale", AT + "ln_2.weight"),
    same("layers/*/ffn_norm_bias", AT + "ln_2.bias"),
    row("layers/*/up", AT + "mlp.c_fc.weight", Kernel()),
    same("layers/*/up_bias", AT + "mlp.c_fc.bias"),
    row("layers/*/down", AT + "mlp.c_proj.weight", Kernel()),
    same("layers/*/down_bias", AT + "mlp.c_proj.bias"),
    same("head/norm_scale", "transformer.ln_f.weight"),
    same("head/norm_bias", "transformer.ln_f.bias"),
    linear("head/kernel", "lm_head.weight"),
]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of GPT-2."""
    return ROWS


def read(fields: Fields) -> ModelConfig:
    """GPT-2's config.json. Raises ValueError for a field that is not supported."""
    known = read_sizes(fields, SIZES)
    width = known["width"]
    fields.expect("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
        fields.expect(name, False)
    fields.expect("n_ctx", known["context"])
    activation = fields.choose("activation_function", ACTIVATION)
    cfg = gpt(
        **known,
        attention=Attention(known["heads"], head_size(width, known["heads"]), bias=True),
        ffn=FeedForward(fields.integer("n_inner") or 4 * width, activation, bias=True),
        norm=LayerNorm(eps=float(fields.number("layer_norm_epsilon"))),
        tied=fields.flag("tie_word_embeddings"),
    )
    fields.finish()
    return cfg


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads. Raises ValueError for a config without LayerNorm."""
    norm = require(cfg.norm, LayerNorm)
    names = {"gelu_tanh": "gelu_new"}
    return {
        "vocab_size": cfg.vocab,
        "n_layer": cfg.layers,
        "n_embd": cfg.width,
        "n_head": attention_of(cfg).heads,
        "n_positions": cfg.context,
        "n_inner": cfg.ffn.mlp,
        "activation_function": names.get(cfg.ffn.activation, cfg.ffn.activation),
        "layer_norm_epsilon": norm.eps,
        "tie_word_embeddings": cfg.tied,
    }


GPT2 = Architecture(
    "GPT2LMHeadModel",
    "gpt2",
    defaults.GPT2,
    read,
    write,
    rows,
    ignored=r"\.attn\.(masked_)?bias$",
    prefix="transformer.",
)
