"""Damaged checkpoints are passed over, and none is lost to an error that is no damage."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from lm.train.checkpoint import Checkpoints
from lm.train.state import TrainState
from tests.train.test_checkpoint import abstract, at, filled, params, python, same


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


HARM: dict[str, Callable[[Path], None]] = {
    "a flipped bit": lambda folder: flip(largest(folder / "state")),
    "a truncated file": lambda folder: largest(folder / "state").write_bytes(b"short"),
    "a missing file": lambda folder: largest(folder / "state").unlink(),
    "no manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "no about": lambda folder: (folder / "about" / "about.json").unlink(),
    "half an about": lambda folder: (folder / "about" / "about.json").write_text('{"step": 2, "arr'),
    "another about": lambda folder: (folder / "about" / "about.json").write_text(
        (folder / "about" / "about.json").read_text().replace('"tokens": 20', '"tokens": 21')
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_newest_falls_back_to_the_one_before(harm: str, open_at: Callable[..., Checkpoints]) -> None:
    folder = filled(open_at, 1, 2)
    HARM[harm](folder / "2")
    said: list[str] = []
    checkpoints = open_at(warn=said.append)
    state, extra, step = checkpoints.restore(abstract())
    same(state, at(1))
    assert (extra, step, checkpoints.latest) == ({"tokens": 10}, 1, 1)
    assert len(said) == 1 and "\n" not in said[0]
    assert "checkpoint 2 in" in said[0] and "is damaged (" in said[0] and "going back to checkpoint 1" in said[0]
    checkpoints.save(at(2), extra={"again": True})  # the run comes to that step again
    checkpoints.wait()
    state, extra, step = open_at(warn=pytest.fail).restore(abstract())
    same(state, at(2))
    assert (extra, step) == ({"again": True}, 2)


STALE = OSError(116, "Stale file handle")
STATUS = "UNAVAILABLE: Error reading local file: [OS error 5: EIO Input/output error]"


def fail(monkeypatch: pytest.MonkeyPatch, times: int, error: Exception, name: str = "_about") -> None:
    """The first `times` readings of checkpoint 3 raise."""
    read, left = getattr(Checkpoints, name), [times]

    def once(self: Checkpoints, step: int, *others: Any) -> Any:
        if step == 3 and left[0]:
            left[0] -= 1
            raise error
        return read(self, step, *others)

    monkeypatch.setattr("lm.train.checkpoint.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(Checkpoints, name, once)


@pytest.mark.parametrize(
    ("name", "error"),
    [("_about", STALE), ("_read", STALE), ("_read", ValueError(STATUS)), ("_read", MemoryError("out of memory"))],
)
def test_a_read_error_that_passes_is_no_damage(
    name: str, error: Exception, open_at: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(open_at, 2, 3)
    fail(monkeypatch, 1, error, name)
    said: list[str] = []
    assert open_at(warn=said.append).restore(abstract())[2] == 3
    assert len(said) == 1 and str(error) in said[0] and said[0].endswith("trying again")


@pytest.mark.parametrize("error", [STALE, ValueError(STATUS), ValueError("NOT_FOUND: [OS error 19: ENODEV]")])
def test_a_read_error_that_stays_is_told_and_no_checkpoint_is_lost(
    error: Exception, open_at: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(open_at, 2, 3)
    checkpoints = open_at(warn=lambda line: None, keep_last=9)
    with monkeypatch.context() as patched:
        fail(patched, 9, error, "_read")
        with pytest.raises(ValueError, match="which is no damage, .*to go back to checkpoint 2") as raised:
            checkpoints.restore(abstract())
    assert "\n" not in str(raised.value) and f"{folder}/3" in str(raised.value)
    checkpoints.save(at(4))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3, 4]


def test_the_best_is_kept_where_its_score_cannot_be_read(
    open_at: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = open_at()
    for step, loss in ((3, 1.0), (4, 5.0), (5, 6.0)):
        checkpoints.save(at(step), {"loss": loss})
    checkpoints.close()
    fail(monkeypatch, 99, STALE)
    checkpoints = open_at()
    checkpoints.save(at(6), {"loss": 4.0})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 5, 6]


def test_a_damaged_checkpoint_is_set_aside_until_a_newer_one_is_whole(open_at: Callable[..., Checkpoints]) -> None:
    folder = filled(open_at, 1, 4)
    flip(largest(folder / "4" / "state"))
    checkpoints = open_at(warn=lambda line: None)
    checkpoints.restore(abstract())
    checkpoints.save(at(3))
    checkpoints.close()
    assert {p.name for p in folder.iterdir()} == {"1", "3", "4.damaged"}
    checkpoints = open_at(warn=pytest.fail)
    assert checkpoints.restore(abstract())[2] == 3
    checkpoints.close()  # one that only read
    checkpoints = open_at()
    checkpoints.save(at(4))
    checkpoints.wait()
    assert (folder / "4.damaged").exists()
    checkpoints.close()
    assert checkpoints.steps() == [1, 3, 4] and not (folder / "4.damaged").exists()


BROKEN = """
import sys
import jax, jax.numpy as jnp
from lm.train.checkpoint import Checkpoints

array = jax.ShapeDtypeStruct((64, 64), jnp.float32)
for folder in sys.argv[1:]:
    checkpoints = Checkpoints(folder)
    print(checkpoints.restore({"params": {"w": array, "v": array}})[2])
    checkpoints.close()
"""


def test_one_line_is_all_that_is_said(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "whole")
    for step in (1, 2):
        arrays = {"w": jnp.arange(4096.0).reshape(64, 64), "v": jnp.ones((64, 64))}
        checkpoints.save(TrainState(jnp.asarray(step, jnp.int32), arrays, ()))
    checkpoints.close()
    harms = ("a truncated file", "a missing file", "no manifest")
    folders = [shutil.copytree(tmp_path / "whole", tmp_path / harm) for harm in harms]
    for folder, harm in zip(folders, harms, strict=True):
        HARM[harm](folder / "2")
    done = python(BROKEN, *map(str, folders))
    assert done.stdout == "1\n" * 3 and done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 3 and all("going back to checkpoint 1" in line for line in said), done.stderr
    assert all(str(folder) in line for folder, line in zip(folders, said, strict=True))


def test_any_file_of_a_checkpoint_may_be_lost(open_at: Callable[..., Checkpoints]) -> None:
    """Whatever file is emptied, what comes back is right: the newest if the file did not matter, else the older."""
    folder = filled(open_at, 1, 2)
    files = sorted(p for p in (folder / "2").rglob("*") if p.is_file())
    assert len(files) > 5
    for path in files:
        before = path.read_bytes()
        path.write_bytes(b"")
        state, _, step = open_at(warn=lambda line: None).restore({"params": abstract().params})
        same(state, {"params": params(step)})
        path.write_bytes(before)


def test_none_whole_is_an_error_that_names_each(open_at: Callable[..., Checkpoints]) -> None:
    folder = filled(open_at, 1, 2)
    for step in "12":
        (folder / step / "about" / "about.json").unlink()
    with pytest.raises(ValueError, match="checkpoint 2 is damaged .* checkpoint 1 is damaged") as error:
        open_at().restore(abstract())
    assert "\n" not in str(error.value)
