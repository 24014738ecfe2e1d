"""Prompts with images, as a vision model reads them: ids with places for soft tokens, and the images' pixels."""

from collections.abc import Sequence

import numpy as np

from lm.data.images import ImageLike, read_images
from lm.model.config import ModelConfig, Vision


def vision_of(cfg: ModelConfig) -> Vision:
    """The vision of a model. Raises ValueError where it has none."""
    if cfg.vision is None:
        raise ValueError(
            "this model reads text alone: give it no image, or take a model with a vision tower, as Gemma 3 from 4B on"
        )
    return cfg.vision


def look_at(images: Sequence[ImageLike], cfg: ModelConfig) -> np.ndarray:
    """Images as the model reads them, uint8 [M, size, size, 3]. Raises ValueError for one that cannot be read, and
    where the model has no vision tower."""
    vision = vision_of(cfg)
    return read_images(images, vision.image_size, vision.resample)


def check_marks(
    rows: Sequence[Sequence[int]], images: np.ndarray, cfg: ModelConfig, what: str = "prompt", exact: bool = True
) -> None:
    """Raises ValueError where a row of ids has other places for soft tokens than its images [M, size, size, 3] have,
    or, unless `exact`, the first of them.

    Args:
      rows: token ids, a list a row.
      images: the images of each row, [B, M, size, size, 3].
      cfg: of the model that reads both.
      what: a row is called in the message.
      exact: whether every image has its place."""
    vision = vision_of(cfg)
    for i, ids in enumerate(rows):
        places, soft = list(ids).count(vision.image_token), images.shape[1] * vision.soft_tokens
        if places > soft or places % vision.soft_tokens or exact and places != soft:
            raise ValueError(
                f"{what} {i} has {places:,} tokens {vision.image_token} for images of {soft:,}: expected "
                f"{vision.soft_tokens:,} an image"
            )
