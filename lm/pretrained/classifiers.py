"""Models of sequences, as transformers has them: a linear map `score` of the last token's state in place of the output.

With one label they are reward models. Tensors and config.json are otherwise those of the model of texts.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lm.model.config import ModelConfig
from lm.model.families import scorer
from lm.model.output import NoOutput, Output
from lm.pretrained.architecture import Architecture, linear, require
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Row

SCORE = linear("head/score", "score.weight")
LABELS = 2  # which transformers leaves out


def classifier(base: Architecture, name: str) -> Architecture:
    """The architecture `name` of sequences, of that of texts."""
    parts: dict[str, Any] = dict(read=partial(_read, base), write=partial(_write, base), rows=partial(_rows, base))
    return replace(base, name=name, other_heads=r"^lm_head\.", **parts)


def _read(base: Architecture, fields: Fields) -> ModelConfig:
    labels, count = fields.take("id2label", None), fields.integer("num_labels", None)
    if labels is not None and (not isinstance(labels, dict) or not labels):
        raise fields.unsupported("id2label", labels, "a name of each label")
    if labels and count and len(labels) != count:
        raise fields.unsupported("num_labels", count, f"{len(labels)}, the labels of id2label")
    return scorer(base.read(fields), len(labels) if labels else count or LABELS)


def _write(base: Architecture, cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `_read` reads. Raises ValueError for a model of texts."""
    scores = require(cfg.output, NoOutput).scores
    if not scores:
        raise ValueError("no scores, where the architecture has labels")
    labels = [f"LABEL_{i}" for i in range(scores)]
    return {
        **base.write(_of_texts(cfg)),
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def _rows(base: Architecture, cfg: ModelConfig) -> Sequence[Row]:
    return [*(row for row in base.rows(_of_texts(cfg)) if row.ours != ("head/kernel",)), SCORE]


def _of_texts(cfg: ModelConfig) -> ModelConfig:
    return replace(cfg, output=Output())
