"""The handwritten digits of scikit-learn."""

import json
import sys

import numpy as np
import pytest

from lm.data import digits
from lm.data.captions import Captions
from lm.data.digits import Digits
from lm.text.image_tokens import ImageTokens
from lm.text.tokenizer import ByteTokenizer


def test_a_share_is_held_out() -> None:
    train, held = (list(Digits().documents(split)) for split in ("train", "heldout"))
    assert len(train) + len(held) == 1797 and 300 < len(held) < 420 and not set(train) & set(held)
    assert len(Digits(0.5).documents("heldout")) > 800 and Digits(0.5).fingerprint() != Digits().fingerprint()
    source, record = Captions(Digits(), ImageTokens(255, 4), size=8), json.loads(train[0])
    (one,) = source.encode(train[:1], ByteTokenizer())
    assert one.ids.tolist().count(255) == 4 and record["completion"] in "0123456789"
    images = np.concatenate([source.read(document) for document in train[:20]])
    assert np.array_equal(images[0], Digits().draw_image(record["image"]))
    assert images.max() == 255 and images.min() == 0


def test_a_machine_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    digits._digits.cache_clear()
    with pytest.raises(ValueError, match=r'come with scikit-learn, the extra digits: pip install -e "\.\[digits\]"'):
        Digits().documents("train")
