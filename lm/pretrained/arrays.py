"""Arrays that a user gives a loaded model: checked, and padded to rows of one length."""

from collections.abc import Sequence
from typing import Any

import numpy as np

BLOCK = 32  # texts of a batch, and the multiple that lengths are padded to, so that similar ones share a program


def as_integers(what: str, values: Any) -> np.ndarray:
    """`values` as an array of integers."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError(
            f"{what} of several lengths: pad them to one length, and mark padding in attention_mask"
        ) from None
    if array.size and array.dtype.kind not in "iub":
        raise ValueError(f"{what} of {array.dtype}: expected integers")
    return array


def checked_like(what: str, values: Any, ids: np.ndarray, below: int) -> np.ndarray:
    """`values` as int32, checked to have the shape of `ids` and to be in [0, below)."""
    values = as_integers(what, values)
    if values.shape != ids.shape:
        raise ValueError(f"{what} of shape {values.shape}: expected that of the token ids, {ids.shape}")
    if values.size and not (0 <= values.min() and values.max() < below):
        raise ValueError(f"{what} from {values.min()} to {values.max()}: expected 0 to {below - 1}")
    return values.astype(np.int32)


def padded(rows: Sequence[Sequence[int]], most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most `most` ids, padded on the right, and their mask (0: padding): both int32 [B, T]."""
    width = min(most, -(-max(map(len, rows)) // BLOCK) * BLOCK)
    mask = np.stack([np.arange(width) < len(row) for row in rows]).astype(np.int32)
    ids = np.zeros_like(mask)
    ids[mask > 0] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return ids, mask


def cut(ids: Sequence[int], most: int, around: Sequence[int]) -> list[int]:
    """At most `most` of a text's ids: of a longer one the last are left out, but for those at its end that its
    tokenizer adds, as it does `around` a text of nothing."""
    added = 0
    while added < len(around) and ids[-1 - added] == around[-1 - added]:
        added += 1
    return list(ids) if len(ids) <= most else [*ids[: most - added], *ids[len(ids) - added :]]
