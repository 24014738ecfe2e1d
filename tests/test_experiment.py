"""Experiments: what cannot be is refused with the cure, what changes no number is told apart from what does."""

from pathlib import Path
from typing import Any

import pytest

from lm.experiment import INERT, Experiment, changed
from lm.value import field_names, plain
from tests.tiny import experiment

TINY = experiment(Path("texts"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"batch_tokens": -1}, "batch_tokens=-1: expected at least 1"),
        ({"eval_every_steps": 0}, "eval_every_steps=0: expected at least 1"),
        ({"checkpoint_every_steps": 0}, "checkpoint_every_steps=0: expected at least 1"),
        ({"keep_last": 0}, "keep_last=0: expected at least 1"),
        ({"method": {"z_loss": -0.1}}, "z_loss=-0.1: expected at least 0"),
        ({"seed": -1}, "seed=-1: expected at least 0"),
        ({"name": ""}, "name='': expected a name that can be a folder's"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"name": ".."}, "name='..'"),
        ({"name": "a\x00"}, r"name='a\\x00'"),
        ({"name": "x" * 201}, "name='xxx"),
        ({"ema": 1.0}, "ema=1.0: expected at least 0 and less than 1"),
        ({"seq_len": 33}, "seq_len=33 is longer than model.context=32: lower the one or raise the other"),
        ({"batch_tokens": 100}, r"batch_tokens=100 is not a multiple of 32 \(rows of 32 tokens x 1 .*: try 96 or 128"),
        ({"accumulate": 3}, "batch_tokens=256 is not a multiple of 96 .*: try 192 or 288"),
        ({"batch_tokens": 8}, "batch_tokens=8 is not a multiple of 32 .*: try 32"),
        ({"steps": 1}, "warmup_steps=2 is longer than the run of 1 steps"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TINY.replace(changes)


def test_rows_follow_from_tokens() -> None:
    assert (TINY.length, TINY.rows) == (32, 8)
    shorter = TINY.replace(seq_len=16)
    assert (shorter.length, shorter.rows) == (16, 16)


def test_what_changes_no_number_is_no_difference() -> None:
    assert set(field_names(TINY)) >= INERT
    other = TINY.replace(name="b", log_every_steps=9, keep_last=7, keep_best=0, prompts=(), sample_tokens=1)
    assert changed(plain(TINY), plain(other)) == [] and other.fingerprint != TINY.fingerprint
    assert changed(plain(TINY), plain(TINY.replace(steps=99, keep_last=9))) == [("steps", 12, 99)]


def test_an_experiment_is_a_value() -> None:
    assert experiment(Path("texts")) == TINY and experiment(Path("texts")).fingerprint == TINY.fingerprint
    assert isinstance(TINY.replace(dict(steps=20), seed=1), Experiment)
