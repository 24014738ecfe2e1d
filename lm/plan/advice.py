"""Advice for a step that does not fit: the changes whose analytic plan fits, the least costly first.

Where none of the usual ones does, the fastest of all that `lm plan --search` tries and that fits is advised: "nothing
fits" is said only where the search would say so too.
"""

import dataclasses
import re

from lm.experiment import Experiment
from lm.legal import check_mesh
from lm.plan import analytic
from lm.plan.search import candidates
from lm.plan.topology import Topology


def excess(message: str) -> str:
    """By how much it does not fit, from the compiler's message."""
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm. Exceeded hbm capacity by ([\d.]+\w)", message)
    if used:
        return f"it needs {used[1]}iB of {used[2]}iB, {used[3]}iB too much"
    return message.splitlines()[0][:300]


def advice(experiment: Experiment, topology: Topology) -> str:
    """The first three changes whose analytic plan fits, or how many more chips it takes, as text."""
    fitting = [text for text, changed in variants(experiment, topology) if _fits(changed, topology)]
    fitting = fitting or [c.settings for c in candidates(experiment, topology) if c.fits][:1]
    if not fitting:
        need = analytic.plan(experiment, topology).memory["peak"] / topology.hbm
        return f"no setting that was tried fits: take about {max(2, round(need + 0.5))} times the chips"
    return "what would fit, by arithmetic: " + ", or ".join(fitting[:3])


def variants(experiment: Experiment, topology: Topology) -> list[tuple[str, Experiment]]:
    """(text, changed experiment) of the changes that save memory, the least costly first."""
    e, changes = experiment, []
    compute = e.compute
    for remat in ("dots", "minimal", "full"):
        if compute.remat in ("nothing", "dots", "minimal") and remat != compute.remat:
            changed = dataclasses.replace(e, compute=dataclasses.replace(compute, remat=remat))
            changes.append((f"compute.remat={remat}", changed))
    full = dataclasses.replace(compute, remat="full", keep=(), offload=())
    least = dataclasses.replace(e, compute=full)
    for parts in (2, 4, 8):
        if e.rows % (e.accumulate * parts) == 0:
            changed = dataclasses.replace(least, accumulate=e.accumulate * parts)
            changes.append((f"compute.remat=full accumulate={changed.accumulate}", changed))
    sharded = {"fsdp": topology.devices // topology.slices}
    if topology.slices > 1:
        sharded["replica"] = topology.slices
    mesh = " ".join(f"mesh.{axis}={size}" for axis, size in sharded.items())
    changes.append((f"{mesh} compute.remat=full", dataclasses.replace(least, mesh=sharded)))
    return changes


def _fits(experiment: Experiment, topology: Topology) -> bool:
    try:
        check_mesh(experiment, experiment.mesh or {"data": topology.devices})
    except ValueError:
        return False
    plan = analytic.plan(experiment, topology)
    return plan.fits
