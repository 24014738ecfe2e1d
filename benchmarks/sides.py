"""Who is compared: the sides of each size, each a name, a module to run as a worker and its settings."""

import os
import sys
from dataclasses import dataclass, field
from typing import Any

from benchmarks.sizes import SIZES
from benchmarks.worker import Worker

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Side:
    """One row of a table; `ours` says whose, `precision` is the name of a dtype."""

    name: str
    module: str
    python: str
    ours: bool
    precision: str
    settings: dict[str, Any] = field(hash=False)

    def start(self, cache: str) -> Worker:
        """The side as a process that has trained its first step, with compiled programs kept in the folder `cache`."""
        return Worker(self.module, self.settings, self.python, caches(cache))


def caches(folder: str) -> dict[str, str]:
    """The environment that keeps both compilers' caches in `folder`."""
    return {"JAX_COMPILATION_CACHE_DIR": f"{folder}/jax", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/torch"}


def our_sides(
    size: str,
    devices: tuple[int, ...] = (0,),
    packed: tuple[bool, ...] = (False,),
    remat: tuple[str, ...] = ("nothing",),
) -> list[Side]:
    """This library in both precisions, by host devices (0: JAX's one), on batches with or without documents' ids, and
    by what its backward pass computes again."""
    choices = [(count, ids, again) for count in devices for ids in packed for again in remat]
    return [_our_side(size, precision, *choice) for precision in PRECISIONS for choice in choices]


def _our_side(size: str, precision: str, devices: int, packed: bool, remat: str) -> Side:
    name = (
        f"ours {PRECISIONS[precision]}"
        + (f", {devices} host devices" if devices else "")
        + (", packed" if packed else "")
        + (f", remat {remat}" if remat != "nothing" else "")
    )
    settings = {"size": size, "dtype": precision, "devices": devices, "packed": packed, "remat": remat}
    return Side(name, "benchmarks.ours", sys.executable, True, precision, settings)


def peer_sides(size: str, python: str, clone: str, compiled: bool = False) -> list[Side]:
    """The peer of `size` in both precisions, the plain float32 first; with `compiled`, through torch.compile too."""
    peer = SIZES[size].peer
    shared = {"size": size, "threads": os.cpu_count(), "clone": os.path.abspath(clone) if clone else ""}
    return [
        Side(
            f"{peer} {short}{', torch.compile' if compile_it else ''}",
            f"benchmarks.{peer}",
            python,
            False,
            precision,
            {**shared, "dtype": precision, "compiled": compile_it},
        )
        for compile_it in ((False, True) if compiled else (False,))
        for precision, short in PRECISIONS.items()
    ]
