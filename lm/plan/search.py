"""Search for the plan that trains fastest: meshes x remat x micro-batches x attention blocks.

Arithmetic (lm/plan/analytic.py) drops what cannot fit and ranks the rest in seconds; the compiler has the last word on
the best few, each of which keeps other activations for the backward pass: they decide most of the memory, of which
arithmetic is least sure. It is coarse, so a candidate may exceed the memory by SLACK before it is dropped.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lm.experiment import Experiment
from lm.legal import check_mesh
from lm.model.compute import NAMES, OUTER
from lm.model.experts import Experts
from lm.plan import analytic
from lm.plan.plan import Plan, line
from lm.plan.topology import Topology

SLACK = 1.15
# what is computed again, from nothing to all of a layer
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
LONG = 16384  # tokens a row from which context parallelism is tried
MOST_TENSOR = 16


@dataclass(frozen=True)
class Candidate:
    """A variant of the experiment, settled, with its analytic plan and, once compiled, the compiler's, or why not."""

    experiment: Experiment
    guess: Plan
    plan: Plan | None = None
    failure: str = ""

    @property
    def best(self) -> Plan:
        """The better known plan."""
        return self.plan or self.guess

    @property
    def settings(self) -> str:
        """What to set: the words after --set."""
        e = self.experiment
        mesh = [f"mesh.{axis}={size}" for axis, size in e.mesh.items()]
        rest = [f"accumulate={e.accumulate}", f"compute.block={e.compute.block}"]
        keep = [f"compute.keep={','.join(e.compute.keep)}"] if e.compute.keep else []
        sequence = ["layout.sequence=true"] if e.layout.sequence else []
        return " ".join([*mesh, f"compute.remat={e.compute.remat}", *keep, *rest, *sequence])

    @property
    def paste(self) -> str:
        """The line to paste into the experiment."""
        e = self.experiment
        mesh = ", ".join(f"{axis}={size}" for axis, size in e.mesh.items())
        keep = f", keep={e.compute.keep!r}" if e.compute.keep else ""
        sequence = "layout=Layout(sequence=True), " if e.layout.sequence else ""
        return (
            f"mesh=dict({mesh}), accumulate={e.accumulate}, {sequence}"
            f'compute=Compute(remat="{e.compute.remat}"{keep}, block={e.compute.block})'
        )


def meshes(experiment: Experiment, topology: Topology) -> Iterator[dict[str, int]]:
    """The meshes worth trying: fsdp takes what tensor, expert and context leave of a slice, replica the slices."""
    slots = experiment.model.slots.values()
    experts = math.gcd(*(slot.ffn.experts for slot in slots if isinstance(slot.ffn, Experts))) or 1
    heads = math.gcd(*(size for slot in slots for axis, size in slot.mixer.sizes().values() if axis == "heads"))
    a_slice = topology.devices // topology.slices
    tensors = [n for n in (1, 2, 4, 8, MOST_TENSOR) if heads % n == 0]
    contexts = [1, 2, 4, 8, 16] if experiment.length >= LONG else [1]
    splits = [n for n in (1, 2, 4, 8, 16, 32, 64) if n == 1 or (experts > 1 and experts % n == 0)]
    for tensor, context, expert in itertools.product(tensors, contexts, splits):
        taken = tensor * context * expert
        if a_slice % taken == 0:
            named = dict(replica=topology.slices, fsdp=a_slice // taken, expert=expert, context=context, tensor=tensor)
            yield {axis: size for axis, size in named.items() if size > 1} or {"data": 1}


def candidates(experiment: Experiment, topology: Topology) -> list[Candidate]:
    """Every legal variant that may fit, the fastest by arithmetic first."""
    e = experiment
    found = []
    accumulates = sorted({*(2**k for k in range(8)), e.accumulate})
    for mesh, remat, accumulate in itertools.product(meshes(e, topology), REMATS, accumulates):
        try:
            layout = dataclasses.replace(e.layout, sequence=mesh.get("tensor", 1) > 1)
            compute = dataclasses.replace(e.compute, **{"keep": (), "offload": (), **remat})
            changed = dataclasses.replace(e, mesh=mesh, accumulate=accumulate, compute=compute, layout=layout)
            check_mesh(changed, mesh)
        except ValueError:
            continue  # this mesh cannot hold this model, or these rows
        guess = analytic.plan(changed, topology)
        if guess.memory["peak"] <= SLACK * guess.hbm:
            found.append(Candidate(changed, guess))
    return sorted(found, key=lambda c: (sum(c.guess.seconds), c.experiment.accumulate))


def search(
    experiment: Experiment,
    topology: Topology,
    compile_one: Callable[[Experiment], Plan] | None,
    most: int = 3,
    told: Callable[[str], Any] = print,
) -> list[Candidate]:
    """The ranked candidates, of which `compile_one` has compiled `most`; with None all stay analytic.

    Raises ValueError where nothing can fit."""
    found = candidates(experiment, topology)
    if not found:
        raise ValueError(
            f"{experiment.name} fits {topology.name} in no mesh that was tried, even with remat=full: take more chips, "
            "fewer rows_per_device, or a shorter seq_len"
        )
    if compile_one is None:
        return found
    done: list[Candidate] = []
    waiting = list(found)
    while waiting and len(done) < 3 * most and sum(c.plan is not None for c in done) < most:
        candidate = waiting.pop(0)
        told(f"compiling {line(candidate.experiment.mesh)}, {candidate.settings}")
        try:
            done.append(dataclasses.replace(candidate, plan=compile_one(candidate.experiment)))
            waiting = [c for c in waiting if _kept(c) != _kept(candidate)]
        except ValueError as error:
            done.append(dataclasses.replace(candidate, failure=str(error)))
            least = candidate.guess.memory["peak"]  # nor will what keeps the same and needs as much
            waiting = [c for c in waiting if _kept(c) != _kept(candidate) or c.guess.memory["peak"] < least]
    best = next((c for c in sorted(done, key=_speed) if c.plan), None)
    if best:
        done += _with_blocks(best, compile_one, told)
    tried = [c.experiment for c in done]
    return sorted(done, key=_speed) + [c for c in found if c.experiment not in tried]


def _with_blocks(
    best: Candidate, compile_one: Callable[[Experiment], Plan], told: Callable[[str], Any]
) -> list[Candidate]:
    """The best candidate with the other blocks of attention."""
    tried = []
    for block in BLOCKS:
        e = best.experiment
        if block == max(e.compute.block, BLOCKS[0]) or e.compute.resolve("tpu").attention != "splash":
            continue
        changed = dataclasses.replace(e, compute=dataclasses.replace(e.compute, block=block))
        told(f"compiling it with compute.block={block}")
        try:
            tried.append(Candidate(changed, best.guess, compile_one(changed)))
        except ValueError as error:
            tried.append(Candidate(changed, best.guess, None, str(error)))
    return tried


def _kept(candidate: Candidate) -> tuple[str, tuple[str, ...]]:
    compute = candidate.experiment.compute
    return compute.remat, compute.keep


def _speed(candidate: Candidate) -> tuple[bool, float]:
    return not candidate.plan, candidate.best.seconds[1]
