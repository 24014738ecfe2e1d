"""BERT: the encoder alone (embeddings), with the masked-LM output, with that and next-sentence prediction, or with
classes of a text or of its tokens."""

from dataclasses import replace
from typing import Any

from lm.model.attention import Attention
from lm.model.config import ModelConfig
from lm.model.families import bert, head_size
from lm.model.output import Classifier, NoOutput, Output
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
from lm.pretrained.classifiers import head
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
PREDICTIONS = "cls.predictions."


def norm(ours: str, theirs: str) -> list[Row]:
    """A torch.nn.LayerNorm."""
    return [same(f"{ours}_scale", f"{theirs}.weight"), same(f"{ours}_bias", f"{theirs}.bias")]


def dense(ours: str, theirs: str, inputs: int = 1) -> list[Row]:
    """A torch.nn.Linear with a bias, with `inputs` leading input axes in ours."""
    return [row(ours, f"{theirs}.weight", Linear(inputs)), row(f"{ours}_bias", f"{theirs}.bias", Flattened())]


def encoder_rows(prefix: str) -> list[Row]:
    """The table of the encoder, whose tensors' names begin with `prefix`."""
    at = prefix + "encoder.layer.{i}."
    return [
        same("stem/tokens", f"{prefix}embeddings.word_embeddings.weight"),
        same("stem/positions", f"{prefix}embeddings.position_embeddings.weight"),
        same("stem/token_types", f"{prefix}embeddings.token_type_embeddings.weight"),
        *norm("stem/norm", f"{prefix}embeddings.LayerNorm"),
        *dense("layers/*/query", at + "attention.self.query"),
        *dense("layers/*/key", at + "attention.self.key"),
        *dense("layers/*/value", at + "attention.self.value"),
        *dense("layers/*/out", at + "attention.output.dense", inputs=2),
        *norm("layers/*/attention_norm", at + "attention.output.LayerNorm"),
        *dense("layers/*/up", at + "intermediate.dense"),
        *dense("layers/*/down", at + "output.dense"),
        *norm("layers/*/ffn_norm", at + "output.LayerNorm"),
    ]


ROWS = [
    *encoder_rows("bert."),
    *dense("head/transform", PREDICTIONS + "transform.dense"),
    *norm("head/transform_norm", PREDICTIONS + "transform.LayerNorm"),
    linear("head/kernel", PREDICTIONS + "decoder.weight"),
    *dense("head/pooler", "bert.pooler.dense"),
    *dense("head/next_sentence", "cls.seq_relationship"),
]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of BERT."""
    return [*ROWS, *bias_rows(cfg, PREDICTIONS)]


def bias_rows(cfg: ModelConfig, at: str) -> list[Row]:
    """The output's bias, which has two names, of which transformers reads the first where the output is tied, and the
    second where it is not."""
    first, second = f"{at}bias", f"{at}decoder.bias"
    return [same("head/bias", first)] if cfg.tied else [same("head/bias", second), row("head/bias", first, copy=True)]


def read(fields: Fields, output: Output, **parts: Any) -> ModelConfig:
    """The fields of BERT and its relatives. `parts` are other fields of ModelConfig."""
    known = read_sizes(fields, SIZES) | parts
    layer_norm = LayerNorm(eps=float(fields.number("layer_norm_eps")))
    activation = fields.choose("hidden_act", ACTIVATION)
    fields.expect("position_embedding_type", "absolute")
    writes, tied = not isinstance(output, NoOutput), fields.flag("tie_word_embeddings")
    cfg = bert(
        **known,
        attention=Attention(known["heads"], head_size(known["width"], known["heads"]), bias=True),
        ffn=FeedForward(known["mlp"], activation, bias=True),
        norm=layer_norm,
        embed_norm=layer_norm,
        token_types=fields.integer("type_vocab_size"),
        output=replace(output, transform=activation) if writes else output,
        tied=tied or not writes,
    )
    fields.finish()
    return cfg


def read_masked(fields: Fields) -> ModelConfig:
    """The config.json of BERT for masked language modelling."""
    return read(fields, Output(bias=True))


def read_both(fields: Fields) -> ModelConfig:
    """The config.json of BERT for masked language modelling and next-sentence prediction."""
    return read(fields, Output(bias=True, next_sentence=True))


def read_bare(fields: Fields) -> ModelConfig:
    """The config.json of BERT's encoder alone."""
    return read(fields, NoOutput())


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that they read. Raises ValueError for a config without LayerNorm."""
    layer_norm = require(cfg.norm, LayerNorm)
    return {
        "vocab_size": cfg.vocab,
        "num_hidden_layers": cfg.layers,
        "hidden_size": cfg.width,
        "num_attention_heads": attention_of(cfg).heads,
        "intermediate_size": cfg.ffn.mlp,
        "max_position_embeddings": cfg.context,
        "type_vocab_size": cfg.token_types,
        "hidden_act": hf_activation(cfg.ffn.activation),
        "layer_norm_eps": layer_norm.eps,
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
SEQUENCES = head(
    BARE,
    "BertForSequenceClassification",
    [*dense("head/transform", "bert.pooler.dense"), *dense("head/score", "classifier")],
    Classifier(transform="tanh"),
)
TOKENS = head(
    BARE,
    "BertForTokenClassification",
    dense("head/score", "classifier"),
    Classifier(pooling="token"),
    other_heads=OTHER_HEADS,
)
