"""The hardware: malloc settings, libtpu's flags, the compilation cache, peak FLOP/s, and what a run records of them.

Every command calls `prepare` first, before JAX is imported.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from lm.machine import processes
from lm.machine.cache import cache_dir

# Dense bfloat16 FLOP/s of one chip, from the vendors' data sheets, by a substring of JAX's device_kind.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}

# One all-gather serves all uses of a weight however far apart they are, and no product is split into a windowed einsum
# that gathers as it goes (NOTES.md, plans and TPUs).
LIBTPU = (
    "0.0.42",
    "--xla_tpu_spmd_threshold_for_allgather_cse=1000000 --xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",
)


def tpu_arguments() -> str:
    """LIBTPU_INIT_ARGS with our own flags before it, for the version that knows them (another one would end the
    process)."""
    given, (known, own) = os.environ.get("LIBTPU_INIT_ARGS", ""), LIBTPU
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return given
    return given if own in given or not version.startswith(known) else f"{own} {given}".strip()


def prepare(devices: str = "") -> None:
    """Settings that must precede the import of JAX: `devices` is cpu, gpu, tpu or "" (JAX's choice).

    XLA allocates a step's temporaries with malloc and frees them after it. glibc would return blocks of that size to
    the kernel each time, and the next step would fault every page in again, which costs a small model up to 40% of its
    step on a CPU. The main thread's arena is kept from that, and is the one that serves programs which run when they
    are called (`run_steps_in_turn`); XLA's compiler, on threads with arenas of their own, leaves no holes in it.
    Python's collector would go through all that a start makes and keeps, for cycles that are few: it is first called
    after as many objects as no start makes, and finds none of them when Python ends."""
    gc.set_threshold(1_000_000, 20, 100)
    atexit.register(gc.freeze)
    if devices:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(devices, devices)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if arguments := tpu_arguments():
        os.environ["LIBTPU_INIT_ARGS"] = arguments
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never trim the top of the heap
        libc.mallopt(M_MMAP_MAX, 0)  # nor mmap large blocks


def prepare_host() -> None:
    """`prepare` for a process that computes nothing but starts others that do: its own JAX, which is imported here,
    knows the CPU alone, and JAX_PLATFORMS is left to them as it was."""
    before = os.environ.pop("JAX_PLATFORMS", None)
    prepare("cpu")
    import jax  # noqa: F401 - reads it

    os.environ.pop("JAX_PLATFORMS", None)
    if before is not None:
        os.environ["JAX_PLATFORMS"] = before


def use_compilation_cache(cache: Path) -> None:
    """JAX's persistent compilation cache under `cache`, for programs of any size and compile time.
    JAX_COMPILATION_CACHE_DIR, where set, names another folder."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # programs for one CPU may not run on another, and home folders are shared between machines
        machine = hashlib.sha256(cpu().encode()).hexdigest()[:8]
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled" / machine))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def run_steps_in_turn() -> None:
    """On CPUs a program is to run when it is called, and not behind others that are dispatched already, each with
    temporaries of its own: a step takes as long, and no step's memory is held beside the next one's. Has no effect
    where JAX's devices have started."""
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def compile_sooner() -> dict[str, Any]:
    """Compiler options for a program whose time is in products, or that is run once: on CPUs LLVM's first level of
    optimisation in place of the third. No step of eight models was slower for it, and those of seven had the
    same bits (NOTES.md). XLA_FLAGS, where they say a level, hold."""
    import jax

    level = "xla_backend_optimization_level"
    given = level in os.environ.get("XLA_FLAGS", "") or jax.default_backend() != "cpu"
    return {} if given else {level: 1}


CURES = {
    "cuda": 'GPUs need NVIDIA\'s driver and the extra, pip install -e ".[cuda]"',
    "tpu": 'TPUs need the extra, pip install -e ".[tpu]", on a TPU VM that no other process uses',
}


def check_backend() -> None:
    """Start JAX's devices. Raises ValueError where the platform that --devices or JAX_PLATFORMS asks for is not known,
    or has no device here."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # of a platform whose plugin is not installed JAX says nothing
        asked = os.environ.get("JAX_PLATFORMS", "")
        cure = next((cure for name, cure in CURES.items() if name in asked), "expected cpu, cuda or tpu")
        said = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"JAX_PLATFORMS={asked} has no device here{f' ({said})' if said else ''}: {cure}; --devices cpu runs on "
            "this machine's CPU"
        ) from None


def set_cpu_devices(devices: int) -> None:
    """Make the CPU appear as `devices` devices (0: as it is). Raises ValueError where JAX has been initialised with
    another number."""
    import jax

    if devices and devices != jax.config.jax_num_cpu_devices:  # type: ignore[attr-defined]
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:
            if (current := len(jax.devices("cpu"))) != devices:
                raise ValueError(
                    f"compute.devices={devices}, but JAX has started with {current}: set it before anything else runs"
                ) from None


def cpu() -> str:
    """The processor's name and vector instructions, as far as /proc/cpuinfo has them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    supported = fields.get("flags", fields.get("Features", "")).split()
    flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in supported]
    return " ".join([fields.get("model name", platform.machine()), *flags])


def peak_flops(dtype: str = "float32") -> tuple[float, str]:
    """Peak FLOP/s of all devices of all processes together for matrix products of `dtype`, and the source of the
    figure: the data sheet of a known chip; else products of 1024 x 1024 matrices, measured here. All processes call
    it: they measure at the same time, since those of one machine may share its cores."""
    import jax
    import numpy as np

    device = jax.devices()[0]
    for name, flops in PEAK_FLOPS.items():
        if name.lower() in device.device_kind.lower():
            half = 0.5 if dtype == "float32" else 1.0
            source = f"{device.device_kind}, data sheet{', bfloat16 halved' if half < 1 else ''}"
            return flops * half * jax.device_count(), source
    processes.barrier("measure peak")
    # the devices of a CPU share its cores
    peak = _measured_flops(dtype) * (1 if device.platform == "cpu" else jax.local_device_count())
    source = f"{dtype} product of 1024 x 1024 matrices, measured on this machine"
    if processes.count() > 1:
        from jax.experimental import multihost_utils

        peak = float(np.sum(multihost_utils.process_allgather(np.float32(peak))))
        source += f" in {processes.count()} processes at once"
    return peak, source


@functools.cache
def _measured_flops(dtype: str) -> float:
    """FLOP/s of the fastest of the products in a second, on one device. The best that such a device of this machine
    ever came to is cached, and later processes look for a better one for 20 ms."""
    import jax

    known_by = [
        jax.devices()[0].device_kind,
        cpu(),
        cores(),
        processes.count(),
        importlib.metadata.version("jaxlib"),
        os.environ.get("XLA_FLAGS"),
        dtype,
    ]
    file = cache_dir() / "peak" / hashlib.sha256(repr(known_by).encode()).hexdigest()[:16]
    try:
        known = float(file.read_text())
    except (OSError, ValueError):
        known = 0.0
    measured = _product_flops(dtype, 0.02 if known else 1.0)  # a second has a moment without other load
    if measured > known:
        with contextlib.suppress(OSError):  # it is measured again, then
            file.parent.mkdir(exist_ok=True)
            unfinished = file.with_suffix(f".{os.getpid()}")
            unfinished.write_text(repr(measured))
            unfinished.replace(file)
    return max(measured, known)


def _product_flops(dtype: str, seconds: float) -> float:
    import jax
    import jax.numpy as jnp
    import numpy as np

    n = 1024
    x = jax.device_put(np.ones((n, n), jnp.dtype(dtype)))
    product = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32))
    product(x, x).block_until_ready()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def memory() -> tuple[int, str]:
    """Bytes of memory that one device may use, and whose it is; 0 where it is not known. CPU devices share what the
    machine, or the container's limit, has, swap included."""
    import jax

    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return host_memory() // jax.local_device_count(), "this machine"
    return int((device.memory_stats() or {}).get("bytes_limit", 0)), f"a {device.device_kind}"


def host_memory() -> int:
    """Bytes of memory and swap of this machine, or fewer where the control group has a limit; 0 where unknown."""
    try:
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        sizes = {name: int(size) * 1024 for name, size, *_ in lines}
        machine = sizes["MemTotal:"] + sizes.get("SwapTotal:", 0)
    except (OSError, ValueError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    texts = [file.read_text().strip() for file in limits if file.is_file()]
    return min([machine, *(int(text) for text in texts if text.isdigit())])


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Versions, devices and host of a run, for its about.json."""
    from importlib.metadata import version

    import jax

    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")},
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cpu": cpu(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "git": _git(),
        **flags(),
    }


def flags() -> dict[str, str]:
    """The environment variables that XLA, libtpu and JAX read, and that may change a result."""
    known = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    read = {name for name in os.environ if name.startswith("JAX_") and "CACHE" not in name}
    return {name: os.environ[name] for name in sorted({*known, *read}) if os.environ.get(name)}


def _git() -> str:
    """The commit of the code, with + where the work tree is modified; empty outside a checkout."""
    import subprocess

    def git(*args: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, timeout=5).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if commit and git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
