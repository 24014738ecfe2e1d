"""Whether a run fits the memory that there is, before anything is allocated: by what no program of it can do without.

That is a lower bound, so that nothing is refused that could run: the parameters and the optimizer's state, and the
larger of the gradients and the activations that the backward pass keeps. What a compiler adds is in `lm plan`.
"""

import dataclasses

import jax

from lm.experiment import Experiment
from lm.machine import hardware
from lm.plan.advice import variants
from lm.plan.analytic import F32, Step, state_bytes
from lm.plan.topology import Chip, Topology
from lm.tune.trains import All


def check_memory(experiment: Experiment) -> None:
    """Raises ValueError where the experiment, on all devices, needs more memory than a device has."""
    there, where = hardware.memory()
    if not there:
        return
    here = Topology(Chip("device", there, 1.0, 1.0, 1.0, 0, 1.0), (jax.device_count(),))
    parts = least(experiment, here)
    if (need := total(parts)) > there:
        listed = ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in parts.items() if size)
        raise ValueError(
            f"{experiment.name} needs at least {need / 1e9:,.1f} GB a device ({listed}), and {where} has "
            f"{there / 1e9:,.1f} GB: {cure(experiment, here)}"
        )


def host_bytes(experiment: Experiment) -> float:
    """Bytes of this machine's memory that the experiment cannot do without on its CPU devices."""
    devices = experiment.compute.devices or 1
    here = Topology(Chip("device", hardware.host_memory() // devices, 1.0, 1.0, 1.0, 0, 1.0), (devices,))
    return total(least(experiment, here)) * devices


def least(experiment: Experiment, here: Topology) -> dict[str, float]:
    """Bytes on one device by use: what is there all the time, and of gradients and activations a lower bound each."""
    e = dataclasses.replace(experiment, mesh=experiment.mesh or {"data": here.devices})
    step = Step(e, here)
    params, moments = (size / step.shards for size in state_bytes(e))
    average = step.trained * F32 / step.shards if e.ema else 0.0
    held = step.trained * F32 / step.shards if e.optimizer.clip or e.accumulate > 1 else 0.0
    return {
        "parameters": params,
        "optimizer": 0.0 if e.layout.offload_optimizer else moments,
        "average": average,
        "gradients": held,
        "activations": activations(step),
    }


def activations(step: Step) -> float:
    """Those of the decoder's layers that the backward pass finds again; none where a part of the model is frozen, since
    a layer below all that is trained keeps none."""
    e = step.experiment
    if e.trains != All():
        return 0.0
    named = set(step.kept()) - {"out", "mlp_out"}  # they go into the residual stream, which is counted
    each = e.model.width * (e.compute.remat != "names") + sum(step.activations.get(name, 0.0) for name in named)
    size = 2 if e.compute.resolve().dtype == "bfloat16" else 4
    tokens = step.tokens / e.method.updates[0] * e.lengths[1] / e.length
    return each * size * tokens * e.model.layers


def total(parts: dict[str, float]) -> float:
    """Gradients and activations need not be there at the same time."""
    state = sum(size for name, size in parts.items() if name not in ("gradients", "activations"))
    return state + max(parts["gradients"], parts["activations"])


def cure(experiment: Experiment, here: Topology) -> str:
    """What would need less: settings that may fit, or a smaller model, or more devices."""
    tried = variants(experiment, here)[: None if here.devices > 1 else -1]  # the last shards over the devices
    fitting = [text for text, one in tried if total(least(one, here)) <= here.hbm]
    if fitting:
        return f"what may fit, by arithmetic: {', or '.join(fitting[:3])}"
    state = total({**least(experiment, here), "activations": 0.0})
    if state <= here.hbm:
        return "take fewer batch_tokens, or rows of fewer tokens (seq_len)"
    more = -(-state * here.devices // here.hbm)
    return (
        f"take a smaller model, about {more:,.0f} such devices with mesh.fsdp=-1 (see lm plan), or trains=LoRA() of a "
        "start; --smoke tries it small"
    )
