"""RoBERTa (1907.11692), and what is RoBERTa by another name: XLM-R (1911.02116) and CamemBERT (1911.03894).

BERT's layers; positions count from the padding's id + 1, there is no next sentence, and classes of a text have a head
of their own in place of the pooler.
"""

from dataclasses import replace
from typing import Any

from lm.model.config import ModelConfig
from lm.model.output import Classifier, NoOutput, Output
from lm.model.positions import LearnedAfter
from lm.pretrained import bert, defaults
from lm.pretrained.architecture import Architecture, linear, require
from lm.pretrained.bert import RENAMED, dense, encoder_rows, norm
from lm.pretrained.classifiers import head
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Row

ROWS = [
    *encoder_rows("roberta."),
    *dense("head/transform", "lm_head.dense"),
    *norm("head/transform_norm", "lm_head.layer_norm"),
    linear("head/kernel", "lm_head.decoder.weight"),
]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of RoBERTa."""
    return [*ROWS, *bert.bias_rows(cfg, "lm_head.")]


def _read(fields: Fields, output: Output) -> ModelConfig:
    pad = fields.take("pad_token_id")
    rows = fields.integer("max_position_embeddings")
    if not isinstance(pad, int) or isinstance(pad, bool) or not 0 <= pad < rows - 1:
        raise fields.unsupported("pad_token_id", pad, f"a number below {rows - 1}, from which positions count")
    cfg = bert.read(fields, output, context=rows - pad - 1, positions=LearnedAfter(offset=pad + 1))
    if isinstance(output, NoOutput):
        return cfg
    return replace(cfg, output=replace(cfg.output, transform="gelu"))  # whatever the layers have


def read_masked(fields: Fields) -> ModelConfig:
    """The config.json of RoBERTa for masked language modelling."""
    return _read(fields, Output(bias=True))


def read_bare(fields: Fields) -> ModelConfig:
    """The config.json of RoBERTa's encoder alone."""
    return _read(fields, NoOutput())


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that they read. Raises ValueError for a config without LayerNorm, or with other positions."""
    offset = require(cfg.positions, LearnedAfter).offset
    return {**bert.write(cfg), "max_position_embeddings": cfg.context + offset, "pad_token_id": offset - 1}


IGNORED = r"^lm_head\.decoder\.bias$|position_ids$"
POOLER = r"^roberta\.pooler\."
MASKED = Architecture(
    *("RobertaForMaskedLM", "roberta", defaults.ROBERTA, read_masked, write, rows),
    ignored=IGNORED,
    other_heads=rf"{POOLER}|^classifier\.",
    prefix="roberta.",
    renamed=RENAMED,
)
BARE = replace(MASKED, name="RobertaModel", read=read_bare, other_heads=r"^lm_head\.|^classifier\.", unused=POOLER)
SEQUENCES = head(
    BARE,
    "RobertaForSequenceClassification",
    [*dense("head/transform", "classifier.dense"), *dense("head/score", "classifier.out_proj")],
    Classifier(transform="tanh"),
    other_heads=rf"{POOLER}|^lm_head\.",
)
TOKENS = head(
    BARE,
    "RobertaForTokenClassification",
    dense("head/score", "classifier"),
    Classifier(pooling="token"),
    other_heads=rf"{POOLER}|^lm_head\.",
)
ALL = (MASKED, BARE, SEQUENCES, TOKENS)
XLM, CAMEMBERT = (
    tuple(replace(a, name=a.name.replace("Roberta", name), model_type=kind, defaults=defaults.XLM_ROBERTA) for a in ALL)
    for name, kind in (("XLMRoberta", "xlm-roberta"), ("Camembert", "camembert"))
)
