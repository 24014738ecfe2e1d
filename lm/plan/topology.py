"""Chips and topologies that can be planned for, from their vendors' specifications.

A topology is written kind:shape, `v5p:4x4x4` for a torus of 64 TPU chips, `v5p:4x4x4*2` for two such slices connected
by the data-centre network, `h100:64` for 64 GPUs in hosts of eight.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from lm.value import suggest

GIB, GB = 2**30, 10**9


@dataclass(frozen=True)
class Chip:
    """The specification of a chip.

    Args:
      kind: its name.
      hbm: bytes of memory.
      flops: dense bfloat16 FLOP/s.
      hbm_bandwidth: bytes/s of its memory.
      link: bytes/s of one link in one direction; of a GPU, of all its links together.
      axes: of the torus, two links each; 0 for a GPU.
      dcn: bytes/s of its share of the data-centre network.
      clock: cycles/s of its matrix units.
      devices: that JAX counts for it.
      shapes: of the slices on offer.
      options: of jax.experimental.topologies.
    """

    kind: str
    hbm: int
    flops: float
    hbm_bandwidth: float
    link: float
    axes: int
    dcn: float
    clock: float = 0.0
    devices: int = 1
    shapes: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def tpu(self) -> bool:
        return self.axes > 0


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
# without the first, weights are gathered by all-reduce; the second makes the two cores of a chip one device
_TORUS: tuple[tuple[str, Any], ...] = (("chips_per_host_bounds", (2, 2, 1)),)
_MEGACORE = (("chip_config_name", "megacore"), *_TORUS)

# From docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} (a chip's bidirectional bandwidth, divided to one direction
# of one link) and from NVIDIA's data sheets (SXM; one network card of 400 or 200 Gbit/s per GPU). The clock follows
# from the published FLOP/s and matrix units.
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("v4", 32 * GIB, 275e12, 1228e9, 50e9, 3, 6.25e9, 1.05e9, 1, _CUBES, _MEGACORE),
        Chip("v5e", 16 * GIB, 197e12, 819e9, 50e9, 2, 3.125e9, 1.5e9, 1, _FLAT),
        Chip("v5p", 95 * GIB, 459e12, 2765e9, 100e9, 3, 6.25e9, 1.75e9, 1, (*_CUBES, "16x16x24"), _MEGACORE),
        Chip("v6e", 32 * GIB, 918e12, 1640e9, 100e9, 2, 12.5e9, 1.75e9, 1, _FLAT),
        Chip("tpu7x", 192 * GIB, 2307e12, 7380e9, 100e9, 3, 12.5e9, 2.2e9, 2, _CUBES, _TORUS),
        Chip("a100", 80 * GB, 312e12, 2039e9, 300e9, 0, 25e9),
        Chip("h100", 80 * GB, 989e12, 3350e9, 450e9, 0, 50e9),
    )
}
GPUS_PER_HOST = 8


@dataclass(frozen=True)
class Topology:
    """`slices` of `shape` chips each; the shape of GPUs is their number."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As `parse_topology` reads it."""
        return f"{self.chip.kind}:{'x'.join(map(str, self.shape))}" + (f"*{self.slices}" if self.slices > 1 else "")

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """As JAX counts them."""
        return self.chips * self.chip.devices

    @property
    def hbm(self) -> float:
        """Bytes of memory of one device."""
        return self.chip.hbm / self.chip.devices

    @property
    def flops(self) -> float:
        """Dense bfloat16 FLOP/s of one device."""
        return self.chip.flops / self.chip.devices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which axes of the torus wrap around: those of 16 chips in two dimensions, multiples of 4 in three."""
        if self.chip.axes == 2:
            return tuple(n >= 16 for n in self.shape)
        return (all(n % 4 == 0 for n in self.shape),) * len(self.shape)

    @property
    def network(self) -> float:
        """Bytes/s that one device sends within its slice when a collective uses all links."""
        if not self.chip.tpu:
            return self.chip.link if self.chips <= GPUS_PER_HOST else self.chip.dcn
        used = [2.0 if wrap else 1.0 for n, wrap in zip(self.shape, self.wraps, strict=True) if n > 1]
        return self.chip.link * max(sum(used), 1.0) / self.chip.devices

    @property
    def dcn(self) -> float:
        """Bytes/s that one device sends to other slices."""
        return self.chip.dcn / self.chip.devices

    def options(self) -> dict[str, Any]:
        """The options of jax.experimental.topologies for the slice."""
        known = dict(self.chip.options)
        if self.chip.axes == 3 and all(self.wraps):
            known["wrap"] = self.wraps
        return known | ({"num_slices": self.slices} if self.slices > 1 else {})


def parse_topology(text: str) -> Topology:
    """The topology written as `text`. Raises ValueError, which lists the known ones, for another."""
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)(?:\*(\d+))?", text.strip().lower())
    if not match:
        raise ValueError(
            f"topology {text!r}: expected kind:shape, as in v5p:4x4x4, v5p:4x4x4*2 (two slices) or h100:64"
        )
    kind, shape, slices = match[1], tuple(map(int, match[2].split("x"))), int(match[3] or 1)
    if kind not in CHIPS:
        raise ValueError(f"topology {text!r} has no known chip: {suggest(kind, CHIPS)}")
    chip = CHIPS[kind]
    if slices < 1:
        raise ValueError(f"topology {text!r}: expected at least one slice")
    if chip.tpu and match[2] not in chip.shapes:
        raise ValueError(f"topology {text!r} does not exist: {kind} comes as {', '.join(chip.shapes)}")
    if not chip.tpu:
        _check_gpus(text, shape, slices)
    return Topology(chip, shape, slices)


def _check_gpus(text: str, shape: tuple[int, ...], slices: int) -> None:
    n = shape[0]
    if len(shape) != 1 or slices != 1 or n < 1 or (n > GPUS_PER_HOST and n % GPUS_PER_HOST):
        few = ", ".join(map(str, (1, 2, 4, 8, 16, 32)))
        raise ValueError(f"topology {text!r}: GPUs come as a number, up to {GPUS_PER_HOST} or full hosts: {few}, …")
