"""Analytic plans: no compiler, a millisecond, any chip; coarse, but with the same errors for all meshes it compares.

Matrix products run at EFFICIENCY of the peak. The collectives of each layer follow from the mesh: fsdp gathers weights
forward and backward and reduce-scatters their gradients (1910.02054), tensor parallelism all-reduces activations twice
a layer each way (1909.08053), context parallelism gathers keys and values, data and replica all-reduce gradients.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax

from lm.experiment import Experiment
from lm.model import count
from lm.model.compute import OUTER
from lm.model.config import ModelConfig, Slot
from lm.model.experts import Experts
from lm.model.parts import FeedForward
from lm.model.transformer import Transformer, key_shape
from lm.plan.plan import Collective, Plan, base_fields
from lm.plan.topology import Topology
from lm.tune.trains import All

EFFICIENCY = 0.88  # of the peak: Llama 2 and 3 and Mixtral compiled come to 0.81 to 0.94 (benchmarks/plans)
TENSOR = (
    0.055  # added time for each doubling of tensor: Llama 3 70B on 64 v5p compiled, about 0.05, 0.15, 0.2 at 2, 4, 8
)
SPLIT_STATE = ("fsdp", "context", "expert")  # the mesh axes that shard parameters, see lm/sharding/rules.py
BF16, F32 = 2, 4


@dataclass(frozen=True)
class Step:
    """One step of an experiment, resolved for the topology's devices (`Experiment.on`)."""

    experiment: Experiment
    topology: Topology

    def axis(self, *names: str) -> int:
        """The product of these mesh axes' sizes."""
        mesh = self.experiment.mesh or {"data": self.topology.devices}
        return math.prod(mesh.get(name, 1) for name in names)

    @cached_property
    def parameters(self) -> int:
        """Those of the model, and of adapters to it."""
        return count.parameters(self.experiment.model) + self.experiment.trains.added(self.experiment.model)

    @cached_property
    def trained(self) -> int:
        """Those that have gradients and optimizer state."""
        e = self.experiment
        frozen, sizes = e.trains.frozen(e.model), count.by_part(e.model)
        return self.parameters - sum(sizes[path] for path in frozen)

    @cached_property
    def layers(self) -> int:
        """Those of the model, and one of each module of multi-token prediction."""
        model = self.experiment.model
        return model.layers + (model.multi_token.depth if model.multi_token else 0)

    @property
    def shards(self) -> int:
        """The devices over which the state is sharded."""
        split = self.axis(*SPLIT_STATE, "tensor")
        return split * self.axis("data") if self.experiment.layout.zero_stage == 1 else split

    @property
    def tokens(self) -> float:
        """The tokens of a micro-batch whose residual stream is on one device."""
        return self.experiment.batch_tokens / self.experiment.accumulate * self.axis("tensor") / self.topology.devices

    @property
    def activations(self) -> dict[str, float]:
        """Elements per token and layer of each activation that may be kept for the backward pass, on one device; the
        mean over layers."""
        model, tensor = self.experiment.model, self.axis("tensor")

        def of(slot: Slot) -> dict[str, float]:
            inner = len(slot.ffn.inputs) * slot.ffn.active_mlp / tensor
            return slot.mixer.activations(tensor) | dict(out=model.width, mlp_in=inner, mlp_out=model.width)

        return _mean(model, of)

    def kept(self) -> tuple[str, ...]:
        """The names of the activations kept on the device for the backward pass."""
        compute = self.experiment.compute
        if compute.saved is not None:
            return compute.saved[0]
        return {"full": (), "dots": (*OUTER, "mlp_in")}.get(compute.remat, tuple(self.activations))

    def memory(self) -> dict[str, float]:
        """Bytes by use."""
        e, model = self.experiment, self.experiment.model
        state, moments = (size / self.shards for size in state_bytes(e))
        stream = model.width / (self.axis("tensor") if e.layout.sequence_parallel else 1)
        unnamed = 4 * stream + self.activations["mlp_in"] if e.compute.remat == "nothing" else 0  # norms, activations
        kept = (
            (stream + unnamed + sum(self.activations.get(name, 0.0) for name in self.kept()))
            * BF16
            * self.tokens
            * self.layers
        )
        layer = self.parameters / self.layers / self.axis("tensor")
        vocab = model.output.logit_count(model.vocab)
        head = vocab * model.width / self.axis("tensor")
        gathered = (2 * layer + head) * BF16 + layer * F32  # this layer, the next, the head; a gradient
        working = self.tokens * (2 * sum(self.activations.values()) + 4 * model.width) * BF16
        chunk = min(e.compute.loss_chunk or e.length, e.length) / e.length
        logits = 2 * self.tokens * chunk * vocab / self.axis("tensor") * F32
        arguments = state + (0 if e.layout.offload_optimizer else moments)
        gradients = self.trained * F32 / self.shards * (2 if e.accumulate > 1 else 1)
        temporaries = gradients + kept + max(working, logits) + gathered
        return dict(
            arguments=arguments, outputs=arguments, temporaries=temporaries, code=0.0, peak=arguments + temporaries
        )

    def flops(self) -> float:
        """Hardware FLOPs of a device: the model's, and those of the layers' forward pass that are recomputed."""
        e, model = self.experiment, self.experiment.model
        total = base_fields(e, self.topology)["model_flops"]
        whole = base_fields(replace(e, trains=All()), self.topology)["model_flops"]
        outputs = e.rows * e.lengths[1] / self.topology.devices
        products = ("query", "key", "value", "mlp_in") if e.compute.remat != "nothing" else ()
        recomputed: tuple[str, ...] = tuple(name for name in products if name not in self.kept())
        if e.compute.remat != "nothing" and ("attention" not in self.kept()):
            recomputed = (*recomputed, "attention")
        if "attention" in recomputed and "out" not in self.kept():
            recomputed = (*recomputed, "out")  # the feed-forward reads it; its own last product is not read again
        forward = self.forward
        fraction = sum(forward.get(name, 0.0) for name in recomputed) / sum(forward.values())
        outputs *= 1 + self.layers - model.layers
        return total + (whole - 6 * model.output.logit_count(model.vocab) * model.width * outputs) / 3 * fraction

    def rest(self) -> float:
        """Seconds bound by memory bandwidth: in each micro-batch every weight is gathered and read twice in bfloat16,
        and every gradient written and accumulated in float32; once, the optimizer updates its shard."""
        split = self.axis("tensor") * self.axis("expert")
        optimizer = 2 * (2 * self.trained * F32 + state_bytes(self.experiment)[1]) / self.shards
        moved = self.experiment.accumulate * (self.parameters * 6 * BF16 + self.trained * 3 * F32) / split + optimizer
        return moved / (self.topology.chip.hbm_bandwidth / self.topology.chip.devices)

    @property
    def forward(self) -> dict[str, float]:
        """FLOPs per token and layer of the forward pass, by product, and of attention; all devices together, the mean
        over layers."""
        model, length = self.experiment.model, self.experiment.length

        def of(slot: Slot) -> dict[str, float]:
            inner = 2.0 * model.width * slot.ffn.active_mlp
            products = slot.mixer.products(model.width) | dict(mlp_in=inner * len(slot.ffn.inputs), mlp_out=inner)
            return products | dict(attention=slot.mixer.flops(length))

        return _mean(model, of)

    def collectives(self) -> Iterator[Collective]:
        """The collectives of a step."""
        e, micro = self.experiment, self.experiment.accumulate
        layers, width = self.layers, e.model.width
        mine = self.parameters / self.axis("tensor") / self.axis("expert")
        fsdp, tensor, context = self.axis("fsdp", "context"), self.axis("tensor"), self.axis("context")
        if fsdp > 1 and e.layout.zero_stage == 3:
            yield self._over("all-gather", 2 * micro, mine * BF16, fsdp, layers)
            yield self._over("reduce-scatter", micro, mine * self.trained / self.parameters * F32, fsdp, layers)
        if tensor > 1:
            yield self._over("all-reduce", 4 * micro * layers, 2 * self.tokens * width * BF16, tensor)
        if context > 1:
            keys = self.tokens * context * (self.activations["key"] + self.activations["value"]) * BF16
            yield self._over("all-gather", 3 * micro * layers, keys, context)
        if (routed := sum(isinstance(slot.ffn, Experts) for slot in e.model.by_layer)) and self.axis("expert") > 1:
            sent = self.tokens * max(_top_k(slot.ffn) for slot in e.model.by_layer) * width * BF16
            yield self._over("all-to-all", 4 * micro * routed, sent, self.axis("expert"))
        for axis, network in (("data", "ici"), ("replica", "dcn" if self.topology.slices > 1 else "ici")):
            if self.axis(axis) > 1:
                yield self._over("all-reduce", 1, 2 * self.trained * F32 / self.shards, self.axis(axis), 1, network)

    def _over(
        self, kind: str, count: float, size: float, devices: int, pieces: int = 1, network: str = "ici"
    ) -> Collective:
        speed = self.topology.dcn if network == "dcn" else self.topology.network
        moved = count * size * (devices - 1) / devices
        return Collective(kind, network, True, count * pieces, moved, moved / speed)


def _top_k(ffn: FeedForward) -> int:
    """The experts of each token; 1 for a dense feed-forward."""
    return ffn.top_k if isinstance(ffn, Experts) else 1


def _mean(model: ModelConfig, of: Callable[[Slot], dict[str, float]]) -> dict[str, float]:
    """The mean over layers of the values of `of` by name; 0 where a layer lacks the name."""
    slots = [(of(slot), len(slot.layers)) for slot in model.slots.values()]
    names = dict.fromkeys(name for values, _ in slots for name in values)
    return {name: sum(values.get(name, 0.0) * n for values, n in slots) / model.layers for name in names}


def plan(experiment: Experiment, topology: Topology) -> Plan:
    """The analytic plan of a step of `experiment`, which is resolved for the topology's devices."""
    step = Step(experiment, topology)
    collectives, flops = tuple(step.collectives()), step.flops()
    return Plan(
        **base_fields(experiment, topology),
        source="analytic",
        memory=step.memory(),
        matrix_flops=flops,
        kernel_flops=0.0,
        collectives=collectives,
        parts=dict(
            matrix=flops / topology.flops / EFFICIENCY * (1 + TENSOR * math.log2(step.axis("tensor"))),
            kernels=0.0,
            rest=step.rest(),
            overlapped=sum(c.seconds for c in collectives),
            exposed=0.0,
        ),
        unknown={},
    )


_states: dict[Any, tuple[float, float]] = {}


def state_bytes(experiment: Experiment) -> tuple[float, float]:
    """Bytes of the parameters, frozen ones included, and of the optimizer's state, on all devices together."""
    e = experiment
    key = repr(e.optimizer), e.model, e.trains, e.method
    if key not in _states:
        learner = e.build(Transformer(e.model, e.compute.resolve("cpu")))
        params, frozen = jax.eval_shape(learner.init, key_shape())
        state = jax.eval_shape(e.optimizer.build(e.steps, learner.axes()).init, params)
        _states[key] = float(count.tree_bytes((params, frozen))), float(count.tree_bytes(state))
    return _states[key]
