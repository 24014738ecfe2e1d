"""The one table that joins logical axes to mesh axes, and its few variants.

A parameter is declared with logical axes (the long names of the letters B T D N K H F V L), an activation is
`constrain`ed to them in a few places, and RULES maps each to mesh axes. The shardings of parameters, optimizer state
and checkpoints follow from the tree of logical axes. Policy is the table; `Layout` has its variants, and no model code
changes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from lm.bounds import whole
from lm.value import suggest

# From the slowest links to the fastest: replica goes across slices (data-centre network), tensor to neighbours.
MESH_AXES = ("replica", "data", "fsdp", "expert", "context", "tensor")


Rule = str | tuple[str, ...] | None
AnyMesh = Mesh | AbstractMesh  # the second has no devices


RULES: dict[str, Rule] = {
    # activations: rows over every axis that is not needed otherwise, the sequence over context
    "batch": ("replica", "data", "fsdp", "expert"),
    "seq": "context",
    "residual_seq": "context",  # the sequence of the residual stream, between sublayers
    "act_embed": None,
    # rows of an embedding table right after the lookup: half-way from the table's sharding to that of activations, so
    # that XLA reshards by two all-to-alls
    "lookup_batch": ("replica", "data"),
    "lookup_seq": None,
    "lookup_embed": ("fsdp", "expert"),
    "expert_batch": ("replica", "data", "fsdp", "expert"),  # the tokens that experts read
    "expert_embed": None,
    "cache_batch": ("replica", "data", "fsdp", "expert"),  # the rows of a cache
    # parameters: ZeRO-3 on the model width or a low rank, Megatron's tensor parallelism on the other side
    "embed": ("fsdp", "expert", "context"),
    "rank": (
        "fsdp",
        "expert",
        "context",
    ),  # between the factors of a low-rank product; replicated next to "embed"
    "lora_rank": None,  # between the factors of an adapter, of which the other axes are the matrix's
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "experts": "expert",
    "layers": None,
    "conv": None,  # the taps of a convolution over tokens
    "norm": None,  # vectors of width D: too small to be worth gathering
    "balance": None,  # a number of each expert that is moved against its load (lm/train/optim.py)
}


ZERO_AXES = ("embed", "rank")  # the logical axes over which ZeRO splits parameters, gradients and the optimizer's state

# Fewer kv heads than devices on the tensor axis are replicated; each device uses that of its queries.
MAY_REPLICATE = ("kv_heads",)


Axes = Sequence[str | None]


@dataclass(frozen=True)
class Layout:
    """A variant of RULES.

    - `zero_stage`: 3 shards parameters, gradients and optimizer state over the mesh axes of "embed"; 1 replicates the
      parameters there, and shards optimizer state and moving average over these axes and data (1910.02054).
    - `sequence_parallel`: under tensor parallelism, shard the sequence of the residual stream over tensor too, so that
      norms and residual sums are not repeated on each device of the axis (2205.05198).
    - `replicated`: logical axes that are not sharded, for sizes that do not divide (a published vocabulary).
    - `offload_optimizer`: keep the optimizer's state in host memory between steps."""

    zero_stage: Annotated[int, whole(1, 3)] = 3
    sequence_parallel: bool = False
    replicated: tuple[str, ...] = ()
    offload_optimizer: bool = False

    def __post_init__(self) -> None:
        if self.zero_stage not in (1, 3):
            raise ValueError(
                f"layout.zero_stage={self.zero_stage}: expected 3 (parameters split too) or 1 (optimizer state alone)"
            )
        for axis in self.replicated:
            if axis not in RULES:
                raise ValueError(f"layout.replicated: unknown logical axis {axis!r}: {suggest(axis, RULES)}")

    @property
    def rules(self) -> dict[str, Rule]:
        """Logical axis -> mesh axes, for activations and parameters."""
        changed: dict[str, Rule] = {"rank": None} if self.zero_stage == 1 else {}
        if self.zero_stage == 1 or "embed" in self.replicated:
            changed |= {"embed": None, "lookup_embed": None}
            changed |= {"lookup_batch": RULES["batch"], "lookup_seq": RULES["seq"]}
        if self.sequence_parallel:
            changed |= {"residual_seq": ("context", "tensor")}
        return {**RULES, **changed, **dict.fromkeys(self.replicated)}

    @property
    def state_rules(self) -> dict[str, Rule]:
        """Logical axis -> mesh axes, for the optimizer's state."""
        split = {axis: (*mesh_axes_of(RULES[axis]), *(("data",) if self.zero_stage == 1 else ())) for axis in ZERO_AXES}
        return {**self.rules, **split, **dict.fromkeys(self.replicated)}


class DecodingLayout(NamedTuple):
    """A `layout` of activations for steps of few tokens, in which these are smaller than any weight: weights stay where
    they are, and the residual stream is split over the model's width as they are, so that products are summed over the
    mesh and nothing of the parameters is gathered (2211.05102, section 3.2.2). Parameters lie as in a Layout, and so do
    the rows of a cache: each device attends to its own."""

    layout: Layout = Layout()

    @property
    def rules(self) -> dict[str, Rule]:
        """As of a Layout."""
        given = self.layout.rules
        width = dict(act_embed=given["embed"], lookup_embed=given["embed"])
        return {**given, "batch": ("replica", "data"), "lookup_batch": ("replica", "data"), **width}

    @property
    def state_rules(self) -> dict[str, Rule]:
        """As of a Layout."""
        return self.layout.state_rules

    @property
    def offload_optimizer(self) -> bool:
        """As of a Layout."""
        return self.layout.offload_optimizer


def mesh_axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of a rule, or of an entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def check_axes(axes: Sequence[str | None], shape: Sequence[int]) -> None:
    """Raise ValueError for an unknown logical axis, which would silently not be sharded, or a wrong number of axes."""
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axes {tuple(axes)} for an array of shape {tuple(shape)}")
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"unknown logical axis {axis!r}: {suggest(axis, RULES)}")


def spec(axes: Axes, rules: Mapping[str, Rule] = RULES) -> PartitionSpec:
    """The PartitionSpec of an array with logical `axes`, from `rules`, each mesh axis used once."""
    used: set[str] = set()
    parts: list[Any] = []
    for axis in axes:
        mesh_axes = tuple(m for m in mesh_axes_of(rules[axis] if axis is not None else None) if m not in used)
        used.update(mesh_axes)
        parts.append(mesh_axes if len(mesh_axes) > 1 else mesh_axes[0] if mesh_axes else None)
    return PartitionSpec(*parts)


def fitting_spec(mesh: AnyMesh, shape: Sequence[int], axes: Axes, rules: Mapping[str, Rule]) -> PartitionSpec:
    """The spec of `axes`, without entries whose mesh axes do not divide the dimension."""
    entries = zip(shape, spec(axes, rules), strict=True)
    return PartitionSpec(*(e if d % devices_along(mesh, e) == 0 else None for d, e in entries))


def devices_along(mesh: AnyMesh, entry: Any) -> int:
    """The number of devices over which a rule, or an entry of a PartitionSpec, splits a dimension."""
    return math.prod(mesh.shape[a] for a in mesh_axes_of(entry))
