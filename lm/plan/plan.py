"""A plan: what one training step of an experiment would take of each device of a topology.

It comes from the compiler's program (`source` "compiled") or from arithmetic alone ("analytic", lm/plan/analytic.py).
Every number is of one device: a chip, but for tpu7x, where JAX sees two devices in one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm.experiment import Experiment
from lm.model import count
from lm.plan.compile import Compiled
from lm.plan.cost import Cost
from lm.plan.topology import Topology

BLIND = (
    "input pipeline, checkpoints and evaluation; contention on the network and slow chips; what the host does between "
    "steps; how far asynchronous collectives really hide behind compute"
)


@dataclass(frozen=True)
class Collective:
    """Collectives of one `kind` on `network` (ici or dcn), `behind` compute or not: a step's count, bytes, seconds."""

    kind: str
    network: str
    behind: bool
    count: float
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Bytes, FLOPs and seconds of a step on one device.

    `memory` has bytes by what they are for, `peak` among them the most in use at once, against `hbm`. `model_flops` are
    those of the paper's count, `matrix_flops` what the matrix units do, `kernel_flops` what custom kernels add.
    `seconds` is (compute alone, compute plus what collectives it waits for); `parts` are the seconds of matrix
    products, kernels, the rest, and of collectives behind compute and not."""

    name: str
    topology: str
    devices: int
    source: str
    mesh: dict[str, int]
    remat: str
    tokens: int
    hbm: float
    memory: dict[str, float]
    model_flops: float
    matrix_flops: float
    kernel_flops: float
    peak_flops: float
    collectives: tuple[Collective, ...]
    parts: dict[str, float]
    unknown: dict[str, float]
    compiler: str = ""
    compile_seconds: float = 0.0

    @property
    def fits(self) -> bool:
        return self.memory["peak"] <= self.hbm

    @property
    def seconds(self) -> tuple[float, float]:
        compute = self.parts["matrix"] + self.parts["kernels"] + self.parts["rest"]
        if self.source == "analytic":  # nobody has arranged what goes on behind what: at best all of it does
            return max(compute, self.parts["behind"]), compute + self.parts["behind"] + self.parts["waiting"]
        return compute, compute + self.parts["waiting"]

    @property
    def wire(self) -> float:
        """Bytes of all collectives of a step."""
        return sum(c.bytes for c in self.collectives)

    @property
    def tokens_per_second(self) -> float:
        """Of all devices, at the slower end of `seconds`."""
        return self.tokens / max(self.seconds[1], self.parts["behind"])

    @property
    def mfu(self) -> float:
        """Model FLOPs a second over the peak, at the slower end of `seconds`."""
        return self.model_flops / max(self.seconds[1], self.parts["behind"]) / self.peak_flops

    @property
    def binding(self) -> str:
        """What the step is bound by."""
        network = self.parts["behind"] + self.parts["waiting"]
        parts = {
            "compute": self.parts["matrix"] + self.parts["kernels"],
            "memory bandwidth": self.parts["rest"],
            "network": network,
        }
        return max(parts, key=lambda name: parts[name]) if self.fits else "memory"

    def as_data(self) -> dict[str, Any]:
        """As JSON data, with what is worked out from it."""
        made = {k: v for k, v in vars(self).items() if k != "collectives"}
        worked_out = dict(
            fits=self.fits,
            seconds=self.seconds,
            wire=self.wire,
            tokens_per_second=self.tokens_per_second,
            mfu=self.mfu,
            binding=self.binding,
            cannot_see=BLIND,
        )
        return {**made, "collectives": [vars(c) for c in self.collectives], **worked_out}


def common(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    """What a plan says that does not depend on where it comes from."""
    e = experiment
    flops = count.flops_per_token(e.model, e.length) * e.batch_tokens / topology.devices
    return dict(
        name=e.name,
        topology=topology.name,
        devices=topology.devices,
        mesh=dict(e.mesh) or {"data": topology.devices},
        remat=e.compute.remat,
        tokens=e.batch_tokens,
        hbm=topology.hbm,
        model_flops=flops,
        peak_flops=topology.flops,
    )


def from_compiler(experiment: Experiment, topology: Topology, compiled: Compiled, cost: Cost) -> Plan:
    """The plan of a compiled step."""
    return Plan(
        **common(experiment, topology),
        source="compiled",
        memory={k: float(getattr(compiled, k)) for k in ("arguments", "outputs", "temporaries", "code", "peak")},
        matrix_flops=cost.matrix,
        kernel_flops=cost.kernel,
        collectives=tuple(
            Collective(*key, t.count, t.bytes, t.seconds) for key, t in sorted(cost.collectives.items()) if t.bytes
        ),
        parts=dict(
            matrix=cost.matrix_seconds,
            kernels=cost.kernel_seconds,
            rest=cost.other_seconds,
            behind=cost.waiting(True),
            waiting=cost.waiting(False),
        ),
        unknown=dict(cost.unknown),
        compiler=compiled.compiler,
        compile_seconds=compiled.lower_seconds + compiled.compile_seconds,
    )


def attended(experiment: Experiment) -> float:
    """The share of a row's keys that a query looks at, the mean over queries and layers; documents are not counted."""
    T, causal = experiment.length, experiment.model.causal
    shares = []
    for slot in experiment.model.by_layer:
        w = min(slot.window or T, T)
        shares.append((w - w * w / (2 * T)) / T if causal else min(1.0, (2 * w - 1) / T) if slot.window else 1.0)
    return sum(shares) / len(shares)


def line(mesh: Mapping[str, int]) -> str:
    """A mesh in a few words."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "1 device"
