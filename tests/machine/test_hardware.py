"""The machine below, as far as it is the same everywhere."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.machine import hardware

ROOT = Path(__file__).parents[2]


def test_devices_can_be_split_only_before_jax_starts() -> None:
    assert len(jax.devices()) == 8
    hardware.set_cpu_devices(0)
    hardware.set_cpu_devices(8)
    with pytest.raises(ValueError, match="compute.devices=3, but JAX has started with 8: set it before"):
        hardware.set_cpu_devices(3)


def test_the_environment_is_plain_data() -> None:
    found = hardware.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["devices"] == 8 and found["jax"] == jax.__version__ and found["memory_bytes"] > 2**20


def test_the_peak_is_measured_where_no_data_sheet_is() -> None:
    peak, source = hardware.peak_flops()
    assert peak > 1e8 and "measured" in source


def test_the_best_peak_that_a_machine_came_to_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_CACHE", str(tmp_path))
    asked: list[float] = []

    def measures(value: float) -> float:
        monkeypatch.setattr(hardware, "_product_flops", lambda dtype, seconds: asked.append(seconds) or value)
        return hardware._measured_flops.__wrapped__("float32")

    assert [measures(value) for value in (3e9, 2e9, 4e9, 1e9)] == [3e9, 3e9, 4e9, 4e9]
    assert asked[0] == 1.0 and max(asked[1:]) < 0.1
    (file,) = (tmp_path / "peak").iterdir()
    file.write_text("damaged")
    assert measures(5e9) == 5e9 and asked[-1] == 1.0
    monkeypatch.setattr(hardware, "cpu", lambda: "another")
    assert measures(1e9) == 1e9 and asked[-1] == 1.0

    class Chip:
        device_kind = "another, in the same machine"

    monkeypatch.setattr(jax, "devices", lambda: [Chip()])
    assert measures(0.5e9) == 0.5e9 and asked[-1] == 1.0


def test_the_peak_of_several_processes_is_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax.experimental import multihost_utils

    met: list[str] = []
    monkeypatch.setattr(hardware, "_measured_flops", lambda dtype: 3e9)
    monkeypatch.setattr(hardware.processes, "count", lambda: 2)
    monkeypatch.setattr(hardware.processes, "barrier", met.append)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: [x, 2 * x])
    peak, source = hardware.peak_flops()
    assert peak == pytest.approx(9e9) and source.endswith("in 2 processes at once") and met


def test_the_peak_of_several_unknown_chips_is_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chip:
        device_kind, platform = "another", "gpu"

    monkeypatch.setattr(hardware, "_measured_flops", lambda dtype: 3e9)
    monkeypatch.setattr(jax, "devices", lambda: [Chip()])
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert hardware.peak_flops()[0] == 12e9


def test_the_peak_of_a_known_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chip:
        device_kind = "TPU v5 lite"

    monkeypatch.setattr(jax, "devices", lambda: [Chip()])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert hardware.peak_flops("bfloat16") == (4 * 197e12, "TPU v5 lite, data sheet")
    assert hardware.peak_flops("float32") == (2 * 197e12, "TPU v5 lite, data sheet, bfloat16 halved")


def test_libtpu_is_started_with_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    known, own = hardware.LIBTPU
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--theirs=1")
    for version, expected in ((f"{known}.1", f"{own} --theirs=1"), ("9.9", "--theirs=1")):
        monkeypatch.setattr(importlib.metadata, "version", lambda _, version=version: version)
        assert hardware.tpu_arguments() == expected
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"{own} --theirs=1")
    assert hardware.tpu_arguments() == f"{own} --theirs=1"


START = """
from lm.machine import hardware
hardware.prepare("{devices}")
try:
    hardware.check_backend()
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("devices", "platforms", "said"),
    [
        ("gpu", "", "JAX_PLATFORMS=cuda has no device here"),
        ("", "cuda", "JAX_PLATFORMS=cuda has no device here"),
        ("", "quantum", "JAX_PLATFORMS=quantum has no device here (Unable to initialize backend 'quantum'"),
    ],
)
def test_a_platform_that_is_not_here(devices: str, platforms: str, said: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "JAX_PLATFORMS"}
    environment |= {"JAX_PLATFORMS": platforms} if platforms else {}
    command = [sys.executable, "-c", START.format(devices=devices)]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout.strip()
    assert told.startswith(said) and told.endswith("--devices cpu runs on this machine's CPU") and "\n" not in told
    assert ("[cuda]" in told) == ("cuda" in said)


def test_a_program_that_compiles_sooner_is_optimised_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no bit of what it computes is another."""
    assert not hardware.compile_sooner()  # the tests' own flags say how much
    monkeypatch.delenv("XLA_FLAGS")
    options = hardware.compile_sooner()
    assert options == {"xla_backend_optimization_level": 1}

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.truncated_normal(key, -2, 2, (64, 48)) * 0.02

    key = jax.random.key(0)
    level = "xla_backend_optimization_level"
    full, less = (jax.jit(draw, compiler_options={level: n})(key) for n in (3, options[level]))
    np.testing.assert_array_equal(full, less)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not hardware.compile_sooner()


END = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from lm.machine import hardware
hardware.prepare("cpu")
"""


def test_what_is_kept_is_not_collected_at_the_end() -> None:
    """What was registered before it is called after it."""
    ran = subprocess.run([sys.executable, "-c", END], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "True", ran.stderr
