"""Checkpoints: what comes back is what was saved, and a bad disk or a kill costs one checkpoint at most."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from lm.sharding.mesh import make_mesh
from lm.sharding.shardings import shardings, shardings_like
from lm.train.checkpoint import Checkpoints, checksum
from lm.train.state import TrainState, new_state, update_ema

ROOT = Path(__file__).parent.parent.parent
AXES = {"layers": {"up": ("layers", "embed", "mlp"), "scale": ("layers", "norm")}, "tokens": ("vocab", "embed")}
ADAM = optax.adam(1e-3)


def params(seed: float = 0.0) -> Any:
    """Large enough that Orbax gives them files of their own, and that no two words are alike."""
    up = jnp.arange(2 * 64 * 128, dtype=jnp.float32).reshape(2, 64, 128) + seed
    return {
        "layers": {"up": up, "scale": jnp.full((2, 64), seed, jnp.bfloat16)},
        "tokens": jnp.full((32, 64), seed, jnp.float32),
    }


def at(step: int, ema: bool = True) -> TrainState:
    """A state whose every value tells its step."""
    state = new_state(params(step), ADAM, ema=ema)
    moments = jax.tree.map(lambda x: x + step, state.opt_state)
    return dataclasses.replace(state, step=jnp.asarray(step, jnp.int32), opt_state=moments)


def abstract(ema: bool = True, mesh: Any = None) -> TrainState:
    state = jax.eval_shape(lambda: at(0, ema))
    if mesh is None:
        return state
    where = shardings_like(state, state.params, shardings(state.params, AXES, mesh), mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where)


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def filled(open_at: Callable[..., Checkpoints], *steps: int) -> Path:
    checkpoints = open_at(keep_last=len(steps))
    for step in steps:
        checkpoints.save(at(step), {"loss": 1 / step}, {"tokens": step * 10})
    checkpoints.close()
    return Path(checkpoints.directory)


def test_what_comes_back_is_what_was_saved(
    open_at: Callable[..., Checkpoints], capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoints = open_at()
    assert checkpoints.steps() == [] and checkpoints.latest is None
    checkpoints.save(at(3), {"loss": 2.5}, {"seed": 1, "names": ["a"]})
    checkpoints.wait()
    state, extra, step = open_at().restore(abstract())
    same(state, at(3))
    assert (extra, step, open_at().latest) == ({"seed": 1, "names": ["a"]}, 3, 3)
    assert capfd.readouterr() == ("", "")


def test_without_an_average_or_frozen_weights_nothing_is_stored_for_them(open_at: Callable[..., Checkpoints]) -> None:
    checkpoints = open_at()
    checkpoints.save(at(1, ema=False))
    checkpoints.wait()
    same(checkpoints.restore(abstract(ema=False))[0], at(1, ema=False))
    with pytest.raises(ValueError, match="it has no ema.layers.scale"):
        checkpoints.restore(abstract())


def test_a_part_is_read_alone(open_at: Callable[..., Checkpoints]) -> None:
    filled(open_at, 2)
    for part in ("params", "ema"):
        got, _, _ = open_at().restore({part: abstract().params})
        same(got, {part: params(2)})


def test_what_all_devices_hold_is_cut_into_a_slice_a_device_only_where_it_is_large(
    open_at: Callable[..., Checkpoints],
) -> None:
    arrays = {"large": jnp.ones((8, 2**18)), "small": jnp.ones((8, 2**18 - 1))}  # 1 MiB a slice, and less
    state = TrainState(jnp.int32(1), arrays, (), (), ())
    everywhere = NamedSharding(make_mesh({"data": 8}), PartitionSpec())
    checkpoints = open_at()
    checkpoints.save(jax.device_put(state, everywhere))
    checkpoints.wait()
    with ocp.PyTreeCheckpointer() as reader:
        found = reader.metadata(Path(checkpoints.directory) / "1" / "state").item_metadata
    shapes = {name: found[f"params.{name}"].storage.chunk_shape for name in arrays}
    assert shapes == {"large": (1, 2**18), "small": (8, 2**18 - 1)}


def test_onto_another_mesh(open_at: Callable[..., Checkpoints]) -> None:
    """Saved from one layout of eight devices, read into others and into one device."""
    first = abstract(mesh=make_mesh({"fsdp": 4, "tensor": 2}))
    state = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), at(5), first)
    checkpoints = open_at()
    checkpoints.save(state)
    checkpoints.wait()
    for mesh in (make_mesh({"data": 8}), make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
        wanted = abstract(mesh=mesh)
        got, _, _ = open_at().restore(wanted)
        same(got, at(5))
        assert all(x.sharding == a.sharding for x, a in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True))
    same(open_at().restore(abstract())[0], at(5))


def test_the_state_may_be_donated_as_soon_as_save_returns(open_at: Callable[..., Checkpoints]) -> None:
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = TrainState(jnp.asarray(0, jnp.int32), {"w": jnp.zeros((1024, 1024))}, ())
    checkpoints = open_at(keep_last=9)
    wanted = jax.eval_shape(lambda: state)
    for _ in range(3):
        state = step(step(step(state)))
        checkpoints.save(state)
        for _ in range(3):
            state = step(state)  # in place, while Orbax writes
    checkpoints.wait()
    assert checkpoints.steps() == [3, 9, 15]
    got, _, _ = open_at(warn=pytest.fail).restore(wanted)
    assert float(got.params["w"].min()) == float(got.params["w"].max()) == 15


def test_the_newest_and_the_best_are_kept(open_at: Callable[..., Checkpoints]) -> None:
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: float("nan"), 5: 3.0}
    checkpoints = open_at(keep_last=2, keep_best=1, metric="eval/loss")
    for step, loss in losses.items():
        checkpoints.save(at(step), {"eval/loss": loss})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints = open_at(keep_last=1, keep_best=2, metric="eval/loss")  # the scores are read from disk
    checkpoints.save(at(6))
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]


def test_a_step_is_saved_once(open_at: Callable[..., Checkpoints]) -> None:
    checkpoints = open_at()
    checkpoints.save(at(1), extra={"first": True})
    checkpoints.save(at(1), extra={"first": False})
    checkpoints.wait()
    assert checkpoints.restore(abstract())[1] == {"first": True}


def test_a_digest_is_of_the_newest_and_waits_for_no_other_process(
    open_at: Callable[..., Checkpoints], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax's manager is made and asked by all processes together."""
    folder = filled(open_at, 1, 2)
    (folder / "3.tmp").mkdir()  # not finished
    monkeypatch.setattr("lm.train.checkpoint._orbax", lambda: pytest.fail("orbax was asked"))
    first = Checkpoints(folder).digest()
    about = json.loads((folder / "2" / "about" / "about.json").read_text())
    assert first == about["digest"]
    (folder / "2" / "about" / "about.json").write_text(json.dumps({**about, "step": 7}))
    with pytest.raises(ValueError, match="does not match its checksum"):
        Checkpoints(folder).digest()
    with pytest.raises(ValueError, match="no checkpoint to read in"):
        Checkpoints(tmp_path / "none").digest()


def test_none_at_all_is_an_error_and_makes_no_folder(open_at: Callable[..., Checkpoints]) -> None:
    checkpoints = open_at()
    with pytest.raises(ValueError, match="no checkpoint to read in"):
        checkpoints.restore(abstract())
    assert not Path(checkpoints.directory).exists()


def test_another_model_is_an_error_not_damage(open_at: Callable[..., Checkpoints]) -> None:
    filled(open_at, 1, 2)
    wanted = abstract()
    wider = {**wanted.params, "tokens": jax.ShapeDtypeStruct((32, 65), jnp.float32)}
    with pytest.raises(
        ValueError, match=r"params.tokens is float32\[32, 64\] in the checkpoint, float32\[32, 65\] in this run"
    ):
        open_at(warn=pytest.fail).restore(dataclasses.replace(wanted, params=wider))
    fewer = {"tokens": wanted.params["tokens"]}
    with pytest.raises(ValueError, match="it has params.layers.scale, which this run does not have"):
        open_at(warn=pytest.fail).restore({"params": fewer})


KILLED = """
import os, signal, sys, threading
import jax, jax.numpy as jnp
from lm.train.checkpoint import Checkpoints
from lm.train.state import TrainState

state = lambda step: TrainState(jnp.asarray(step, jnp.int32), {"w": jnp.full((512, 1024), float(step))}, ())
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(state(1))
checkpoints.wait()
checkpoints.save(state(2))
os.kill(os.getpid(), signal.SIGKILL)
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_killed_in_the_middle_of_a_save(tmp_path: Path) -> None:
    done = python(KILLED, str(tmp_path))
    assert done.returncode == -9, done.stderr
    checkpoints = Checkpoints(tmp_path, warn=pytest.fail)
    wanted = TrainState(jax.ShapeDtypeStruct((), jnp.int32), {"w": jax.ShapeDtypeStruct((512, 1024), jnp.float32)}, ())
    state, _, step = checkpoints.restore(wanted)
    assert step in (1, 2) and float(state.params["w"].max()) == step
    checkpoints.save(dataclasses.replace(state, step=jnp.asarray(3, jnp.int32)))
    checkpoints.close()
    assert not list(tmp_path.glob("*tmp*")) and checkpoints.latest == 3


FULL = """
import resource, signal, sys
import jax, jax.numpy as jnp
from lm.train.checkpoint import Checkpoints
from lm.train.state import TrainState

state = lambda step, rows: TrainState(jnp.asarray(step, jnp.int32), {"w": jnp.full((rows, 1024), float(step))}, ())
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(state(1, 16))
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # no file above a megabyte: the nearest to a full disk
try:
    checkpoints.save(state(2, 1024))
    checkpoints.wait()
except ValueError as error:
    print(error)
print(checkpoints.steps())
checkpoints.close()
"""


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    done = python(FULL, str(tmp_path))
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and done.returncode == 0, done.stdout + done.stderr
    assert f"cannot write checkpoints in {tmp_path} (" in lines[0] and "free some disk space" in lines[0]
    assert json.loads(lines[1]) == [1] and done.stderr == ""


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(ValueError, match="cannot write checkpoints in .*choose a folder that can be written"):
        checkpoints.save(at(1))


@pytest.mark.parametrize("bad", [{"keep_last": 0}, {"keep_best": -1}])
def test_what_cannot_be_kept_is_refused(bad: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_last="):
        Checkpoints(tmp_path, **bad)


def test_what_is_no_json_is_refused_before_anything_is_written(open_at: Callable[..., Checkpoints]) -> None:
    checkpoints = open_at()
    with pytest.raises(ValueError, match="plain JSON data"):
        checkpoints.save(at(1), extra={"array": np.zeros(2)})
    assert checkpoints.steps() == []


def test_two_arrays_of_one_dotted_name_are_refused(open_at: Callable[..., Checkpoints]) -> None:
    arrays = {"layer.up": jnp.ones(4), "layer": {"up": jnp.zeros(4)}}
    checkpoints = open_at()
    with pytest.raises(ValueError, match=r"two arrays are named params\.layer\.up"):
        checkpoints.save(TrainState(jnp.int32(1), arrays, (), (), ()))
    checkpoints.close()
    assert checkpoints.steps() == []


def test_orbax_is_not_imported_before_it_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lm.train.checkpoint import Checkpoints\n"
        "Checkpoints(sys.argv[1]).latest\nprint('orbax.checkpoint' in sys.modules)"
    )
    assert python(code, str(tmp_path / "none")).stdout == "False\n"


def reference_checksum(x: np.ndarray) -> int:
    words = x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize]).ravel().astype(np.uint64)
    return int((words * (2 * np.arange(words.size, dtype=np.uint64) + 1)).sum() % 2**32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool", "uint8"])
def test_the_checksum_is_its_definition_whatever_the_sharding(dtype: str) -> None:
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, 8, 6)) * 3).astype(dtype)
    want = reference_checksum(np.asarray(x))
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    spread = jax.device_put(x, shardings([x], [("embed", "mlp", None)], mesh)[0])
    assert int(jax.jit(checksum)(x)) == int(jax.jit(checksum)(spread)) == want


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 63), st.integers(0, 31), st.integers(0, 63))
def test_the_checksum_sees_a_flipped_bit_and_a_swap(word: int, bit: int, other: int) -> None:
    x = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    flipped, swapped = x.copy(), x.copy()
    flipped.view(np.uint32).reshape(-1)[word] ^= np.uint32(1 << bit)
    swapped.reshape(-1)[[word, other]] = swapped.reshape(-1)[[other, word]]
    whole = int(CHECKSUM(x))
    assert int(CHECKSUM(flipped)) != whole
    assert (int(CHECKSUM(swapped)) != whole) == (word != other)


CHECKSUM = jax.jit(checksum)


def test_the_moving_average() -> None:
    ema, new = {"w": jnp.asarray([0.0, 4.0])}, {"w": jnp.asarray([10.0, 4.0])}
    np.testing.assert_allclose(update_ema(ema, new, 0.9)["w"], [1.0, 4.0], rtol=1e-6)
    assert update_ema((), new, 0.9) == ()
