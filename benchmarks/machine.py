"""The machine: what it is, and how much of it others use meanwhile."""

import os
import platform
import time
from pathlib import Path

# What decides how fast matrix products can be.
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def _first(path: str, *keys: str) -> dict[str, str]:
    """The first value of each key in a "key : value" file of /proc; nothing where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    pairs = [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines)]
    return {key: next(v for k, v in pairs if k == key) for key in keys if any(k == key for k, _ in pairs)}


def describe() -> dict[str, str]:
    """CPU, the flags of its vector units, cores, memory and system, each as text."""
    cpu = _first("/proc/cpuinfo", "model name", "cpu family", "model", "flags", "Features")
    has = (cpu.get("flags") or cpu.get("Features") or "").split()
    memory = _first("/proc/meminfo", "MemTotal").get("MemTotal", "0 kB").split()[0]
    family = f" (family {cpu['cpu family']}, model {cpu['model']})" if "cpu family" in cpu else ""
    return {
        "CPU": (cpu.get("model name") or platform.processor() or platform.machine()) + family,
        "vector units": " ".join(flag for flag in FLAGS if flag in has) or "unknown",
        "bfloat16 products": "native"
        if {"avx512_bf16", "amx_bf16", "bf16"} & set(has)
        else "none: emulated in float32",
        "cores": str(os.cpu_count()),
        "memory": f"{int(memory) / 2**20:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
    }


def _busy_seconds() -> float:
    """Processor time that the whole machine has used since it started, stolen time included (Linux; elsewhere 0)."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Others:
    """Between its making and `share`: the share of all cores, 0 to 1, that neither `own` nor this process used."""

    def __init__(self, own: float) -> None:
        self.begun, self.busy, self.own = time.perf_counter(), _busy_seconds(), own + time.process_time()

    def share(self, own: float) -> float:
        """`own` is the measured process's processor time in seconds, now as at the making."""
        spent = (_busy_seconds() - self.busy) - (own + time.process_time() - self.own)
        return max(0.0, spent) / ((time.perf_counter() - self.begun) * (os.cpu_count() or 1))
