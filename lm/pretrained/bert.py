"""BERT: the encoder alone (embeddings), with the masked-LM output, or with that and next-sentence prediction."""

from dataclasses import replace
from typing import Any

from lm.model.attention import Attention
from lm.model.config import ModelConfig
from lm.model.families import bert, head_size
from lm.model.output import NoOutput, Output
from lm.model.parts import FeedForward, LayerNorm
from lm.pretrained import defaults
from lm.pretrained.architecture import (
    ACTIVATION,
    Architecture,
    attention_of,
    hf_activation,
    linear,
    read_sizes,
    require,
    same,
)
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Flattened, Linear, Row, row

SIZES = dict(
    vocab="vocab_size",
    layers="num_hidden_layers",
    width="hidden_size",
    heads="num_attention_heads",
    mlp="intermediate_size",
    context="max_position_embeddings",
)
AT = "bert.encoder.layer.{i}."
PREDICTIONS = "cls.predictions."


def _norm(ours: str, theirs: str) -> list[Row]:
    return [same(f"{ours}_scale", f"{theirs}.weight"), same(f"{ours}_bias", f"{theirs}.bias")]


def _dense(ours: str, theirs: str, inputs: int = 1) -> list[Row]:
    return [row(ours, f"{theirs}.weight", Linear(inputs)), row(f"{ours}_bias", f"{theirs}.bias", Flattened())]


ROWS = [
    same("stem/tokens", "bert.embeddings.word_embeddings.weight"),
    same("stem/positions", "bert.embeddings.position_embeddings.weight"),
    same("stem/token_types", "bert.embeddings.token_type_embeddings.weight"),
    *_norm("stem/norm", "bert.embeddings.LayerNorm"),
    *_dense("layers/*/query", AT + "attention.self.query"),
    *_dense("layers/*/key", AT + "attention.self.key"),
    *_dense("layers/*/value", AT + "attention.self.value"),
    *_dense("layers/*/out", AT + "attention.output.dense", inputs=2),
    *_norm("layers/*/attention_norm", AT + "attention.output.LayerNorm"),
    *_dense("layers/*/up", AT + "intermediate.dense"),
    *_dense("layers/*/down", AT + "output.dense"),
    *_norm("layers/*/ffn_norm", AT + "output.LayerNorm"),
    *_dense("head/transform", PREDICTIONS + "transform.dense"),
    *_norm("head/transform_norm", PREDICTIONS + "transform.LayerNorm"),
    linear("head/kernel", PREDICTIONS + "decoder.weight"),
    *_dense("head/pooler", "bert.pooler.dense"),
    *_dense("head/next_sentence", "cls.seq_relationship"),
]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of BERT. The output's bias has two names, of which transformers reads the first where the output is
    tied, and the second where it is not."""
    first, second = PREDICTIONS + "bias", PREDICTIONS + "decoder.bias"
    bias = [same("head/bias", first)] if cfg.tied else [same("head/bias", second), row("head/bias", first, copy=True)]
    return [*ROWS, *bias]


def _read(fields: Fields, output: Output) -> ModelConfig:
    known = read_sizes(fields, SIZES)
    norm = LayerNorm(eps=float(fields.number("layer_norm_eps")))
    activation = fields.choose("hidden_act", ACTIVATION)
    fields.expect("position_embedding_type", "absolute")
    writes, tied = not isinstance(output, NoOutput), fields.flag("tie_word_embeddings")
    cfg = bert(
        **known,
        attention=Attention(known["heads"], head_size(known["width"], known["heads"]), bias=True),
        ffn=FeedForward(known["mlp"], activation, bias=True),
        norm=norm,
        embed_norm=norm,
        token_types=fields.integer("type_vocab_size"),
        output=replace(output, transform=activation) if writes else output,
        tied=tied or not writes,
    )
    fields.finish()
    return cfg


def read_masked(fields: Fields) -> ModelConfig:
    """The config.json of BERT for masked language modelling."""
    return _read(fields, Output(bias=True))


def read_both(fields: Fields) -> ModelConfig:
    """The config.json of BERT for masked language modelling and next-sentence prediction."""
    return _read(fields, Output(bias=True, next_sentence=True))


def read_bare(fields: Fields) -> ModelConfig:
    """The config.json of BERT's encoder alone."""
    return _read(fields, NoOutput())


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that they read. Raises ValueError for a config without LayerNorm."""
    norm = require(cfg.norm, LayerNorm)
    return {
        "vocab_size": cfg.vocab,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "num_attention_heads": attention_of(cfg).heads,
        "intermediate_size": cfg.ffn.mlp,
        "max_position_embeddings": cfg.context,
        "type_vocab_size": cfg.token_types,
        "hidden_act": hf_activation(cfg.ffn.activation),
        "layer_norm_eps": norm.eps,
        "tie_word_embeddings": cfg.tied,
    }


IGNORED = r"^cls\.predictions\.decoder\.bias$|position_ids$"  # the first a copy, where the output is tied
OTHER_HEADS = r"^bert\.pooler\.|^cls\.seq_relationship\."  # where they are not in the table
RENAMED = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
MASKED, BOTH, BARE = (
    Architecture(
        name, "bert", defaults.BERT, read, write, rows, IGNORED, other_heads, unused, prefix="bert.", renamed=RENAMED
    )
    for name, read, other_heads, unused in (
        ("BertForMaskedLM", read_masked, OTHER_HEADS, r"(?!)"),
        ("BertForPreTraining", read_both, r"(?!)", r"(?!)"),
        ("BertModel", read_bare, r"^cls\.", r"^bert\.pooler\."),
    )
)
