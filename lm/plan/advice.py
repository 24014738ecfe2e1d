"""What would make a step fit: the changes that arithmetic says bring it under the memory, the mildest first."""

import dataclasses
import re

from lm.experiment import Experiment
from lm.legal import check_mesh
from lm.plan import analytic
from lm.plan.topology import Topology


def excess(said: str) -> str:
    """By how much, from what the compiler said."""
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm. Exceeded hbm capacity by ([\d.]+\w)", said)
    if used:
        return f"it needs {used[1]}iB of {used[2]}iB, {used[3]}iB too much"
    return said.splitlines()[0][:300]


def advice(experiment: Experiment, topology: Topology) -> str:
    """The changes that would make it fit, in words, after what fits already by arithmetic."""
    found = [words for words, changed in variants(experiment, topology) if _fits(changed, topology)]
    if not found:
        need = analytic.plan(experiment, topology).memory["peak"] / topology.hbm
        return f"no setting that was tried fits: take about {max(2, round(need + 0.5))} times the chips"
    return "what would fit, by arithmetic: " + ", or ".join(found[:3])


def variants(experiment: Experiment, topology: Topology) -> list[tuple[str, Experiment]]:
    """Changes that save memory, the mildest first."""
    e, found = experiment, []
    compute = e.compute
    for remat in ("dots", "minimal", "full"):
        if compute.remat in ("nothing", "dots", "minimal") and remat != compute.remat:
            changed = dataclasses.replace(e, compute=dataclasses.replace(compute, remat=remat))
            found.append((f"compute.remat={remat}", changed))
    full = dataclasses.replace(compute, remat="full", keep=(), offload=())
    least = dataclasses.replace(e, compute=full)
    for parts in (2, 4, 8):
        if e.rows % (e.accumulate * parts) == 0:
            changed = dataclasses.replace(least, accumulate=e.accumulate * parts)
            found.append((f"compute.remat=full accumulate={changed.accumulate}", changed))
    whole = {"fsdp": topology.devices // topology.slices}
    if topology.slices > 1:
        whole["replica"] = topology.slices
    mesh = " ".join(f"mesh.{axis}={size}" for axis, size in whole.items())
    found.append((f"{mesh} compute.remat=full", dataclasses.replace(least, mesh=whole)))
    return found


def _fits(experiment: Experiment, topology: Topology) -> bool:
    try:
        check_mesh(experiment, experiment.mesh or {"data": topology.devices})
    except ValueError:
        return False
    plan = analytic.plan(experiment, topology)
    return plan.fits
