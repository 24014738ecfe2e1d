"""A parser of optimised HLO text: computations, their instructions, and the FLOPs and bytes of each.

XLA's own cost analysis counts the body of a loop once, whatever its trip count, so that a model whose layers are
scanned has the cost of one. The text has shapes, known trip counts, the TPU compiler's estimated cycles, and the costs
of kernels. lm/plan/cost.py adds them up.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind in ("s", "u", "f", "bf", "c") for bits in (1, 2, 4, 8, 16, 32, 64, 128)
}
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Array:
    """One array: element type, sizes, and whether it is in the chip's main memory (HBM, not VMEM or SMEM)."""

    kind: str
    sizes: tuple[int, ...]
    main: bool = True

    @property
    def bytes(self) -> float:
        bits = BITS.get(self.kind, 8 if self.kind.startswith("f8") else 0)
        return math.prod(self.sizes) * bits / 8


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape in HLO text; several for a tuple."""
    return [
        Array(
            kind,
            tuple(int(re.sub(r"\D", "", n)) for n in sizes.split(",") if n),
            not re.search(r"S\([1-9]", rest or ""),
        )
        for kind, sizes, rest in _ARRAY.findall(shape)
        if kind in BITS or kind.startswith("f8")
    ]


@dataclass(frozen=True)
class Instruction:
    """`name` = `shape` `opcode`(`operands`), `rest`: the attributes as text; a constant has a `literal`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    literal: str = ""

    @cached_property
    def results(self) -> list[Array]:
        return arrays(self.shape)

    def called(self, *attributes: str) -> list[str]:
        """The computations named by `attributes`."""
        names: list[str] = []
        for attribute in attributes:
            for text in re.findall(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest):
                names += _NAME.findall(text)
        return names

    @property
    def trips(self) -> int | None:
        """The trip count of a loop, where the compiler knows it."""
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.rest)
        return int(match[1]) if match else None

    @property
    def cycles(self) -> float | None:
        """The compiler's estimate of cycles, where there is one."""
        match = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
        return float(match[1]) if match else None

    def number(self, name: str) -> float | None:
        """A numeric attribute by its name."""
        match = re.search(rf'"?{name}"?:"?(\d+(?:\.\d+)?(?:e\+?\d+)?)', self.rest)
        return float(match[1]) if match else None


@dataclass
class Program:
    """Computations by name, each its instructions by name, in order; `entry` names the entry computation."""

    computations: dict[str, dict[str, Instruction]] = field(default_factory=dict)
    entry: str = ""

    def operands(self, computation: str, instruction: Instruction) -> Iterator[Array]:
        """The arrays that an instruction reads."""
        instructions = self.computations[computation]
        for name in instruction.operands:
            if name in instructions:
                yield from instructions[name].results


def parse_program(text: str) -> Program:
    """The program of HLO `text`, as `compiled.as_text()` returns it. Raises ValueError for another text."""
    program, current = Program(), None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = program.computations.setdefault(head[2], {})
            if head[1]:
                program.entry = head[2]
        elif line.rstrip() == "}":
            current = None
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if not program.entry:
        raise ValueError("this is no XLA program: it has no ENTRY computation")
    return program


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(right, 0) + 1 if right.startswith("(") else right.find(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opcode, _, after = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    return Instruction(
        left.removeprefix("%"), shape, opcode, tuple(_NAME.findall(inside)), rest[close + 1 :], inside.strip()
    )


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    return len(text)


# ---------------------------------------------------------------- FLOPs of a matrix product


def flops(instruction: Instruction, operands: list[Array]) -> float:
    """FLOPs of a dot or a convolution (to which the TPU compiler converts dots); 0 for other instructions."""
    if instruction.opcode == "dot":
        return _dot(instruction, operands)
    return _convolution(instruction, operands) if instruction.opcode == "convolution" else 0.0


def _dot(instruction: Instruction, operands: list[Array]) -> float:
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    over = [int(d) for d in dims[1].split(",") if d] if dims else []
    return 2.0 * math.prod(instruction.results[0].sizes) * math.prod(operands[0].sizes[d] for d in over)


def _convolution(instruction: Instruction, operands: list[Array]) -> float:
    """2 x output batch and features x input features x the pairs of positions outside the padding."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    assert labels, instruction.rest
    left, kernel, out = (
        dict(zip(names, array.sizes, strict=True))
        for names, array in zip(labels.groups(), (*operands[:2], instruction.results[0]), strict=True)
    )
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.rest) or ["", ""])[1]))
    groups = int((re.search(r"batch_group_count=(\d+)", instruction.rest) or ["", "1"])[1])
    pairs = 1.0
    for d in (name for name in left if name.isdigit()):
        field_of = {key: _along(window.get(key), int(d)) for key in ("pad", "stride", "lhs_dilate", "rhs_dilate")}
        pairs *= _pairs(left[d], kernel[d], out[d], field_of)
    return 2.0 * pairs * out["b"] * out["f"] * kernel["i"] / groups


def _along(text: str | None, dimension: int) -> str:
    return text.split("x")[dimension] if text else ""


def _pairs(size: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """The pairs of an output and a kernel position along one dimension that read an input."""
    low = int(window["pad"].split("_")[0]) if window["pad"] else 0
    stride, dilate, spread = (int(window[k] or 1) for k in ("stride", "rhs_dilate", "lhs_dilate"))
    if kernel == 1 and low == 0 and spread == 1:
        return min(out, size) if stride == 1 else out
    if out * kernel > 10**8:
        return min(out, size) * kernel
    place = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * dilate - low
    return int(((place >= 0) & (place < (size - 1) * spread + 1) & (place % spread == 0)).sum())
