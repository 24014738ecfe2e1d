"""Images as a vision model reads them."""

from collections.abc import Sequence

import numpy as np

from lm.data.images import ImageLike, read_images
from lm.decode.images import vision_of
from lm.model.config import ModelConfig
from lm.text.tokenizer import Tokenizer
from lm.tune.vision import image_tokens


def look_at(images: Sequence[ImageLike], cfg: ModelConfig) -> np.ndarray:
    """Images as the model reads them, uint8 [M, size, size, 3]. Raises ValueError for one that cannot be read, and
    where the model has no vision tower."""
    vision = vision_of(cfg)
    return read_images(images, vision.image_size, vision.resample)


def read_prompt(
    prompt: str, images: Sequence[ImageLike], cfg: ModelConfig, tokenizer: Tokenizer
) -> tuple[list[int], np.ndarray]:
    """The ids of a prompt about images, and these as the model reads them; errors as `look_at`, and where the prompt
    has other marks than images."""
    return prompt_ids(prompt, len(images), cfg, tokenizer), look_at(images, cfg)


def prompt_ids(prompt: str, images: int, cfg: ModelConfig, tokenizer: Tokenizer) -> list[int]:
    """The ids of a prompt about so many images, as the model reads them; errors as `read_prompt`."""
    return image_tokens(vision_of(cfg)).encode(prompt, images, tokenizer) if images else tokenizer.encode_prompt(prompt)
