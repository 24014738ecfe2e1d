"""Models of sequences, as transformers has them: a linear map `score` of the last token's state in place of the output;
and bare models, whose states themselves are what comes out.

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


def bare(base: Architecture, name: str) -> Architecture:
    """The architecture `name` without an output, of that of texts: its tensors' names lack the prefix."""
    parts: dict[str, Any] = dict(
        read=partial(_read_bare, base),
        write=partial(_write_bare, base),
        rows=partial(_rows_bare, base),
        renamed=((base.prefix, ""), *base.renamed),
        prefix="",
    )
    return replace(base, name=name, other_heads=r"^lm_head\.", **parts)


def _read_bare(base: Architecture, fields: Fields) -> ModelConfig:
    return scorer(base.read(fields), 0)


def _write_bare(base: Architecture, cfg: ModelConfig) -> dict[str, Any]:
    """The fields of the model of texts. Raises ValueError for a model with an output."""
    if require(cfg.output, NoOutput).scores:
        raise ValueError("scores, where the architecture has no output")
    return base.write(_of_texts(cfg))


def _rows_bare(base: Architecture, cfg: ModelConfig) -> Sequence[Row]:
    of_texts = (row for row in base.rows(_of_texts(cfg)) if row.ours != ("head/kernel",))
    return [row._replace(theirs=row.theirs.removeprefix(base.prefix)) for row in of_texts]


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
