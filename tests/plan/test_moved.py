"""The bytes that an instruction moves: of slices and updates in place those alone."""

import pytest

from lm.plan.cost import CostAnalysis
from lm.plan.hlo import parse_program
from lm.plan.moved import moved
from lm.plan.topology import parse_topology

PROGRAM = """
%sliced (p0: bf16[8,64,128], p1: s32[]) -> bf16[1,64,128] {
  %p0 = bf16[8,64,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %again = bf16[8,64,128]{2,1,0} bitcast(%p0)
  ROOT %slice = bf16[1,64,128]{2,1,0} dynamic-slice(%again, %p1, %p1, %p1), dynamic_slice_sizes={1,64,128}
}

%alias (p0: bf16[64,128]) -> bf16[64,128] {
  ROOT %p0 = bf16[64,128]{1,0} parameter(0)
}

%product (p0: bf16[64,128], p1: bf16[32,64]) -> bf16[32,128] {
  %p0 = bf16[64,128]{1,0} parameter(0)
  %p1 = bf16[32,64]{1,0} parameter(1)
  %same = bf16[64,128]{1,0} fusion(%p0), kind=kLoop, calls=%alias
  ROOT %dot = bf16[32,128]{1,0} dot(%p1, %same), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%updated (p0: bf16[8,64,128], p1: bf16[1,1,128], p2: s32[]) -> bf16[8,64,128] {
  %p0 = bf16[8,64,128]{2,1,0} parameter(0)
  %p1 = bf16[1,1,128]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %update = bf16[8,64,128]{2,1,0} dynamic-update-slice(%p0, %p1, %p2, %p2, %p2)
}

%padded (p0: bf16[1,4096,128], p1: s32[]) -> bf16[2,512,128] {
  %p0 = bf16[1,4096,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %pad = bf16[2,4096,128]{2,1,0} pad(%p0, %p1), padding=0_1x0_0x0_0
  ROOT %slice = bf16[2,512,128]{2,1,0} dynamic-slice(%pad, %p1, %p1, %p1), dynamic_slice_sizes={2,512,128}
}

ENTRY %main (a: bf16[8,64,128], b: bf16[64,128], c: bf16[1,4096,128], i: s32[], t: bf16[1,1,128]) -> bf16[8,64,128] {
  %a = bf16[8,64,128]{2,1,0} parameter(0)
  %b = bf16[64,128]{1,0} parameter(1)
  %c = bf16[1,4096,128]{2,1,0} parameter(2)
  %i = s32[]{:S(6)} parameter(3)
  %t = bf16[1,1,128]{2,1,0} parameter(4)
  %x = bf16[32,64]{1,0:S(1)} iota()
  %layer = bf16[1,64,128]{2,1,0:S(1)} fusion(%a, %i), kind=kLoop, calls=%sliced
  %times = bf16[32,128]{1,0} fusion(%b, %x), kind=kOutput, calls=%product
  %windowed = bf16[2,512,128]{2,1,0:S(1)} fusion(%c, %i), kind=kLoop, calls=%padded
  %near = (bf16[64,128]{1,0:S(1)}, bf16[64,128]{1,0}, u32[]) copy-start(%b)
  %part = ((bf16[64,128]{1,0}), bf16[16,128]{1,0:S(1)}, s32[]) slice-start(%b), slice={[0:16], [0:128]}
  %there = bf16[64,128]{1,0:S(1)} copy-done(%near)
  %back = (bf16[64,128]{1,0}, bf16[64,128]{1,0:S(1)}, u32[]) copy-start(%there)
  %rows = bf16[4,128]{1,0:S(1)} gather(%b, %i), slice_sizes={1,128}
  %placed = bf16[8,64,128]{2,1,0} dynamic-update-slice(%a, %t, %i, %i, %i)
  ROOT %written = bf16[8,64,128]{2,1,0} fusion(%a, %t, %i), kind=kLoop, calls=%updated
}
"""


@pytest.mark.parametrize(
    ("name", "bytes_moved"),
    [
        ("layer", 64 * 128 * 2),  # of eight, into the core's own memory
        ("times", 64 * 128 * 2 + 32 * 128 * 2),  # a matrix given another shape is read whole
        ("windowed", 512 * 128 * 2),  # without the padding
        ("near", 64 * 128 * 2),
        ("part", 16 * 128 * 2),
        ("back", 64 * 128 * 2),
        ("rows", 4 * 128 * 2),
        ("placed", 2 * 128 * 2),  # the update is read, and written
        ("written", 2 * 128 * 2),
    ],
)
def test_what_is_moved(name: str, bytes_moved: int) -> None:
    program = parse_program(PROGRAM)
    assert moved(program, program.entry, program.computations[program.entry][name]) == bytes_moved


def test_a_step_moves_all_of_it() -> None:
    program = parse_program(PROGRAM)
    cost = CostAnalysis(program, parse_topology("v5e:1x1")).total()
    each = [moved(program, program.entry, i) for i in program.computations[program.entry].values()]
    assert cost.moved == sum(
        n
        for n, i in zip(each, program.computations[program.entry].values(), strict=True)
        if i.opcode in ("fusion", "copy-start", "slice-start", "gather", "dynamic-update-slice")
    )
    assert cost.other_seconds < cost.moved / 819e9  # copies in the background take no time of their own
