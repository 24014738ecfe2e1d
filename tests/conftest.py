"""Every test runs on eight CPU devices, compiles through a persistent cache, and has the library's caches to itself,
but for what depends on the machine alone.

All of it is set here, before anything imports JAX. The devices are set in this process only: a command that a test
starts sees the machine as a user's command does (but stays on the CPU, and shares the compilation cache).
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

DEVICES = 8

KEPT = Path(__file__).parent.parent / ".pytest_cache"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(KEPT / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["LM_CACHE"] = tempfile.mkdtemp(prefix="lm-tests-")
for name in ("native", "peak"):  # what is built for the machine and measured of it, a second or three each
    (KEPT / name).mkdir(parents=True, exist_ok=True)
    (Path(os.environ["LM_CACHE"]) / name).symlink_to(KEPT / name)
# most of a test is compilation: of a small model's gradient 0.4 s of CPU, 0.5 s in parts, 1.3 s with fusion emitters
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)

gc.disable()  # until all is collected: of some 800,000 objects of modules and tests next to none go

import jax  # noqa: E402
from hypothesis import settings  # noqa: E402

jax.config.update("jax_num_cpu_devices", DEVICES)
# what is drawn is the same in every run of the tests; `make bad-input` draws anew
settings.register_profile("same", derandomize=True)
settings.register_profile("many", max_examples=300, derandomize=False)
settings.load_profile("same")


def pytest_collection_finish() -> None:
    """Spares the garbage collector what lives to the end, and most of its passes: tracing makes many objects."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 10, 10)


MOST_MAPS = 50_000  # of a process; Linux gives it 65,530, a program takes some 15, and XLA crashes without one


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Lets go of compiled programs after a file of tests, where there are many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["LM_CACHE"], ignore_errors=True)
    gc.freeze()  # what is there at the end is not looked through
