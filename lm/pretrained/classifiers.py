"""Models of classes, as transformers has them: an output of scores in place of that over the vocabulary; and bare
models, whose states themselves are what comes out.

Decoders have a linear map `score` of the last token's state, and with one label are reward models; encoders a head of
their family's. Tensors and config.json are otherwise those of the model of texts, or of the bare encoder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lm.model.config import ModelConfig
from lm.model.families import scorer
from lm.model.output import Classifier, NoOutput, Output
from lm.pretrained import labels
from lm.pretrained.architecture import Architecture, linear, require
from lm.pretrained.fields import Fields
from lm.pretrained.labels import default_labels
from lm.pretrained.rows import Row

SCORE = linear("head/score", "score.weight")
ReadHead = Callable[[Fields], Classifier]


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
    count = len(labels.read(fields).names)
    return scorer(base.read(fields), count)


def _write(base: Architecture, cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `_read` reads. Raises ValueError for a model of texts."""
    scores = require(cfg.output, NoOutput).scores
    if not scores:
        raise ValueError("no scores, where the architecture has labels")
    return {**base.write(_of_texts(cfg)), **default_labels(scores).fields()}


def _rows(base: Architecture, cfg: ModelConfig) -> Sequence[Row]:
    return [*(row for row in base.rows(_of_texts(cfg)) if row.ours != ("head/kernel",)), SCORE]


def _of_texts(cfg: ModelConfig) -> ModelConfig:
    return replace(cfg, output=Output())


# ---------------------------------------------------------------- of encoders


def head(
    base: Architecture,
    name: str,
    rows: Sequence[Row],
    output: Classifier | ReadHead,
    write: Callable[[Classifier], Mapping[str, Any]] = lambda output: {},
    other_heads: str | None = None,
) -> Architecture:
    """The architecture `name` of classes, of the bare encoder `base`.

    Args:
      base: the architecture of the encoder alone.
      name: of config.json.
      rows: of the head's tensors.
      output: the head, but for the number of its classes; or what reads it of config.json.
      write: the fields that `output` reads.
      other_heads: a pattern of tensors of other tasks (Architecture)."""
    read_head: ReadHead = (lambda fields: output) if isinstance(output, Classifier) else output
    return replace(
        base,
        name=name,
        read=partial(_read_classes, base, read_head),
        write=partial(_write_classes, base, write),
        rows=partial(_rows_of_classes, base, rows),
        unused=r"(?!)",
        other_heads=base.other_heads if other_heads is None else other_heads,
    )


def _read_classes(base: Architecture, read_head: ReadHead, fields: Fields) -> ModelConfig:
    count, output = len(labels.read(fields).names), read_head(fields)
    return replace(base.read(fields), output=replace(output, scores=count))


def _write_classes(
    base: Architecture, write: Callable[[Classifier], Mapping[str, Any]], cfg: ModelConfig
) -> dict[str, Any]:
    output = require(cfg.output, Classifier)
    return {**base.write(_bare(cfg)), **write(output), **default_labels(output.scores).fields()}


def _rows_of_classes(base: Architecture, rows: Sequence[Row], cfg: ModelConfig) -> Sequence[Row]:
    own = {path for row in rows for path in row.ours}
    return [*(row for row in base.rows(_bare(cfg)) if not own & set(row.ours)), *rows]


def _bare(cfg: ModelConfig) -> ModelConfig:
    return replace(cfg, output=NoOutput())
