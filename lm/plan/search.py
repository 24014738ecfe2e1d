"""Search for the fastest plan: meshes x remat x micro-batches x attention blocks.

Analytic plans (lm/plan/analytic.py) drop the candidates that cannot fit and rank the others by time. The best few are
compiled, each with other activations kept for the backward pass: these decide most of the memory, which is the least
certain part of an analytic plan. It is coarse, so a candidate may exceed the memory by SLACK before it is dropped. Of
what only the compiler knows, other attention blocks and more vector memory for a kernel are tried with the best.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lm.experiment import Experiment
from lm.legal import check_mesh
from lm.model.compute import NAMES, OUTER, Compute
from lm.model.experts import Experts
from lm.plan import analytic
from lm.plan.plan import Plan, mesh_text
from lm.plan.topology import Topology

SLACK = 1.15
# from no recomputation to that of the whole layer
REMATS: tuple[dict[str, Any], ...] = (
    dict(remat="nothing"),
    dict(remat="names", keep=NAMES),
    dict(remat="dots"),
    dict(remat="names", keep=(*OUTER, "attention")),
    dict(remat="minimal"),
    dict(remat="names", keep=("attention", "out")),
    dict(remat="full"),
)
BLOCKS = (512, 1024)
SCOPED_VMEM, HELPED = 64, ("v5e", "v5p")  # MiB, and the chips on which they have been seen to help
LONG_ROW = 16384  # tokens from which context parallelism is tried
MAX_TENSOR = 16


@dataclass(frozen=True)
class Candidate:
    """A variant of the experiment with its analytic plan and, once compiled, the compiled plan or the failure."""

    experiment: Experiment
    analytic: Plan
    compiled: Plan | None = None
    failure: str = ""

    @property
    def best(self) -> Plan:
        """The compiled plan where there is one, else the analytic one."""
        return self.compiled or self.analytic

    @property
    def fits(self) -> bool:
        """As the compiler says where it was asked, else by arithmetic."""
        return not self.failure and self.best.fits

    @property
    def settings(self) -> str:
        """The arguments of --set."""
        e = self.experiment
        mesh = [f"mesh.{axis}={size}" for axis, size in e.mesh.items()]
        rest = [f"accumulate={e.accumulate}", f"compute.block={e.compute.block}"]
        rest += [f"compute.scoped_vmem={e.compute.scoped_vmem}"] if e.compute.scoped_vmem else []
        keep = [f"compute.keep={','.join(e.compute.keep)}"] if e.compute.keep else []
        sequence = ["layout.sequence_parallel=true"] if e.layout.sequence_parallel else []
        return " ".join([*mesh, f"compute.remat={e.compute.remat}", *keep, *rest, *sequence])

    @property
    def paste(self) -> str:
        """The line to paste into the experiment."""
        e = self.experiment
        mesh = ", ".join(f"{axis}={size}" for axis, size in e.mesh.items())
        keep = f", keep={e.compute.keep!r}" if e.compute.keep else ""
        vmem = f", scoped_vmem={e.compute.scoped_vmem}" if e.compute.scoped_vmem else ""
        sequence = "layout=Layout(sequence_parallel=True), " if e.layout.sequence_parallel else ""
        return (
            f"mesh=dict({mesh}), accumulate={e.accumulate}, {sequence}"
            f'compute=Compute(remat="{e.compute.remat}"{keep}, block={e.compute.block}{vmem})'
        )


def meshes(experiment: Experiment, topology: Topology) -> Iterator[dict[str, int]]:
    """The meshes to try: fsdp has the devices of a slice that tensor, expert and context leave, replica the slices."""
    slots = experiment.model.slots.values()
    experts = math.gcd(*(slot.ffn.experts for slot in slots if isinstance(slot.ffn, Experts))) or 1
    heads = math.gcd(*(size for slot in slots for axis, size in slot.mixer.sizes().values() if axis == "heads"))
    per_slice = topology.devices // topology.slices
    tensors = [n for n in (1, 2, 4, 8, MAX_TENSOR) if heads % n == 0]
    contexts = [1, 2, 4, 8, 16] if experiment.length >= LONG_ROW else [1]
    splits = [n for n in (1, 2, 4, 8, 16, 32, 64) if n == 1 or (experts > 1 and experts % n == 0)]
    for tensor, context, expert in itertools.product(tensors, contexts, splits):
        used = tensor * context * expert
        if per_slice % used == 0:
            named = dict(replica=topology.slices, fsdp=per_slice // used, expert=expert, context=context, tensor=tensor)
            yield {axis: size for axis, size in named.items() if size > 1} or {"data": 1}


def candidates(experiment: Experiment, topology: Topology) -> list[Candidate]:
    """Every legal variant that may fit, the fastest by its analytic plan first."""
    e = experiment
    variants = []
    accumulates = sorted({*(2**k for k in range(8)), e.accumulate})
    for mesh, remat, accumulate in itertools.product(meshes(e, topology), REMATS, accumulates):
        try:
            layout = dataclasses.replace(e.layout, sequence_parallel=mesh.get("tensor", 1) > 1)
            compute = dataclasses.replace(e.compute, **{"keep": (), "offload": (), **remat})
            changed = dataclasses.replace(e, mesh=mesh, accumulate=accumulate, compute=compute, layout=layout)
            check_mesh(changed, mesh)
        except ValueError:
            continue  # this mesh does not divide this model, or these rows
        plan = analytic.plan(changed, topology)
        if plan.memory["peak"] <= SLACK * plan.hbm:
            variants.append(Candidate(changed, plan))
    return sorted(variants, key=lambda c: (sum(c.analytic.seconds), c.experiment.accumulate))


def search(
    experiment: Experiment,
    topology: Topology,
    compile_one: Callable[[Experiment], Plan] | None,
    most: int = 3,
    report: Callable[[str], Any] = print,
) -> list[Candidate]:
    """The candidates: those that fit before those that do not, compiled ones first, the fastest of each first.

    Args:
      experiment: what is varied.
      topology: the devices.
      compile_one: compiles a candidate's plan, or raises ValueError; None: all stay analytic.
      most: successful compilations.
      report: called with a line before each compilation.

    Raises:
      ValueError: where no candidate can fit.
    """
    ranked = candidates(experiment, topology)
    if not ranked:
        raise ValueError(
            f"{experiment.name} fits {topology.name} in no mesh that was tried, even with remat=full: take more chips, "
            "fewer rows_per_device, or a shorter seq_len"
        )
    if compile_one is None:
        return sorted(ranked, key=_rank)
    done: list[Candidate] = []
    queue = list(ranked)
    while queue and len(done) < 3 * most and sum(c.compiled is not None for c in done) < most:
        candidate = queue.pop(0)
        report(f"compiling {mesh_text(candidate.experiment.mesh)}, {candidate.settings}")
        try:
            done.append(dataclasses.replace(candidate, compiled=compile_one(candidate.experiment)))
            queue = [c for c in queue if _remat(c) != _remat(candidate)]
        except ValueError as error:
            done.append(dataclasses.replace(candidate, failure=str(error)))
            peak = candidate.analytic.memory["peak"]  # of the same remat, only those that need less may fit
            queue = [c for c in queue if _remat(c) != _remat(candidate) or c.analytic.memory["peak"] < peak]
    for others in (other_blocks, more_vmem):
        best = min(done, key=_rank)
        changes = others(best.experiment.compute, topology) if best.compiled else ()
        done += [_changed(best, change, compile_one, report) for change in changes]
    tried = [c.experiment for c in done]
    return sorted([*done, *(c for c in ranked if c.experiment not in tried)], key=_rank)


def other_blocks(compute: Compute, topology: Topology) -> list[dict[str, int]]:
    """The attention blocks that can take the place of a compute's, as fields of it."""
    if compute.resolve("tpu").attention != "splash":
        return []
    return [dict(block=block) for block in BLOCKS if block != max(compute.block, BLOCKS[0])]


def more_vmem(compute: Compute, topology: Topology) -> list[dict[str, int]]:
    """More vector memory for a kernel than it has, on chips where that helps."""
    helps = topology.chip.kind in HELPED and compute.scoped_vmem < SCOPED_VMEM
    return [dict(scoped_vmem=SCOPED_VMEM)] if helps else []


def _changed(
    best: Candidate, change: dict[str, Any], compile_one: Callable[[Experiment], Plan], report: Callable[[str], Any]
) -> Candidate:
    """The candidate with other fields of its compute, compiled."""
    e = best.experiment
    changed = dataclasses.replace(e, compute=dataclasses.replace(e.compute, **change))
    report(f"compiling it with {', '.join(f'compute.{name}={x}' for name, x in change.items())}")
    try:
        return Candidate(changed, best.analytic, compile_one(changed))
    except ValueError as error:
        return Candidate(changed, best.analytic, None, str(error))


def _remat(candidate: Candidate) -> tuple[str, tuple[str, ...]]:
    compute = candidate.experiment.compute
    return compute.remat, compute.keep


def _rank(candidate: Candidate) -> tuple[bool, bool, float]:
    seconds = candidate.best.seconds[1] if candidate.compiled else sum(candidate.best.seconds)
    return not candidate.fits, not candidate.compiled, seconds
