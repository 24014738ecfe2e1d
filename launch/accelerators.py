"""The accelerators of Google Cloud by their common names, with the names of GKE and gcloud.

From Google's tables of TPU and GPU machines (cloud.google.com/tpu/docs, cloud.google.com/kubernetes-engine/docs).
"""

import itertools
from dataclasses import dataclass
from math import prod

from lm.value import suggest


@dataclass(frozen=True)
class Tpu:
    """A TPU generation.

    Args:
      label: of GKE.
      type: of gcloud, without its number.
      chips_per_host: chips of a machine in a slice of several.
      alone: the topologies of one machine.
      dims: the sides of a topology.
      cores: per chip, as counted in `type`.
      runtime: version of the TPU VM.
      most: chips of a slice.
      per_chip: devices that JAX counts.
    """

    label: str
    type: str
    chips_per_host: int
    alone: tuple[str, ...]
    dims: int
    cores: int
    runtime: str
    most: int
    per_chip: int = 1

    def devices(self, chips: int) -> int:
        """As JAX counts them."""
        return chips * self.per_chip

    def sizes(self) -> list[int]:
        """The chips of the slices there are, in ascending order."""
        if self.dims == 2:
            return sorted({chips(topology) for topology in (*self.alone, *LITE)})
        sides = [2, *range(4, MOST_SIDE + 1, 4)]
        cubes = {prod(c) for c in itertools.combinations_with_replacement(sides, 3) if prod(c) <= self.most}
        return sorted({*map(chips, self.alone), *cubes})

    def hosts(self, topology: str) -> int:
        """Machines of a slice of `topology`."""
        return 1 if topology in self.alone else chips(topology) // self.chips_per_host


TPUS = {
    "v4": Tpu("tpu-v4-podslice", "v4", 4, ("2x2x1",), 3, 2, "tpu-ubuntu2204-base", 4096),
    "v5e": Tpu("tpu-v5-lite-podslice", "v5litepod", 4, ("1x1", "2x2", "2x4"), 2, 1, "v2-alpha-tpuv5-lite", 256),
    "v5p": Tpu("tpu-v5p-slice", "v5p", 4, ("2x2x1",), 3, 2, "v2-alpha-tpuv5", 6144),
    "v6e": Tpu("tpu-v6e-slice", "v6e", 4, ("1x1", "2x2", "2x4"), 2, 1, "v2-alpha-tpuv6e", 256),
    "tpu7x": Tpu("tpu7x", "tpu7x", 4, ("2x2x1",), 3, 2, "v2-alpha-tpu7", 9216, 2),
}
# the label of GKE, and GPUs of the usual machine
GPUS = {
    "a100": ("nvidia-tesla-a100", 8),
    "a100-80gb": ("nvidia-a100-80gb", 8),
    "h100": ("nvidia-h100-80gb", 8),
    "h100-mega": ("nvidia-h100-mega-80gb", 8),
    "h200": ("nvidia-h200-141gb", 8),
    "b200": ("nvidia-b200", 8),
    "l4": ("nvidia-l4", 8),
}


def parse_type(type: str) -> tuple[Tpu, int]:
    """The generation and the chips of an accelerator type of gcloud, as v5p-128. Raises ValueError for one that does
    not exist."""
    kind, _, number = type.rpartition("-")
    tpu = next((t for t in TPUS.values() if t.type == kind), None)
    if not kind or not number.isdigit():
        raise ValueError(f"--type {type or 'is missing'}: expected an accelerator type, as in v6e-16 or v5p-128")
    if tpu is None:
        raise ValueError(f"unknown accelerator type {type!r}: {suggest(kind, [t.type for t in TPUS.values()])}")
    known = [size * tpu.cores for size in tpu.sizes()]
    if int(number) not in known:
        below, above = [n for n in known if n < int(number)][-2:], [n for n in known if n > int(number)][:2]
        near = " or ".join(f"{kind}-{n}" for n in (*below, *above))
        raise ValueError(f"--type {type}: no such slice; the nearest are {near}")
    return tpu, int(number) // tpu.cores


def machines(type: str) -> int:
    """The machines of an accelerator type of gcloud. Raises ValueError as `parse_type` does."""
    tpu, count = parse_type(type)
    return 1 if tpu.dims == 2 and count == 8 else max(1, count // tpu.chips_per_host)


def chips(topology: str) -> int:
    """The chips of a topology, as 4x4x8."""
    return prod(int(n) for n in topology.split("x"))


def parse_slice(text: str) -> tuple[Tpu, str]:
    """The generation and the topology of a slice such as v5p:4x4x4. Raises ValueError where there is none."""
    name, _, topology = text.partition(":")
    if name not in TPUS:
        raise ValueError(f"unknown TPU {name!r}: {suggest(name, TPUS)}")
    tpu = TPUS[name]
    sides = topology.split("x")
    example = "4x4x4" if tpu.dims == 3 else "4x8"
    if len(sides) != tpu.dims or not all(s.isdigit() and int(s) for s in sides):
        raise ValueError(f"--tpu {text}: expected {tpu.dims} sides, as in {name}:{example}")
    if topology not in tpu.alone and (chips(topology) % tpu.chips_per_host or chips(topology) < tpu.chips_per_host):
        raise ValueError(f"--tpu {text}: {chips(topology)} chips are no whole machines of {tpu.chips_per_host}")
    if tpu.dims == 2 and topology not in tpu.alone and topology not in LITE:
        raise ValueError(f"--tpu {text}: no such slice; there are {', '.join([*tpu.alone, *LITE])}")
    if tpu.dims == 3 and topology not in tpu.alone and not _cuboid([int(s) for s in sides]):
        raise ValueError(
            f"--tpu {text}: no such slice; sides are in ascending order, each 2 or a multiple of 4, as in 2x2x4"
        )
    if chips(topology) > tpu.most:
        raise ValueError(f"--tpu {text}: {chips(topology):,} chips, and a slice of {name} has at most {tpu.most:,}")
    return tpu, topology


MOST_SIDE = 48  # of a cuboid
LITE = ("4x4", "4x8", "8x8", "8x16", "16x16")  # slices of v5e and v6e of more than one machine


def _cuboid(sides: list[int]) -> bool:
    return sides == sorted(sides) and all(n == 2 or n % 4 == 0 for n in sides)
