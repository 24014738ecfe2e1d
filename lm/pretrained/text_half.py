"""The text model inside of one that sees or hears too: it alone is read, with a warning, and it is written as what it
is."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.model.config import ModelConfig
from lm.pretrained.fields import Fields
from lm.pretrained.gemma import part


def read_text_half(
    read: Callable[[Fields], ModelConfig], known: Mapping[str, Any], others: Sequence[str]
) -> Callable[[Fields], ModelConfig]:
    """What reads the config.json of such a model: its text_config by `read`, whose defaults are `known`; `others` are
    the fields that its other parts have."""

    def read_half(fields: Fields) -> ModelConfig:
        text = {**part(fields, "text_config"), "tie_word_embeddings": fields.flag("tie_word_embeddings")}
        for name in others:
            fields.take(name, *([] if name in fields.defaults else [None]))
        cfg = read(Fields(text, f"{fields.file}: text_config", dict(known)))
        fields.finish()
        warnings.warn(f"{fields.file}: the text model alone is read, without images and sounds", stacklevel=2)
        return cfg

    return read_half


def write_text_half(cfg: ModelConfig) -> dict[str, Any]:
    """Raises ValueError: the text model alone is of its own architecture."""
    raise ValueError("a text model alone, where the architecture has other parts")
