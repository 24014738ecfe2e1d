"""Whether an experiment can be laid over a mesh: the border where the one meets the other.

Every dimension that the layout splits must divide by the devices along its mesh axes. What does not is refused here, in
the experiment's own words and with the nearest sizes that would do, before anything is compiled or spent.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lm.experiment import Experiment
from lm.model.config import ModelConfig
from lm.model.experts import Experts
from lm.model.mixer import Mixer
from lm.model.parts import FeedForward
from lm.sharding.mesh import check_shape
from lm.sharding.rules import MAY_REPLICATE, ZERO_AXES

KEPT_WHOLE = ("vocab", "rank")  # sizes that were published and seldom divide


@dataclass(frozen=True)
class Dimension:
    """A number of the experiment, `field`=`value`, of which each device along the mesh axes `names` needs a whole share
    of a multiple of `unit`; `what` says it in words."""

    field: str
    value: int
    names: tuple[str, ...]
    unit: int = 1
    axis: str = ""
    what: str = ""


def check_devices(experiment: Experiment, devices: int, slices: int = 1) -> None:
    """Raise ValueError where `experiment` cannot run on so many devices, in slices of equal size that only the mesh
    axis replica crosses: its batch, its mesh, or its model does not divide. Asks no device."""
    e = experiment.on(devices)
    mesh = e.mesh or ({"replica": slices} if slices > 1 else {}) | {"data": devices // slices}
    check_shape(mesh, devices)
    if mesh.get("replica", 1) % slices:
        raise ValueError(
            f"mesh axis replica={mesh.get('replica', 1)}: only replica crosses the {slices} slices: set mesh.replica="
            f"{slices}"
        )
    check_mesh(e, mesh)


def check_mesh(experiment: Experiment, mesh: Mapping[str, int]) -> None:
    """Raise ValueError where `experiment` cannot be laid over a mesh of these sizes (axis -> devices), with the axis,
    its size, the dimension, and the nearest legal values."""
    slots = [slot for model in models(experiment).values() for slot in model.slots.values()]
    experts = [slot.ffn for slot in slots if isinstance(slot.ffn, Experts)]
    if mesh.get("expert", 1) > 1 and not experts:
        raise ValueError(f"mesh axis expert={mesh['expert']}: this model has no experts, use data or fsdp instead")
    if mesh.get("tensor", 1) == 1 and experiment.layout.sequence_parallel:
        raise ValueError(
            "layout.sequence_parallel=True shards the sequence over mesh axis tensor, which is 1: set it to False"
        )
    mixers = [slot.mixer for slot in slots if slot.mixer.recurrent or slot.mixer.merges_encoder]
    whole = {type(mixer).__name__: "in order" if mixer.recurrent else "beside the encoder's" for mixer in mixers}
    if mesh.get("context", 1) > 1 and whole:
        raise ValueError(
            f"mesh axis context={mesh['context']} splits rows, which {' and '.join(sorted(whole))} reads "
            f"{' and '.join(sorted(set(whole.values())))}: set context=1, and use data, fsdp or tensor instead"
        )
    for dimension in dimensions(experiment):
        names = tuple(name for name in dimension.names if mesh.get(name, 1) > 1)
        parts = math.prod(mesh[name] for name in names)
        if dimension.value % (parts * dimension.unit) and not _repeated(dimension, parts):
            raise ValueError(_refusal(dimension, names, mesh))


def _repeated(dimension: Dimension, parts: int) -> bool:
    """Whether each part may have the whole dimension: fewer kv heads than devices."""
    return dimension.axis in MAY_REPLICATE and parts % dimension.value == 0


def dimensions(experiment: Experiment) -> Iterator[Dimension]:
    """What a mesh may split of `experiment`: its rows, its sequence, and its model's sizes."""
    e, layout = experiment, experiment.layout
    rules = {axis: (rule,) if isinstance(rule, str) else rule or () for axis, rule in layout.rules.items()}
    parts = e.accumulate * e.method.updates[0]
    rows = f"{e.rows // parts} rows a micro-batch"
    yield Dimension("batch_tokens", e.batch_tokens, rules["batch"], e.length * parts, "batch", rows)
    pieces = 2 if e.model.causal else 1  # lm/model/context.py: two chunks a device, so that causal work is equal
    yield Dimension("seq_len", e.length, rules["seq"], pieces, "seq", f"rows of {e.length} tokens")
    yield Dimension("seq_len", e.length, rules["residual_seq"], 1, "residual_seq", f"rows of {e.length} tokens")
    for name, model in models(e).items():
        for field, (axis, size) in sizes(model).items():
            split = rules[axis]
            if axis in ZERO_AXES:
                state = layout.state_rules[axis] or ()
                split = (*split, *(name for name in state if name not in split))
            yield Dimension(f"{name}.{field}", size, split, 1, axis)


def models(experiment: Experiment) -> dict[str, ModelConfig]:
    """The models that a step or its preparation computes, by the fields that have them."""
    others = {f"method.{role}_model": model.config for role, model in experiment.method.models.items()}
    return {"model": experiment.model, **others}


def sizes(model: ModelConfig) -> dict[str, tuple[str, int]]:
    """The sizes of a model by the names of their fields, each with its logical axis."""
    found = {"width": ("embed", model.width), "vocab": ("vocab", model.vocab)}
    parts: dict[str, Mixer | FeedForward] = {}
    for field, kinds in (("first_layers", model.first_layers), ("pattern", model.pattern)):
        for i, kind in enumerate(kinds):
            parts["attention" if kind.mixer is None else f"{field}[{i}].mixer"] = kind.mixer or model.attention
            parts["ffn" if kind.ffn is None else f"{field}[{i}].ffn"] = kind.ffn or model.ffn
    for name, part in parts.items():
        found |= {f"{name}.{field}": size for field, size in part.sizes().items()}
    if model.encoder:
        found |= {f"encoder.{field}": size for field, size in sizes(model.encoder).items()}
    if model.vision:  # whose vocabulary has no table
        tower = sizes(model.vision.tower)
        found |= {f"vision.tower.{field}": size for field, size in tower.items() if field != "vocab"}
    return found


def _refusal(d: Dimension, names: tuple[str, ...], mesh: Mapping[str, int]) -> str:
    """The one line that says what does not divide, and what would."""
    parts = math.prod(mesh[name] for name in names)
    step = parts * d.unit
    below, above = d.value // step * step, (d.value // step + 1) * step
    values = " or ".join(f"{d.field}={v}" for v in (below, above) if v)
    over = " x ".join(f"{name}={mesh[name]}" for name in names) + (f" = {parts} devices" if len(names) > 1 else "")
    told = f"{d.what} ({d.field}={d.value})" if d.what else f"{d.field}={d.value}"
    shares = f" in shares of a multiple of {d.unit}" if d.unit > 1 and d.axis == "seq" else ""
    whole = f", or replicate it: layout.replicated=({d.axis!r},)" if d.axis in KEPT_WHOLE else ""
    return f"{told} cannot be divided over mesh {over}{shares}: try {_axis_sizes(d, names, mesh)} or {values}{whole}"


def _axis_sizes(d: Dimension, names: tuple[str, ...], mesh: Mapping[str, int]) -> str:
    """The nearest sizes of the last of these mesh axes that would do, of those that divide the devices in all."""
    *others, last = names
    rest, devices = math.prod(mesh[name] for name in others), math.prod(mesh.values())
    whole = devices % rest == 0 and d.value % (rest * d.unit) == 0
    legal = divisors(math.gcd(devices // rest, d.value // (rest * d.unit))) if whole else [1]
    near = sorted(legal, key=lambda n: abs(math.log(n / mesh[last])))[:2]
    return " or ".join(f"{last}={n}" for n in sorted(near))


def divisors(number: int) -> list[int]:
    """Those of a number above 0, in ascending order."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})
