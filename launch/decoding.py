"""`lm plan MODEL --decode`: what a step of decoding and a prefill cost on other chips."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.find import changed, find

if TYPE_CHECKING:
    from lm.plan.decoding import DecodingPlan, Serving
    from lm.plan.plan import Plan
    from lm.plan.topology import Topology


def serving(args: argparse.Namespace, topology: "Topology") -> "Serving":
    """What is asked for: the model of an experiment, or of a file or folder, on a mesh that is set or chosen."""
    from lm.plan.decoding import Serving, default_mesh
    from lm.sharding.mesh import check_shape

    if args.search or args.text:
        raise ValueError(f"{'--search' if args.search else '--text'} is not for --decode: leave it out")
    asked: dict[str, Any] = dict(
        batch=32 if args.batch is None else args.batch,
        context=2048 if args.context is None else args.context,
        weights=args.weights or "bfloat16",
    )
    if is_file(args.experiment):
        from lm.pretrained import read_config

        name, model, mesh = Path(args.experiment).stem, read_config(args.experiment), mesh_of(args.set)
    else:
        experiment = changed(find(args.experiment)[0], args.set)
        name, model, asked["compute"] = experiment.name, experiment.model, experiment.compute
        is_set = any(setting.startswith("mesh.") for setting in args.set)  # else it is one to train on
        mesh = filled_up(experiment.mesh, topology.devices) if is_set else {}
    mesh = mesh or default_mesh(model, topology.devices, topology.slices)
    check_shape(mesh, topology.devices)
    return Serving(name, model, mesh, **asked)


def filled_up(mesh: Mapping[str, int], devices: int) -> dict[str, int]:
    """`mesh` with the devices that are left in place of -1."""
    taken = math.prod(size for size in mesh.values() if size != -1)
    return {axis: max(1, devices // taken) if size == -1 else size for axis, size in mesh.items()}


def is_file(reference: str) -> bool:
    """Whether it is a model's file or folder, and no page of experiments."""
    return "://" in reference or (Path(reference).exists() and not reference.endswith(".py"))


def mesh_of(settings: list[str]) -> dict[str, int]:
    """The mesh of `mesh.AXIS=N` settings, all that a file's model can be set. Raises ValueError for others."""
    mesh = {}
    for setting in settings:
        field, _, value = setting.partition("=")
        if not field.startswith("mesh.") or not value.isdigit():
            raise ValueError(f"--set {setting}: of a model's file only the mesh can be set, as in mesh.tensor=4")
        mesh[field.removeprefix("mesh.")] = int(value)
    return mesh


def rows(found: "DecodingPlan") -> list[tuple[str, str]]:
    """The lines of a plan: (label, text); GB = 10^9 bytes."""
    from lm.plan.plan import NOT_MODELLED, mesh_text

    step, prefill = found.step, found.prefill
    compiled = f"{step.compiler}, {step.compile_seconds + prefill.compile_seconds:.0f} s"
    sized = dict(parameters=found.parameters, cache=found.cache, temporaries=step.memory["temporaries"])
    floor = found.read / found.bandwidth
    second, chips = found.tokens_per_second, found.chips
    return [
        ("plan", f"{step.name} decodes on {step.devices} devices of {step.topology}: {mesh_text(step.mesh)}"),
        ("by", compiled if step.compiler else "analytic, coarse"),
        ("batch", f"{found.batch} rows of {found.context:,} tokens, {found.weights} parameters"),
        ("bytes a device", ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sized.items()) + " GB"),
        ("peak", f"{found.peak / 1e9:.2f} of {step.hbm / 1e9:.2f} GB" + ("" if found.fits else ": DOES NOT FIT")),
        *lines(step, "step"),
        ("tokens a second", f"{second:,.0f}, {second / chips:,.0f} a chip"),
        ("bytes a step", f"{found.moved / 1e9:.2f} GB moved, {found.read / 1e9:.2f} of them parameters and cache"),
        ("bandwidth", f"these take {floor * 1e3:.2f} ms: {found.utilisation:.0%} of a step"),
        ("bound by", found.bottleneck),
        *lines(prefill, "prefill"),
        ("prompt tokens a s", f"{prefill.tokens_per_second:,.0f}, MFU {prefill.mfu:.1%}"),
        ("not modelled", NOT_MODELLED),
    ]


def lines(plan: "Plan", what: str) -> list[tuple[str, str]]:
    """The time of one program: a step, or a prefill."""
    low, high = (seconds * 1e3 for seconds in plan.seconds)
    parts = ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in plan.parts.items() if seconds)
    found = [(f"ms a {what}", f"{low:.2f} (compute) - {high:.2f} (and exposed collectives): {parts}")]
    if plan.collectives:
        traffic = (f"{c.count:,.0f} {c.kind} of {c.bytes / 1e6:.1f} MB" for c in plan.collectives)
        found.append((f"collectives a {what}", ", ".join(traffic)))
    if plan.unknown:
        found.append(("not counted", ", ".join(f"{n:g} x {k}" for k, n in plan.unknown.items())))
    return found
