"""Prompts with pictures, as a model with eyes reads them: ids with places for soft tokens, and the pictures' pixels."""

from collections.abc import Sequence

import numpy as np

from lm.data.pictures import Picture, read_pictures
from lm.model.config import ModelConfig, Vision
from lm.text.protocol import Tokenizer

MARK = "<image>"


def eyes_of(cfg: ModelConfig) -> Vision:
    """The eyes of a model. Raises ValueError where it has none."""
    if cfg.vision is None:
        raise ValueError(
            "this model reads text alone: give it no picture, or take a model with eyes, as Gemma 3 from 4B on"
        )
    return cfg.vision


def look_at(pictures: Sequence[Picture], cfg: ModelConfig) -> np.ndarray:
    """Pictures as the model reads them, uint8 [M, size, size, 3]. Raises ValueError for one that cannot be read, and
    where the model has no eyes."""
    vision = eyes_of(cfg)
    return read_pictures(pictures, vision.image_size, vision.resample)


def encode_with_pictures(
    prompt: str, pictures: int, tokenizer: Tokenizer, vision: Vision, special: bool = False
) -> list[int]:
    """The ids of a prompt with so many pictures, each where it has the mark <image> or the model's own; without marks
    they come first.

    Args:
      prompt: text.
      pictures: how many.
      tokenizer, vision: the model's.
      special: whether names of control ids in the prompt are those ids, as in a rendered chat.

    Raises ValueError where there are other marks than pictures."""
    own = tokenizer.controls.get(vision.begin_token)
    text = prompt.replace(own, MARK) if own else prompt
    marks = text.count(MARK)
    if marks not in (0, pictures):
        raise ValueError(
            f"{pictures} pictures and {marks} marks {MARK} in the prompt: expected as many, or none: pictures "
            "then come first"
        )
    soft = [vision.image_token] * vision.soft_tokens
    if vision.prefix:  # as PaliGemma was trained: pictures, then the prompt, which ends its line
        return soft * pictures + tokenizer.encode_prompt(text.replace(MARK, "") + "\n", special)
    first, *rest = (text if marks else MARK * pictures + text).split(MARK)
    picture = [*_if_any(vision.begin_token), *soft, *_if_any(vision.end_token)]
    ids = tokenizer.encode_prompt(first + vision.separator * bool(rest), special)
    for i, part in enumerate(rest, 1):
        after = vision.separator + part + vision.separator * (i < len(rest))
        ids += picture + tokenizer.encode_after(after, special)
    return ids


def check_marks(
    rows: Sequence[Sequence[int]], images: np.ndarray, cfg: ModelConfig, what: str = "prompt", exact: bool = True
) -> None:
    """Raises ValueError where a row of ids has other places for soft tokens than its pictures [M, size, size, 3] have,
    or, unless `exact`, the first of them."""
    vision = eyes_of(cfg)
    for i, ids in enumerate(rows):
        places, soft = list(ids).count(vision.image_token), images.shape[1] * vision.soft_tokens
        if places > soft or places % vision.soft_tokens or exact and places != soft:
            raise ValueError(
                f"{what} {i} has {places:,} tokens {vision.image_token} for pictures of {soft:,}: expected "
                f"{vision.soft_tokens:,} a picture"
            )


def _if_any(token: int) -> list[int]:
    return [] if token < 0 else [token]
