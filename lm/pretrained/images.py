"""Images as a vision model reads them."""

from collections.abc import Sequence

import numpy as np

from lm.data.images import ImageLike, read_images
from lm.decode.images import vision_of
from lm.model.config import ModelConfig


def look_at(images: Sequence[ImageLike], cfg: ModelConfig) -> np.ndarray:
    """Images as the model reads them, uint8 [M, size, size, 3]. Raises ValueError for one that cannot be read, and
    where the model has no vision tower."""
    vision = vision_of(cfg)
    return read_images(images, vision.image_size, vision.resample)
