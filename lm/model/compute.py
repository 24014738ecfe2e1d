"""How a transformer is computed: a frozen value apart from what it is, so that one checkpoint runs everywhere."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import jax

from lm.bounds import Count, Natural, Sentinel, check, whole
from lm.machine.hardware import compile_sooner
from lm.value import suggest

REMAT = ("nothing", "dots", "minimal", "offload", "full", "names")
# what a policy may name, in the order of a layer: the products with the weights, and `attention`, what the attention's
# kernel needs to go backward without going forward again
NAMES = ("query", "key", "value", "attention", "out", "mlp_in", "mlp_out")
OUTER = ("query", "key", "value", "out", "mlp_out")  # all products but the feed-forward's inner ones
BACKENDS = ("auto", "cpu", "gpu", "tpu")
ATTENTION = ("plain", "blocked", "flash", "native", "splash", "cudnn")  # the kernels of lm/model/kernels.py


@dataclass(frozen=True)
class Compute:
    """How a model is computed.

    - `dtype` of activations, `matmul` of the operands of matrix products (sums are always float32): float32 or
      bfloat16. On CPUs with bfloat16 units the fast pair is float32 activations with bfloat16 products; on TPU and GPU
      both are bfloat16.
    - `attention`: the kernel, one of ATTENTION: all logits at once (plain), by rows of `block` queries (blocked; flash
      from 64 rows on), in memory that grows with the length alone (flash, blocks of `block`), by a kernel in C on one
      CPU, in float32, up to those 64 rows and where only the mask shapes the logits (native; as blocked elsewhere), or
      the vendor's: splash on TPU (blocks of 512, or of `block` where that is more), cudnn on GPU.
    - `flat`: products on [B*T, D] with gradients written for the CPU's matrix kernels, or plain einsums that keep B and
      T apart (what a mesh wants).
    - `unroll`: layers a scan step, 0 for all. Unrolled layers compile longer; on CPUs they run faster.
    - `remat`: what the backward pass computes again: nothing, all but matrix products (dots), all but the products at
      the ends of each sublayer (minimal: OUTER), the same with what is kept in the host's memory (offload), whole
      layers (full), or all but the activations that `keep` and `offload` name (names, of NAMES).
    - `keep`, `offload`: with remat="names", the activations that stay on the device, and those that wait on the host.
    - `loss_chunk`: tokens of one sequence whose logits exist at a time, 0 for all.
    - `devices`: host devices to split a CPU into, each with its share of the cores; 0 leaves JAX's one.
    - `gradients`: in what a mesh's devices exchange the gradients of weights, whose own parts are summed in float32;
      auto: the dtype of activations.
    - `scoped_vmem`: MiB of a TPU's vector memory that one kernel of a step may take, 0 for the compiler's own (16 on
      v5e and v5p, 32 on v6e). There 64 lets products wait for memory less, by the compiler's estimates, and a step
      compiles three times as long.
    - `backend`: the devices that the program is compiled for: cpu, gpu or tpu.

    "auto" and -1 mean what measured fastest on the device in hand: see `resolve` and benchmarks/RESULTS.md."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("dtype", "matmul", "gradients"), ("auto", "float32", "bfloat16")),
        "attention": ("auto", *ATTENTION),
        "flat": ("auto", "yes", "no"),
        "remat": REMAT,
        "backend": BACKENDS,
    }

    dtype: str = "auto"
    matmul: str = "auto"
    attention: str = "auto"
    block: Count = 128
    flat: str = "auto"
    unroll: Annotated[int, whole(-1), Sentinel(0, "all"), Sentinel(-1, "what measured fastest")] = -1
    remat: str = "nothing"
    keep: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()
    loss_chunk: Annotated[Natural, Sentinel(0, "all")] = 512
    devices: Annotated[int, whole(0, 1024), Sentinel(0, "JAX's one")] = 0
    gradients: str = "auto"
    scoped_vmem: Annotated[int, whole(0, 96), Sentinel(0, "the compiler's own")] = 0
    backend: str = "auto"

    def __post_init__(self) -> None:
        check(self, "compute")
        for name, known in self.choices.items():
            if (chosen := getattr(self, name)) not in known:
                *others, last = known
                expected = f"expected {', '.join(others)} or {last}" if len(known) == 3 else suggest(chosen, known)
                raise ValueError(f"compute.{name}={chosen!r}: {expected}")
        if (self.keep or self.offload) and self.remat != "names":
            raise ValueError(f"compute.keep and compute.offload are for remat='names', and remat={self.remat!r}")
        for name in (*self.keep, *self.offload):
            if name not in NAMES:
                raise ValueError(f"compute.keep and compute.offload: unknown activation {suggest(name, NAMES)}")
        if both := set(self.keep) & set(self.offload):
            raise ValueError(f"compute.keep and compute.offload both name {', '.join(sorted(both))}: choose one")

    @property
    def exchanged(self) -> str:
        """The dtype in which devices exchange gradients."""
        return self.dtype if self.gradients == "auto" else self.gradients

    @property
    def compiler_options(self) -> dict[str, Any]:
        """XLA's options for a training step."""
        memory = {"xla_tpu_scoped_vmem_limit_kib": str(1024 * self.scoped_vmem)} if self.scoped_vmem else {}
        return memory | (compile_sooner() if self.backend == "cpu" else {})

    @property
    def saved(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """The activations that the backward pass finds on the device, and those that it finds on the host; None where
        `remat` does not go by names."""
        products = (*OUTER, "mlp_in")  # by name: a product with gradients of its own is no dot to a policy
        named = {"dots": (products, ()), "minimal": (OUTER, ()), "offload": ((), OUTER)}
        return {**named, "names": (self.keep, self.offload)}.get(self.remat)

    def resolve(self, backend: str | None = None) -> "Compute":
        """This value with every "auto" replaced for `backend` (cpu, gpu or tpu; default: JAX's)."""
        backend = self.backend if self.backend != "auto" else backend or jax.default_backend()
        cpu = backend == "cpu"
        fast = "bfloat16" if not cpu or _cpu_has_bfloat16() else "float32"
        best = dict(
            backend=backend,
            dtype="float32" if cpu else "bfloat16",
            matmul=fast,
            attention={"cpu": "native", "tpu": "splash"}.get(backend, "plain"),
            flat="yes" if cpu else "no",
        )
        layers = (
            0 if cpu and self.remat == "nothing" else 1
        )  # unrolled, XLA's CPU compiler undoes the rematerialisation
        chosen: dict[str, Any] = {k: v for k, v in best.items() if getattr(self, k) == "auto"}
        chosen["scoped_vmem"] = self.scoped_vmem if backend == "tpu" else 0  # what others do not have
        return replace(self, **chosen, unroll=layers if self.unroll < 0 else self.unroll)


def _cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX); elsewhere float32 products are faster."""
    try:
        with open("/proc/cpuinfo") as info:
            return "avx512_bf16" in info.read() and os.name == "posix"
    except OSError:
        return False
