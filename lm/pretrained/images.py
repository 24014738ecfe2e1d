"""Prompts with pictures, as a model with eyes reads them: ids with places for soft tokens, and the pictures' pixels."""

from collections.abc import Sequence

import numpy as np

from lm.data.pictures import Picture, read_pictures
from lm.model.config import ModelConfig, Vision


def vision_of(cfg: ModelConfig) -> Vision:
    """The eyes of a model. Raises ValueError where it has none."""
    if cfg.vision is None:
        raise ValueError(
            "this model reads text alone: give it no picture, or take a model with eyes, as Gemma 3 from 4B on"
        )
    return cfg.vision


def look_at(pictures: Sequence[Picture], cfg: ModelConfig) -> np.ndarray:
    """Pictures as the model reads them, uint8 [M, size, size, 3]. Raises ValueError for one that cannot be read, and
    where the model has no eyes."""
    vision = vision_of(cfg)
    return read_pictures(pictures, vision.image_size, vision.resample)


def check_marks(
    rows: Sequence[Sequence[int]], images: np.ndarray, cfg: ModelConfig, what: str = "prompt", exact: bool = True
) -> None:
    """Raises ValueError where a row of ids has other places for soft tokens than its pictures [M, size, size, 3] have,
    or, unless `exact`, the first of them.

    Args:
      rows: token ids, a list a row.
      images: the pictures of each row, [B, M, size, size, 3].
      cfg: of the model that reads both.
      what: a row is called in the message.
      exact: whether every picture has its place."""
    vision = vision_of(cfg)
    for i, ids in enumerate(rows):
        places, soft = list(ids).count(vision.image_token), images.shape[1] * vision.soft_tokens
        if places > soft or places % vision.soft_tokens or exact and places != soft:
            raise ValueError(
                f"{what} {i} has {places:,} tokens {vision.image_token} for pictures of {soft:,}: expected "
                f"{vision.soft_tokens:,} a picture"
            )
