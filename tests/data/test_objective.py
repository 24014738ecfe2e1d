import numpy as np

from lm.data.objective import CausalLM, Rows, padded, positions


def test_causal_targets_are_the_next_tokens_of_the_same_document() -> None:
    tokens = np.array([[1, 5, 6, 2, 1, 7, 2, 0, 0]], np.int32)  # bos 1, eos 2
    documents = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]], np.int32)
    batch = CausalLM().batch(Rows(tokens, documents, documents))
    assert batch["tokens"].tolist() == [[1, 5, 6, 2, 1, 7, 2, 0]]
    assert batch["targets"].tolist() == [[5, 6, 2, 1, 7, 2, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 1, 0, 1, 1, 0, 0]]  # nothing is asked where the input is eos
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 2, 2, 2, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "weights": "float32",
        "segment_ids": "int32",
        "positions": "int32",
    }


def test_positions_count_from_each_segments_start() -> None:
    rng = np.random.default_rng(0)
    segments = np.cumsum(rng.random((5, 40)) < 0.2, axis=1)
    counted = positions(segments)
    for row, segment in zip(counted, segments, strict=True):
        for s in np.unique(segment):
            assert row[segment == s].tolist() == list(range((segment == s).sum()))


def test_padding_has_no_weight_and_no_segment() -> None:
    ones = np.ones((2, 3), np.int32)
    batch = padded(CausalLM().batch(Rows(ones, ones, ones)), 4)
    assert all(array.shape == (4, 2) for array in batch.values())
    assert batch["weights"].sum() == 4 and not batch["segment_ids"][2:].any()
