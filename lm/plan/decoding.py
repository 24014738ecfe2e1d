"""Plans of decoding: a step of a batch, and the prefill of prompts, as lm/decode/generate.py runs them over a mesh.

Parameters and cache are sharded by lm/sharding/rules.py, the cache is donated from step to step, and each step counts
the whole of it: rows at their full context.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from lm.decode.generate import Decoding, extend, prefill
from lm.decode.layout import cache_shardings, layout_for
from lm.decode.sampling import Sampling
from lm.legal import sizes
from lm.model import count
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.experts import Experts
from lm.model.inputs import Inputs
from lm.model.transformer import Params, Transformer
from lm.plan.advice import excess
from lm.plan.analytic import EFFICIENCY
from lm.plan.compile import OutOfMemory, compile_program
from lm.plan.cost import CostAnalysis
from lm.plan.hlo import parse_program
from lm.plan.plan import Collective, Plan, attended_fraction, compiled_plan
from lm.plan.topology import Topology
from lm.sharding.mesh import row_devices
from lm.sharding.rules import MESH_AXES, AnyMesh, DecodingLayout, Layout, devices_along, fitting_spec
from lm.sharding.shardings import NamedSharding, shardings
from lm.sharding.tracing import use_mesh

WEIGHTS = ("bfloat16", "float32")
BF16 = 2
GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Serving:
    """A model that decodes.

    Args:
      name: of the model.
      model: its config.
      mesh: axis -> devices.
      batch: rows that are decoded at once.
      context: tokens that the cache of each has room for.
      weights: the dtype of the parameters.
      compute: how it is computed; activations and cache are of its dtype.
    """

    name: str
    model: ModelConfig
    mesh: Mapping[str, int]
    batch: int
    context: int
    weights: str = "bfloat16"
    compute: Compute = Compute()

    @property
    def transformer(self) -> Transformer:
        """The model as an accelerator decodes it: with layers apart where the parameters are copied for it."""
        compute = replace(self.compute, remat="nothing", keep=(), offload=(), unroll=int(self.weights == "float32"))
        return Transformer(self.model, compute.resolve("tpu"))

    @property
    def replicated(self) -> tuple[str, ...]:
        """The logical axes that are not sharded, since they were published in sizes that do not divide."""
        return ("vocab",) if self.model.vocab % self.mesh.get("tensor", 1) else ()

    def parameters(self, mesh: AnyMesh) -> Params:
        """The tree of parameters as ShapeDtypeStructs with shardings. Raises ValueError where a dimension does not
        divide over the mesh."""
        shapes = self.transformer.shapes()
        placed = shardings(shapes, self.transformer.axes(), mesh, Layout(replicated=self.replicated).rules)
        dtype = jnp.dtype(self.weights)
        params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, placed)
        if self.weights == "float32":
            return params

        def of_layer(x: Any) -> Any:
            home = NamedSharding(mesh, PartitionSpec(*x.sharding.spec[1:]))
            return jax.ShapeDtypeStruct(x.shape[1:], dtype, sharding=home)

        layers = {
            name: [jax.tree.map(of_layer, stack)] * len(self.model.slots[name].layers)
            for name, stack in params["layers"].items()
        }
        return {**params, "layers": layers}

    def decoding(self, mesh: AnyMesh) -> Decoding:
        """A batch under way, as ShapeDtypeStructs with shardings."""
        B, model = self.batch, self.transformer

        def begun() -> Decoding:
            cache = replace(model.empty_cache(B, self.context), length=jnp.zeros(B, jnp.int32))
            keys = jax.random.split(jax.random.key(0), B)
            return Decoding(cache, jnp.zeros(B, jnp.int32), jnp.zeros(B, bool), keys)

        shapes = jax.eval_shape(begun)
        rows = NamedSharding(mesh, fitting_spec(mesh, (B,), ("cache_batch",), DecodingLayout().rules))
        placed = jax.tree.map(lambda _: rows, shapes)
        placed = replace(placed, cache=cache_shardings(shapes.cache, mesh, DecodingLayout().rules))
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)

    @property
    def abstract_mesh(self) -> AbstractMesh:
        """The mesh without devices."""
        return AbstractMesh(tuple(self.mesh.get(axis, 1) for axis in MESH_AXES), MESH_AXES)

    @property
    def prompts(self) -> int:
        """The rows of a prefill: one, or as many as the mesh splits a batch into."""
        rows = devices_along(self.abstract_mesh, DecodingLayout().rules["batch"])
        if isinstance(layout_for(self.model.width, rows * self.context), Layout):
            rows = row_devices(self.abstract_mesh)
        return min(self.batch, rows)

    def layout(self, tokens: int) -> Layout | DecodingLayout:
        """That of a program of so many tokens."""
        layout = Layout(replicated=self.replicated)
        return layout if isinstance(layout_for(self.model.width, tokens), Layout) else DecodingLayout(layout)


def default_mesh(model: ModelConfig, devices: int, slices: int = 1) -> dict[str, int]:
    """A mesh to decode on: as much tensor parallelism as heads and feed-forward divide into, then expert and fsdp,
    which split what each step reads; replicas across slices."""
    by_axis: dict[str, list[int]] = {}
    for axis, size in sizes(model).values():
        by_axis.setdefault(axis, []).append(size)
    left = devices // slices
    tensor = math.gcd(left, *(size for axis in ("heads", "kv_heads", "mlp") for size in by_axis.get(axis, [])))
    expert = math.gcd(left // tensor, *by_axis["experts"]) if "experts" in by_axis else 1
    fsdp = math.gcd(left // tensor // expert, *by_axis["embed"], *by_axis.get("rank", []))
    mesh = dict(replica=slices, data=left // tensor // expert // fsdp, fsdp=fsdp, expert=expert, tensor=tensor)
    return {axis: size for axis, size in mesh.items() if size > 1} or {"data": 1}


def check(serving: Serving) -> None:
    """Raise ValueError for a model that does not decode, or not so far, and for what does not divide."""
    cfg = serving.model
    if cfg.has_encoder:
        raise ValueError(f"{serving.name} reads an encoder: a plan of decoding is of a decoder alone")
    cfg.check_generates()
    if serving.batch < 1 or serving.context < 1:
        raise ValueError(f"--batch {serving.batch} --context {serving.context}: expected at least 1 of each")
    if serving.context > cfg.context:
        raise ValueError(f"--context {serving.context}: {serving.name} has a context of {cfg.context} tokens")
    if serving.weights not in WEIGHTS:
        raise ValueError(f"--weights {serving.weights}: expected {' or '.join(WEIGHTS)}; int8 is for one CPU alone")
    if serving.mesh.get("context", 1) > 1:
        raise ValueError(f"mesh axis context={serving.mesh['context']} splits rows, and a step reads one token of each")
    if serving.mesh.get("expert", 1) > 1 and not any(isinstance(s.ffn, Experts) for s in cfg.slots.values()):
        raise ValueError(f"mesh axis expert={serving.mesh['expert']}: this model has no experts, use fsdp or tensor")
    serving.parameters(serving.abstract_mesh)


# ---------------------------------------------------------------- what is compiled


def lower_step(serving: Serving, mesh: Mesh) -> Any:
    """One more token of each row, lowered for `mesh`."""
    with use_mesh(mesh, serving.layout(serving.batch)):
        params, state = serving.parameters(mesh), serving.decoding(mesh)
        return extend.lower(serving.transformer, params, state, 1, GREEDY, ())


def lower_prefill(serving: Serving, mesh: Mesh) -> Any:
    """The reading of prompts of the whole context, lowered for `mesh`."""
    shape = serving.prompts, serving.context
    rows = NamedSharding(mesh, fitting_spec(mesh, shape, ("batch", None), serving.layout(math.prod(shape)).rules))
    tokens: Any = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
    inputs = Inputs(tokens, segments=tokens)
    key = jax.eval_shape(jax.random.key, 0)
    with use_mesh(mesh, serving.layout(math.prod(shape))):
        return prefill.lower(serving.transformer, serving.parameters(mesh), inputs, key, serving.context, GREEDY)


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True)
class DecodingPlan:
    """What decoding costs on each device of a topology.

    Args:
      batch, context, weights: as in Serving.
      prompts: rows of the prefill.
      chips: of the topology.
      parameters, cache: bytes of each.
      read: bytes of parameters and cache that a step cannot but read.
      moved: bytes that it reads and writes.
      bandwidth: bytes/s of the memory.
      step, prefill: plans of the two programs.
    """

    batch: int
    context: int
    weights: str
    prompts: int
    chips: int
    parameters: float
    cache: float
    read: float
    moved: float
    bandwidth: float
    step: Plan
    prefill: Plan

    @property
    def peak(self) -> float:
        """The most bytes in use at once, with the cache of the batch while a prompt is read."""
        return max(self.step.memory["peak"], self.prefill.memory["peak"] + self.cache)

    @property
    def fits(self) -> bool:
        return self.peak <= self.step.hbm

    @property
    def tokens_per_second(self) -> float:
        """Of all rows and devices, at the slower end of the step's seconds."""
        return self.step.tokens_per_second

    @property
    def utilisation(self) -> float:
        """The share of a step in which the memory cannot but be read (model bandwidth utilisation)."""
        return self.read / self.bandwidth / self.step.seconds[1]

    @property
    def bottleneck(self) -> str:
        """What bounds a step: memory bandwidth, compute, or network."""
        parts = self.step.parts
        bounds = {
            "memory bandwidth": self.read / self.bandwidth,
            "compute": (self.step.matrix_flops + self.step.kernel_flops) / self.step.peak_flops,
            "network": parts["overlapped"] + parts["exposed"],
        }
        return max(bounds, key=lambda name: bounds[name])

    def as_data(self) -> dict[str, Any]:
        """As JSON data, with the derived properties."""
        plans = dict(step=self.step.as_data(), prefill=self.prefill.as_data())
        derived = dict(
            peak=self.peak,
            fits=self.fits,
            tokens_per_second=self.tokens_per_second,
            tokens_per_second_per_chip=self.tokens_per_second / self.chips,
            utilisation=self.utilisation,
            bottleneck=self.bottleneck,
        )
        return {**vars(self), **derived, **plans}


def device_bytes(tree: Any) -> float:
    """Bytes on one device of a tree of ShapeDtypeStructs with shardings."""
    leaves = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))


def plan(serving: Serving, topology: Topology, analytic: bool) -> tuple[DecodingPlan, str]:
    """The plan, and the compiled step as text ("" for an analytic plan). Raises ValueError where it does not fit."""
    params, state = serving.parameters(serving.abstract_mesh), serving.decoding(serving.abstract_mesh)
    held, cache = device_bytes(params), device_bytes(state.cache)
    if held + cache > topology.hbm:
        raise ValueError(too_large(serving, topology, held, cache))
    table = 0.0 if serving.model.tied else device_bytes(params["stem"]["tokens"])
    sized: dict[str, Any] = dict(
        batch=serving.batch,
        context=serving.context,
        weights=serving.weights,
        prompts=serving.prompts,
        chips=topology.chips,
        parameters=held,
        cache=cache,
        read=held - table + cache,
        bandwidth=bandwidth(topology),
    )
    forward = count.flops_per_row(serving.model, serving.context) / 3
    step = base_fields(serving, topology, serving.batch, forward * serving.batch / serving.context)
    read = base_fields(serving, topology, serving.prompts * serving.context, forward * serving.prompts)
    if analytic:
        prompt = cache * serving.prompts / serving.batch
        plans = [arithmetic(serving, topology, step, held, cache), arithmetic(serving, topology, read, held, prompt)]
        return DecodingPlan(**sized, moved=sized["read"], step=plans[0], prefill=plans[1]), ""
    try:
        first, moved, program = compiled(serving, topology, lower_step, step)
        second, *_ = compiled(serving, topology, lower_prefill, read)
    except OutOfMemory as error:
        raise ValueError(f"{too_large(serving, topology, held, cache)}: {excess(str(error))}") from None
    return DecodingPlan(**sized, moved=moved, step=first, prefill=second), program


def too_large(serving: Serving, topology: Topology, parameters: float, cache: float) -> str:
    """That it does not fit, and why."""
    return (
        f"{serving.name} does not fit {topology.name}: a device has {topology.hbm / 1e9:.1f} GB, its {serving.weights} "
        f"parameters take {parameters / 1e9:.1f} and the cache of {serving.batch} rows of {serving.context} tokens "
        f"{cache / 1e9:.1f}, and a step needs more besides: take more chips, fewer rows, or a shorter context"
    )


def base_fields(serving: Serving, topology: Topology, tokens: int, flops: float) -> dict[str, Any]:
    """The fields of a plan that do not depend on its source, of a program with these tokens and model FLOPs in all."""
    return dict(
        name=serving.name,
        topology=topology.name,
        devices=topology.devices,
        mesh=dict(serving.mesh),
        remat="nothing",
        tokens=tokens,
        hbm=topology.hbm,
        model_flops=flops / topology.devices,
        peak_flops=topology.flops,
    )


def compiled(serving: Serving, topology: Topology, lower: Any, fields: dict[str, Any]) -> tuple[Plan, float, str]:
    """The plan of a program as it compiles, the bytes that it moves, and its text. It waits for what is brought nearer
    in the background where that takes longer than all that is computed meanwhile."""
    memory, program = compile_program(lower, serving, serving.mesh, topology)
    attended = attended_fraction(serving.model, serving.context)
    cost = CostAnalysis(parse_program(program), topology, attended).total()
    found = compiled_plan(fields, memory, cost)
    waiting = max(0.0, cost.moved / bandwidth(topology) - cost.seconds)
    return replace(found, parts=found.parts | dict(waiting=waiting)), cost.moved, program


def bandwidth(topology: Topology) -> float:
    """Bytes/s of a device's memory."""
    return topology.chip.hbm_bandwidth / topology.chip.devices


def arithmetic(serving: Serving, topology: Topology, fields: dict[str, Any], parameters: float, cache: float) -> Plan:
    """The analytic plan of a program.

    Args:
      serving: what is served.
      topology: the devices.
      fields: those of the program that do not depend on the source.
      parameters: bytes of them on a device, each read once.
      cache: bytes of it on a device that are read or written.
    """
    model, mesh, tokens = serving.model, serving.mesh, fields["tokens"]
    matrix = max(fields["model_flops"] / topology.flops / EFFICIENCY, parameters / bandwidth(topology))
    collectives = []
    for axis, per_layer in (("tensor", 2), ("fsdp", 3)):
        if (n := mesh.get(axis, 1)) > 1:
            moved = 2 * per_layer * model.layers * tokens * model.width * BF16 * (n - 1) / n
            collectives.append(
                Collective("all-reduce", "ici", True, per_layer * model.layers, moved, moved / topology.network)
            )
    memory = dict(arguments=parameters + cache, outputs=cache, temporaries=0.0, code=0.0, peak=parameters + cache)
    return Plan(
        **fields,
        source="analytic",
        memory=memory,
        matrix_flops=fields["model_flops"],
        kernel_flops=0.0,
        collectives=tuple(collectives),
        parts=dict(
            matrix=matrix,
            kernels=0.0,
            rest=cache / bandwidth(topology),
            overlapped=sum(c.seconds for c in collectives),
            exposed=0.0,
        ),
        unknown={},
    )
