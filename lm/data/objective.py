"""Objectives: what a model is asked about a row of tokens.

A packing gives rows of T + 1 tokens; an objective turns them into the batch of T inputs and T targets that a model
reads. CausalLM asks for the next token. Prefix, masked and span-corruption objectives are other subclasses of
`Objective`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]


class Rows(NamedTuple):
    """R rows of T + 1 tokens, all [R, T + 1] int32. `documents` numbers the documents of a row from 1 in their order, 0
    is padding; `segments` numbers what may attend to each other (the documents, or 1 for all)."""

    tokens: np.ndarray
    documents: np.ndarray
    segments: np.ndarray


@dataclass(frozen=True)
class Objective:
    """Rows to batches."""

    def batch(self, rows: Rows) -> Batch:
        """tokens, targets, segment_ids (1.., 0 padding), positions (from 0 in each segment), all int32, and weights
        float32 (0 where there is nothing to predict), each [R, T]."""
        raise NotImplementedError


@dataclass(frozen=True)
class CausalLM(Objective):
    """Predict each token of a document from those before it. Nothing is asked at a document's last token (its eos)."""

    def batch(self, rows: Rows) -> Batch:
        here, next_ = rows.documents[:, :-1], rows.documents[:, 1:]
        segments = rows.segments[:, :-1]
        return {
            "tokens": rows.tokens[:, :-1].astype(np.int32),
            "targets": rows.tokens[:, 1:].astype(np.int32),
            "weights": ((here > 0) & (here == next_)).astype(np.float32),
            "segment_ids": segments.astype(np.int32),
            "positions": positions(segments),
        }


def positions(segments: np.ndarray) -> np.ndarray:
    """[R, T] int32: how far each token is from the start of its segment."""
    index = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    starts = np.zeros_like(index)
    starts[:, 1:] = np.where(segments[:, 1:] != segments[:, :-1], index[:, 1:], 0)
    return index - np.maximum.accumulate(starts, axis=1)


def padded(batch: Batch, rows: int) -> Batch:
    """`batch` with rows of padding (zeros: no segment, no weight) up to `rows`."""
    return {name: np.pad(array, ((0, rows - len(array)), (0, 0))) for name, array in batch.items()}
