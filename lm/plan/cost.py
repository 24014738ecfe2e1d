"""What one device does in a step: matrix FLOPs, kernels, collectives and time, added up over a program with its loops.

Time is the compiler's own: an operation's estimated cycles; for one without, its bytes over the memory's bandwidth; for
a kernel, the larger of its FLOPs over the peak and its bytes over the bandwidth. A collective's is its bytes over the
links, and is apart: whether the device waits for it depends on whether it is asynchronous.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from lm.plan.hlo import Array, Instruction, Program, flops
from lm.plan.topology import Topology

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# these move or compute nothing, or what they wait for is counted where it began
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "domain", "add-dependency", "iota", "get-dimension-size"),
    *("async-done", "async-update", "copy-start", "copy-done", "slice-start", "slice-done", "all-gather-done"),
    *("all-reduce-done", "collective-permute-done", "send", "send-done", "recv", "recv-done"),
}


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind on one network: how many, and the bytes that one device sends, by the wire's count."""

    count: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0


@dataclass
class Cost:
    """What one device does. `matrix` FLOPs of matrix products, `kernel` FLOPs of custom kernels; `seconds` of all
    that is no collective; `collectives` by (kind, network: ici or dcn, whether the device goes on meanwhile); `unknown`
    counts what was met without a cost: loops without a trip count, kernels without FLOPs."""

    matrix: float = 0.0
    kernel: float = 0.0
    kernels: Counter[str] = field(default_factory=Counter)
    matrix_seconds: float = 0.0
    kernel_seconds: float = 0.0
    other_seconds: float = 0.0
    collectives: dict[tuple[str, str, bool], Traffic] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)

    @property
    def seconds(self) -> float:
        return self.matrix_seconds + self.kernel_seconds + self.other_seconds

    @property
    def wire(self) -> float:
        """Bytes of all collectives."""
        return sum(t.bytes for t in self.collectives.values())

    def waiting(self, behind: bool) -> float:
        """Seconds of the collectives that the device goes on behind, or of those that it stands still for."""
        return sum(t.seconds for (_, _, asynchronous), t in self.collectives.items() if asynchronous is behind)

    def add(self, other: "Cost", times: float = 1.0) -> None:
        """`other`, so many times, on top."""
        for name in ("matrix", "kernel", "matrix_seconds", "kernel_seconds", "other_seconds"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for counter, more in ((self.kernels, other.kernels), (self.unknown, other.unknown)):
            for name, n in more.items():
                counter[name] += n * times  # type: ignore[assignment]
        for key, t in other.collectives.items():
            old = self.collectives.get(key, Traffic())
            self.collectives[key] = Traffic(
                old.count + times * t.count, old.bytes + times * t.bytes, old.seconds + times * t.seconds
            )


class Walk:
    """The costs of a program's computations on a topology, each worked out once."""

    def __init__(self, program: Program, topology: Topology):
        self.program, self.topology = program, topology
        self._known: dict[str, Cost] = {}

    def total(self) -> Cost:
        """The whole program's."""
        return self.of(self.program.entry)

    def of(self, name: str) -> Cost:
        """The cost of one run of a computation."""
        if name not in self._known:
            cost = Cost()
            for instruction in self.program.computations[name].values():
                self._count(cost, name, instruction)
            self._known[name] = cost
        return self._known[name]

    def _count(self, cost: Cost, there: str, i: Instruction) -> None:
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self._collective(cost, there, i, kind, i.opcode != kind)
        elif i.opcode == "while":
            if i.trips is None:
                cost.unknown["loop without a trip count"] += 1
            cost.add(self.of(i.called("body")[0]), i.trips or 1)
        elif i.opcode == "conditional":
            branches = [self.of(b) for b in i.called("branch_computations", "true_computation", "false_computation")]
            cost.add(max(branches, key=lambda c: c.seconds))
        elif i.opcode == "call":
            cost.add(self.of(i.called("to_apply")[0]))
        elif i.opcode == "async-start":
            self._behind(cost, i)
        elif i.opcode == "custom-call" and "tpu_custom_call" in i.rest:
            self._kernel(cost, there, i)
        elif i.opcode not in FREE:
            self._plain(cost, there, i)

    def _behind(self, cost: Cost, i: Instruction) -> None:
        """What an async-start wraps: a collective goes on behind; anything else takes its time."""
        for name in i.called("calls"):
            inner = self.of(name)
            moved = Cost()
            moved.add(inner)
            moved.collectives = {}
            for (kind, network, _), t in inner.collectives.items():
                moved.add(Cost(collectives={(kind, network, True): t}))
            if inner.collectives:
                moved.other_seconds = 0.0
            cost.add(moved)

    def _plain(self, cost: Cost, there: str, i: Instruction) -> None:
        """A fusion, a product, or anything else that the device does by itself."""
        matrix = flops(i, list(self.program.operands(there, i))) if i.opcode in ("dot", "convolution") else 0.0
        for name in i.called("calls") if i.opcode == "fusion" else ():
            inner = self.inside(name)
            matrix += inner.matrix
            for (kind, network, _), t in inner.collectives.items():  # a fusion that starts one and computes meanwhile
                cost.add(Cost(collectives={(kind, network, True): t}))
        cost.matrix += matrix
        seconds = self._seconds(there, i)
        if matrix:
            cost.matrix_seconds += max(seconds, 0.0 if i.cycles else matrix / self.topology.flops)
        else:
            cost.other_seconds += seconds

    def inside(self, name: str) -> Cost:
        """FLOPs and collectives of a fused computation; its time is the fusion's."""
        key = f"inside {name}"
        if key not in self._known:
            cost = Cost()
            for i in self.program.computations[name].values():
                kind = i.opcode.removesuffix("-start")
                if kind in COLLECTIVES:
                    self._collective(cost, name, i, kind, True)
                elif i.opcode in ("dot", "convolution"):
                    cost.matrix += flops(i, list(self.program.operands(name, i)))
                for called in i.called("calls", "to_apply") if i.opcode in ("fusion", "call", "async-start") else ():
                    cost.add(self.inside(called))
            self._known[key] = cost
        return self._known[key]

    def _seconds(self, there: str, i: Instruction) -> float:
        if i.cycles is not None and self.topology.chip.clock:
            return i.cycles / self.topology.chip.clock
        touched = [*i.results, *self.program.operands(there, i)]
        return sum(a.bytes for a in touched if a.main) / (self.topology.chip.hbm_bandwidth / self.topology.chip.devices)

    def _kernel(self, cost: Cost, there: str, i: Instruction) -> None:
        made = i.number("flops")
        name = (re.search(r'op_name="([^"]*)"', i.rest) or ["", i.name])[1].rpartition("/")[2]
        moved = sum(a.bytes for a in (*i.results, *self.program.operands(there, i)) if a.main)
        if made is None:
            cost.unknown[f"kernel {name} without FLOPs"] += 1
        cost.kernel += made or 0.0
        cost.kernels[name] += 1
        bandwidth = self.topology.chip.hbm_bandwidth / self.topology.chip.devices
        cost.kernel_seconds += max((made or 0.0) / self.topology.flops, moved / bandwidth)

    def _collective(self, cost: Cost, there: str, i: Instruction, kind: str, asynchronous: bool) -> None:
        inputs = sum(a.bytes for a in self.program.operands(there, i))
        group, across = self._group(i)
        moved = {"all-gather": inputs * group, "all-reduce": 2 * inputs}.get(kind, inputs)
        network = "dcn" if across else "ici"
        speed = self.topology.dcn if across else self.topology.network
        share = (group - 1) / group if group > 1 and kind != "collective-permute" else 1.0
        cost.add(Cost(collectives={(kind, network, asynchronous): Traffic(1, moved, moved * share / speed)}))

    def _group(self, i: Instruction) -> tuple[int, bool]:
        """How many devices take part with one another, and whether they lie in several slices."""
        groups = list(_groups(i.rest))
        size = len(groups[0]) if groups else self.topology.devices
        each = self.topology.devices // self.topology.slices
        across = any(len({d // each for d in g}) > 1 for g in groups) if groups else self.topology.slices > 1
        return size, across


def _groups(rest: str) -> Iterator[list[int]]:
    """The device groups of a collective, of either way that XLA writes them."""
    if match := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        import numpy as np

        shape, dims = (tuple(int(n) for n in match[k].split(",")) for k in (1, 2))
        order = np.arange(math.prod(dims)).reshape(dims)
        if match[3]:
            order = order.transpose([int(n) for n in match[3].split(",")])
        yield from order.reshape(shape).tolist()
    elif match := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", rest):
        for group in re.findall(r"\{([\d,]+)\}", match[1]):
            yield [int(n) for n in group.split(",")]


def bytes_of(arrays: list[Array]) -> float:
    """Their bytes."""
    return sum(a.bytes for a in arrays)
