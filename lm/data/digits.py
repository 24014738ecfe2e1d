"""Handwritten digits, real images that come with a package and are not downloaded: scikit-learn's 1,797 of 8 by 8
pixels (the test set of UCI's "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak, 1998)."""

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.bounds import Share, check
from lm.data.source import Documents, Source, digest, is_train, not_empty

QUESTION = "what digit is this?"
INK = 16  # the darkest of a pixel


@dataclass(frozen=True)
class Digits(Source):
    """A question about each image, whose answer is its digit: white ink on black. A share `heldout` of the images is
    held out by their content. Captions(Digits()) trains on them. It needs the extra digits."""

    heldout: Share = 0.2

    def __post_init__(self) -> None:
        check(self)

    def documents(self, split: str) -> Documents:
        images, labels = _digits()
        limit = round(self.heldout * 2**64)
        numbers = [i for i, image in enumerate(images) if (_hash(image) >= limit) == is_train(split)]
        return not_empty(Documents(len(numbers), lambda i: _record(numbers[i], int(labels[numbers[i]]))), self, split)

    def fingerprint(self) -> str:
        images, labels = _digits()
        return digest(self, "digits 1", hashlib.sha256(images.tobytes() + bytes(labels.tolist())).hexdigest())

    def draw_image(self, number: Any) -> np.ndarray:
        """The image of a record, uint8 [8, 8, 3]."""
        return np.repeat(_digits()[0][int(number)][..., None], 3, -1)


def _record(number: int, digit: int) -> str:
    return json.dumps({"image": number, "prompt": QUESTION, "completion": str(digit)})


def _hash(image: np.ndarray) -> int:
    return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8], "big")


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The images [N, 8, 8] of uint8 and their digits [N]. Raises ValueError where scikit-learn is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        cure = 'pip install -e ".[digits]"'
        raise ValueError(f"the handwritten digits come with scikit-learn, the extra digits: {cure} ({error})") from None
    found = load_digits()
    return (found.images * (255 / INK)).round().astype(np.uint8), found.target.astype(np.uint8)
