"""DistilBERT (1910.01108): BERT without token types and pooler, by other names."""

from dataclasses import replace
from typing import Any

from lm.model.attention import Attention
from lm.model.config import ModelConfig
from lm.model.families import bert, head_size
from lm.model.output import Classifier, NoOutput, Output
from lm.model.parts import FeedForward
from lm.pretrained import defaults
from lm.pretrained.architecture import (
    ACTIVATION,
    Architecture,
    attention_of,
    hf_activation,
    linear,
    read_sizes,
    same,
)
from lm.pretrained.bert import dense, norm
from lm.pretrained.classifiers import head
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Row

SIZES = dict(
    vocab="vocab_size",
    layers="n_layers",
    width="dim",
    heads="n_heads",
    mlp="hidden_dim",
    context="max_position_embeddings",
)
AT = "distilbert.transformer.layer.{i}."
ROWS = [
    same("stem/tokens", "distilbert.embeddings.word_embeddings.weight"),
    same("stem/positions", "distilbert.embeddings.position_embeddings.weight"),
    *norm("stem/norm", "distilbert.embeddings.LayerNorm"),
    *dense("layers/*/query", AT + "attention.q_lin"),
    *dense("layers/*/key", AT + "attention.k_lin"),
    *dense("layers/*/value", AT + "attention.v_lin"),
    *dense("layers/*/out", AT + "attention.out_lin", inputs=2),
    *norm("layers/*/attention_norm", AT + "sa_layer_norm"),
    *dense("layers/*/up", AT + "ffn.lin1"),
    *dense("layers/*/down", AT + "ffn.lin2"),
    *norm("layers/*/ffn_norm", AT + "output_layer_norm"),
    *dense("head/transform", "vocab_transform"),
    *norm("head/transform_norm", "vocab_layer_norm"),
    linear("head/kernel", "vocab_projector.weight"),
    same("head/bias", "vocab_projector.bias"),
]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of DistilBERT."""
    return ROWS


def _read(fields: Fields, output: Output) -> ModelConfig:
    known, activation = read_sizes(fields, SIZES), fields.choose("activation", ACTIVATION)
    writes, tied = not isinstance(output, NoOutput), fields.flag("tie_word_embeddings")
    cfg = bert(
        **known,
        attention=Attention(known["heads"], head_size(known["width"], known["heads"]), bias=True),
        ffn=FeedForward(known["mlp"], activation, bias=True),
        token_types=0,
        output=replace(output, transform=activation) if writes else output,
        tied=tied or not writes,
    )
    fields.finish()
    return cfg


def read_masked(fields: Fields) -> ModelConfig:
    """The config.json of DistilBERT for masked language modelling."""
    return _read(fields, Output(bias=True))


def read_bare(fields: Fields) -> ModelConfig:
    """The config.json of DistilBERT's encoder alone."""
    return _read(fields, NoOutput())


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that they read."""
    return {
        "vocab_size": cfg.vocab,
        "n_layers": cfg.layers,
        "dim": cfg.width,
        "n_heads": attention_of(cfg).heads,
        "hidden_dim": cfg.ffn.mlp,
        "max_position_embeddings": cfg.context,
        "activation": hf_activation(cfg.ffn.activation),
        "tie_word_embeddings": cfg.tied,
    }


CLASSES, VOCAB = r"^(pre_)?classifier\.", r"^vocab_(transform|layer_norm|projector)\."
MASKED = Architecture(
    *("DistilBertForMaskedLM", "distilbert", defaults.DISTILBERT, read_masked, write, rows),
    ignored=r"position_ids$",
    other_heads=CLASSES,
    prefix="distilbert.",
)
BARE = replace(MASKED, name="DistilBertModel", read=read_bare, other_heads=rf"{CLASSES}|{VOCAB}")
SEQUENCES = head(
    BARE,
    "DistilBertForSequenceClassification",
    [*dense("head/transform", "pre_classifier"), *dense("head/score", "classifier")],
    Classifier(transform="relu"),
    other_heads=VOCAB,
)
TOKENS = head(
    BARE,
    "DistilBertForTokenClassification",
    dense("head/score", "classifier"),
    Classifier(pooling="token"),
    other_heads=VOCAB,
)
ALL = (MASKED, BARE, SEQUENCES, TOKENS)
