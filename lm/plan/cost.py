"""Cost analysis of a compiled step on one device: matrix FLOPs, kernels, collectives and time, with loops counted.

The time of an operation is the compiler's estimate in cycles, or else its bytes over the memory's bandwidth; that of a
kernel the larger of its FLOPs over the peak and its bytes over the bandwidth. That of a collective is its bytes over
the links, counted separately: an asynchronous one overlaps with compute, a synchronous one is exposed.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lm.plan.hlo import Array, Instruction, Program, flops
from lm.plan.moved import BACKGROUND, moved
from lm.plan.topology import Topology

# matrix products in each kernel of splash attention
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# these move and compute nothing, or their work is counted at their start
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "domain", "add-dependency", "iota", "get-dimension-size"),
    *("async-done", "async-update", "copy-start", "copy-done", "slice-start", "slice-done", "all-gather-done"),
    *("all-reduce-done", "collective-permute-done", "send", "send-done", "recv", "recv-done"),
}


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind on one network: their count, the bytes that one device sends in a ring, and seconds."""

    count: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0


@dataclass
class Cost:
    """The cost of a step on one device: `matrix` FLOPs of matrix products, `kernel` FLOPs of custom kernels; `seconds`
    of everything but collectives; `moved` bytes of main memory, those of copies in the background too; `collectives` by
    (kind, network: ici or dcn, whether overlapped); `unknown` counts what has no known cost: loops without a trip
    count, kernels without FLOPs."""

    matrix: float = 0.0
    kernel: float = 0.0
    kernels: Counter[str] = field(default_factory=Counter)
    matrix_seconds: float = 0.0
    kernel_seconds: float = 0.0
    other_seconds: float = 0.0
    moved: float = 0.0
    collectives: dict[tuple[str, str, bool], Traffic] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        return self.matrix_seconds + self.kernel_seconds + self.other_seconds

    @property
    def collective_bytes(self) -> float:
        """The bytes that a device sends in all collectives."""
        return sum(t.bytes for t in self.collectives.values())

    def collective_seconds(self, overlapped: bool) -> float:
        """Seconds of the overlapped collectives, or of the exposed ones."""
        return sum(t.seconds for (_, _, asynchronous), t in self.collectives.items() if asynchronous is overlapped)

    def add(self, other: "Cost", times: float = 1.0) -> None:
        """Add `times` x `other`."""
        for name in ("matrix", "kernel", "matrix_seconds", "kernel_seconds", "other_seconds", "moved"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for counter, more in ((self.kernels, other.kernels), (self.unknown, other.unknown)):
            for name, n in more.items():
                counter[name] += n * times  # type: ignore[assignment]
        for key, t in other.collectives.items():
            old = self.collectives.get(key, Traffic())
            self.collectives[key] = Traffic(
                old.count + times * t.count, old.bytes + times * t.bytes, old.seconds + times * t.seconds
            )


class CostAnalysis:
    """The costs of a program's computations on a topology. `attended` is the fraction of the keys that attention's
    kernels read (causal: half)."""

    def __init__(self, program: Program, topology: Topology, attended: float = 0.5):
        self.program, self.topology, self.attended = program, topology, attended
        self._costs: dict[str, Cost] = {}
        self._counted: set[tuple[str, str]] = set()  # asynchronous collectives that several fusions share

    def total(self) -> Cost:
        """The cost of the program."""
        return self.of(self.program.entry)

    def of(self, name: str) -> Cost:
        """The cost of one run of a computation."""
        if name not in self._costs:
            cost = Cost()
            for instruction in self.program.computations[name].values():
                self._count(cost, name, instruction)
            self._costs[name] = cost
        return self._costs[name]

    def _count(self, cost: Cost, there: str, i: Instruction) -> None:
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self._collective(cost, there, i, kind, i.opcode != kind)
        elif i.opcode == "while":
            trips = i.trips or self._trip_count(i)
            if trips is None:
                cost.unknown["loop without a trip count"] += 1
            cost.add(self.of(i.called("body")[0]), trips or 1)
        elif i.opcode == "conditional":
            branches = [self.of(b) for b in i.called("branch_computations", "true_computation", "false_computation")]
            cost.add(max(branches, key=lambda c: c.seconds))
        elif i.opcode == "call":
            cost.add(self.of(i.called("to_apply")[0]))
        elif i.opcode == "async-start":
            self._async(cost, i)
        elif i.opcode == "custom-call" and "tpu_custom_call" in i.rest:
            self._kernel(cost, there, i)
        elif i.opcode in BACKGROUND:
            cost.moved += moved(self.program, there, i)
        elif i.opcode not in FREE:
            self._plain(cost, there, i)

    def _async(self, cost: Cost, i: Instruction) -> None:
        """The computation of an async-start: its collectives are overlapped, anything else takes its time."""
        for name in i.called("calls"):
            inner = self.of(name)
            own = Cost()
            own.add(inner)
            own.collectives = {}
            for (kind, network, _), t in inner.collectives.items():
                own.add(Cost(collectives={(kind, network, True): t}))
            if inner.collectives:
                own.other_seconds = 0.0
            cost.add(own)

    def _plain(self, cost: Cost, there: str, i: Instruction) -> None:
        """A fusion, a matrix product, or any other operation of the device alone."""
        matrix = flops(i, list(self.program.operands(there, i))) if i.opcode in ("dot", "convolution") else 0.0
        for name in i.called("calls") if i.opcode == "fusion" else ():
            matrix += self.inside(name)
            self._fused_collectives(cost, there, name)
        cost.matrix += matrix
        cost.moved += moved(self.program, there, i)
        seconds = self._seconds(there, i)
        if matrix:
            cost.matrix_seconds += max(seconds, 0.0 if i.cycles else matrix / self.topology.flops)
        else:
            cost.other_seconds += seconds

    def _trip_count(self, loop: Instruction) -> int | None:
        """The trip count of a loop that counts from 0 to a constant of its condition, in steps of a constant."""
        condition = self.program.computations[loop.called("condition")[0]]
        compare = next((i for i in condition.values() if "direction=LT" in i.rest), None)
        bounds = [int(i.literal) for i in condition.values() if i.opcode == "constant" and i.literal.isdigit()]
        if compare is None or len(bounds) != 1:
            return None
        return -(-bounds[0] // self._stride(loop, condition[compare.operands[0]] if compare.operands else None))

    def _stride(self, loop: Instruction, counter: Instruction | None) -> int:
        """The step of a loop's counter: 2 where the compiler has unrolled the body once."""
        place = re.search(r"index=(\d+)", counter.rest) if counter else None
        body = self.program.computations[loop.called("body")[0]]
        root = list(body.values())[-1]
        if place is None or root.opcode != "tuple" or len(root.operands) <= int(place[1]):
            return 1
        grown = body[root.operands[int(place[1])]]
        steps = [
            int(body[o].literal) for o in grown.operands if body[o].opcode == "constant" and body[o].literal.isdigit()
        ]
        return steps[0] if grown.opcode == "add" and len(steps) == 1 and steps[0] > 0 else 1

    def inside(self, name: str) -> float:
        """FLOPs of the products in a fused computation; its time is the fusion's."""
        total = 0.0
        for i in self.program.computations[name].values():
            if i.opcode in ("dot", "convolution"):
                total += flops(i, list(self.program.operands(name, i)))
            for called in i.called("calls", "to_apply") if i.opcode in ("fusion", "call", "async-start") else ():
                total += self.inside(called)
        return total

    def _fused_collectives(self, cost: Cost, there: str, name: str) -> None:
        """The collectives in a fused computation, which overlap with it; of those that several fusions of `there`
        share, recognised by their channel, one is counted."""
        for i in self.program.computations[name].values():
            kind = i.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                channel = (re.search(r"channel_id=(\d+)", i.rest) or ["", i.name])[1]
                if (there, channel) not in self._counted:
                    self._counted.add((there, channel))
                    self._collective(cost, name, i, kind, True)
            for called in i.called("calls") if i.opcode == "fusion" else ():
                self._fused_collectives(cost, there, called)

    def _seconds(self, there: str, i: Instruction) -> float:
        if i.cycles is not None and self.topology.chip.clock:
            return i.cycles / self.topology.chip.clock
        return moved(self.program, there, i) / (self.topology.chip.hbm_bandwidth / self.topology.chip.devices)

    def _kernel(self, cost: Cost, there: str, i: Instruction) -> None:
        operands = list(self.program.operands(there, i))
        name = re.sub(r"\.\d+$", "", i.name)
        own = kernel_flops(i, operands, self.attended)
        if own is None:
            cost.unknown[f"kernel {name} without FLOPs"] += 1
        cost.kernel += own or 0.0
        cost.kernels[name] += 1
        bandwidth = self.topology.chip.hbm_bandwidth / self.topology.chip.devices
        touched = sum(a.bytes for a in (*i.results, *operands) if a.main)
        cost.moved += touched
        cost.kernel_seconds += max((own or 0.0) / self.topology.flops, touched / bandwidth)

    def _collective(self, cost: Cost, there: str, i: Instruction, kind: str, asynchronous: bool) -> None:
        inputs = sum(a.bytes for a in self.program.operands(there, i))
        group, across = self._group(i)
        sent = {"all-gather": inputs * group, "all-reduce": 2 * inputs}.get(kind, inputs)
        network = "dcn" if across else "ici"
        speed = self.topology.dcn if across else self.topology.network
        sent *= (group - 1) / group if group > 1 and kind != "collective-permute" else 1.0  # its own shard stays
        cost.add(Cost(collectives={(kind, network, asynchronous): Traffic(1, sent, sent / speed)}))

    def _group(self, i: Instruction) -> tuple[int, bool]:
        """The size of a collective's groups, and whether they span slices."""
        groups = list(_groups(i.rest))
        size = len(groups[0]) if groups else self.topology.devices
        per_slice = self.topology.devices // self.topology.slices
        across = any(len({d // per_slice for d in g}) > 1 for g in groups) if groups else self.topology.slices > 1
        return size, across


def kernel_flops(i: Instruction, operands: list[Array], attended: float) -> float | None:
    """FLOPs of a custom kernel: its own estimate; or for kernels known by name, from their shapes: splash attention's
    products of q [..., T, H] and S keys, a fraction `attended` of them; ragged products. None for others."""
    if (own := i.number("flops")) is not None:
        return own
    for name, products in SPLASH.items():
        if name in i.name:
            q, k = [a for a in operands if len(a.sizes) >= 3 and a.kind not in ("s8", "s32")][:2]
            return 2.0 * products * math.prod(q.sizes) * k.sizes[-2] * attended
    if "ragged-dot-metadata" in i.name:
        return 0.0
    if "ragged-dot" in i.name or "gmm" in i.name:
        # of [M, K], [E, K, N] and [M, N], whichever of them is the result: (M K) (K N) (M N) = (M K N)^2
        large = [a.sizes for a in (*operands, *i.results) if a.kind in ("bf16", "f32") and len(a.sizes) >= 2][:3]
        return 2.0 * math.sqrt(math.prod(math.prod(s[-2:]) for s in large)) if len(large) == 3 else None
    return None


def _groups(rest: str) -> Iterator[list[int]]:
    """The device groups of a collective, in any of XLA's notations."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\](?:[^{]*)\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        over = re.findall(r"'(\w+)'", match[2])
        order = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        names = list(sizes)
        last = [names.index(n) for n in over]
        order = order.transpose([*(d for d in range(len(names)) if d not in last), *last])
        yield from order.reshape(-1, math.prod(sizes[n] for n in over)).tolist()
    elif match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims = (tuple(int(n) for n in match[k].split(",")) for k in (1, 2))
        order = np.arange(math.prod(dims)).reshape(dims)
        if match[3]:
            order = order.transpose([int(n) for n in match[3].split(",")])
        yield from order.reshape(shape).tolist()
    elif match := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", rest):
        for group in re.findall(r"\{([\d,]+)\}", match[1]):
            yield [int(n) for n in group.split(",")]
