"""Images of prompts: the places that they have among the ids, and the parts in which such a prompt is read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.model.config import ModelConfig, Vision


def vision_of(cfg: ModelConfig) -> Vision:
    """The vision of a model. Raises ValueError where it has none."""
    if cfg.vision is None:
        raise ValueError(
            "this model reads text alone: give it no image, or take a model with a vision tower, as Gemma 3 from 4B on"
        )
    return cfg.vision


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


def check_images(prompt: Sequence[int], images: np.ndarray, cfg: ModelConfig) -> None:
    """Raises ValueError for images of a request, uint8 [M, size, size, 3], that its model does not read, or that have
    other places than the prompt has for them."""
    vision = vision_of(cfg)
    wanted = (vision.image_size, vision.image_size, vision.channels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted:
        raise ValueError(f"images of {images.dtype} {list(images.shape)}: expected uint8 [M, {str(list(wanted))[1:]}")
    if vision.prefix:
        raise ValueError("this model reads a prompt in both directions (prefix-LM), which `generate` alone does")
    check_marks([prompt], images[None], cfg)


class Part(NamedTuple):
    """A part of a prompt, up to `end`: a text, or the places of `images` [1, M, size, size, 3]."""

    end: int
    images: np.ndarray | None = None


def parts_of(prompt: Sequence[int], images: np.ndarray | None, cfg: ModelConfig) -> list[Part]:
    """The parts of a prompt that are read apart: texts, and images, whose soft tokens see one another. Those of images
    without text between them are one, as they are one block of attention's mask.

    Args:
      prompt: token ids.
      images: uint8 [M, size, size, 3], for which it has places; None: it is a text.
      cfg: of the model."""
    if images is None:
        return [Part(len(prompt))]
    vision = vision_of(cfg)
    marks, seen, parts = np.asarray(prompt) == vision.image_token, 0, []
    for end in [*(np.flatnonzero(marks[1:] != marks[:-1]) + 1).tolist(), len(prompt)]:
        before, seen = seen, int(marks[:end].sum()) // vision.soft_tokens
        parts.append(Part(end, images[None, before:seen] if seen > before else None))
    return parts
