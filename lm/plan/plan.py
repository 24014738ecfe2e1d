"""A plan: the memory, FLOPs, communication and time of one training step on each device of a topology.

Its `source` is the compiled program ("compiled") or arithmetic alone ("analytic", lm/plan/analytic.py). Every number is
per device: a chip, but for tpu7x, which JAX counts as two devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm.experiment import Experiment
from lm.model.config import ModelConfig
from lm.plan.compile import Compiled
from lm.plan.cost import Cost
from lm.plan.topology import Topology

NOT_MODELLED = (
    "input pipeline, checkpoints and evaluation; contention on the network and slow chips; what the host does between "
    "steps; how far asynchronous collectives really hide behind compute"
)


@dataclass(frozen=True)
class Collective:
    """The collectives of one `kind` in a step, on `network` (ici or dcn), `overlapped` with compute or not: their
    count, the bytes that a device sends, and seconds."""

    kind: str
    network: str
    overlapped: bool
    count: float
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Bytes, FLOPs and seconds of a step on one device.

    Args:
      name: of the experiment.
      topology: as it is written, of `devices` devices.
      source: "compiled" or "analytic".
      mesh: axis -> size.
      remat: compute.remat.
      tokens: of a step, on all devices.
      hbm: bytes of memory.
      memory: bytes by use; `peak` is the most in use at once.
      model_flops: of the model, as papers count them.
      matrix_flops: of the matrix units, recomputation included.
      kernel_flops: of custom kernels, beside those.
      peak_flops: FLOP/s in bfloat16.
      collectives: by kind, network and overlap.
      parts: seconds of matrix products, kernels, the rest, and of overlapped and exposed collectives; of decoding also
        of waiting for memory.
      unknown: what the program has without a known cost -> how often.
      compiler, compile_seconds: of a compiled plan.
    """

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
        """(compute alone, compute and exposed collectives)."""
        compute = self.parts["matrix"] + self.parts["kernels"] + self.parts["rest"] + self.parts.get("waiting", 0.0)
        if self.source == "analytic":  # the overlap is not known: at best all collectives are overlapped
            return max(compute, self.parts["overlapped"]), compute + self.parts["overlapped"] + self.parts["exposed"]
        return compute, compute + self.parts["exposed"]

    @property
    def collective_bytes(self) -> float:
        """The bytes that a device sends in all collectives of a step."""
        return sum(c.bytes for c in self.collectives)

    @property
    def tokens_per_second(self) -> float:
        """Of all devices, at the slower end of `seconds`."""
        return self.tokens / max(self.seconds[1], self.parts["overlapped"])

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation, at the slower end of `seconds`."""
        return self.model_flops / max(self.seconds[1], self.parts["overlapped"]) / self.peak_flops

    @property
    def bottleneck(self) -> str:
        """What bounds the step: compute, memory bandwidth, network; or memory, where it does not fit."""
        network = self.parts["overlapped"] + self.parts["exposed"]
        parts = {
            "compute": self.parts["matrix"] + self.parts["kernels"],
            "memory bandwidth": self.parts["rest"],
            "network": network,
        }
        return max(parts, key=lambda name: parts[name]) if self.fits else "memory"

    def as_data(self) -> dict[str, Any]:
        """As JSON data, with the derived properties."""
        fields = {k: v for k, v in vars(self).items() if k != "collectives"}
        derived = dict(
            fits=self.fits,
            seconds=self.seconds,
            collective_bytes=self.collective_bytes,
            tokens_per_second=self.tokens_per_second,
            mfu=self.mfu,
            bottleneck=self.bottleneck,
            not_modelled=NOT_MODELLED,
        )
        return {**fields, "collectives": [vars(c) for c in self.collectives], **derived}


def base_fields(experiment: Experiment, topology: Topology) -> dict[str, Any]:
    """The fields of a plan that do not depend on its source."""
    e = experiment
    flops = e.flops_per_token * e.batch_tokens / topology.devices
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
    """The plan of a compiled training step."""
    return compiled_plan(base_fields(experiment, topology), compiled, cost)


def compiled_plan(fields: Mapping[str, Any], compiled: Compiled, cost: Cost) -> Plan:
    """The plan of a compiled program, of which `fields` are those that do not depend on the source."""
    return Plan(
        **fields,
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
            overlapped=cost.collective_seconds(True),
            exposed=cost.collective_seconds(False),
        ),
        unknown=dict(cost.unknown),
        compiler=compiled.compiler,
        compile_seconds=compiled.lower_seconds + compiled.compile_seconds,
    )


def attended_fraction(model: ModelConfig, T: int) -> float:
    """The fraction of a row's T keys that a query attends to, the mean over queries and layers, without packing."""
    causal = model.causal
    shares = []
    for slot in model.by_layer:
        w = min(slot.window or T, T)
        after = w - 1 if slot.window_after is None else slot.window_after
        shares.append((w - w * w / (2 * T)) / T if causal else min(1.0, (w + after) / T) if slot.window else 1.0)
    return sum(shares) / len(shares)


def mesh_text(mesh: Mapping[str, int]) -> str:
    """A mesh as text: "fsdp 32 x tensor 2"."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "1 device"
