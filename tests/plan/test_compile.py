"""The compiler for TPUs, where it is installed; and what is said where it is not."""

import importlib.metadata
import importlib.util

import pytest

from experiments.llama import experiment as small
from lm.plan import compile as compiling
from lm.plan.cost import CostAnalysis
from lm.plan.hlo import parse_program
from lm.plan.plan import from_compiler
from lm.plan.topology import parse_topology

V5E = parse_topology("v5e:2x2")


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install -e ".[tpu]"'
)
def test_a_step_compiles_for_chips_that_are_not_here() -> None:
    model = dict(layers=2, width=256, context=512)
    e = small.replace(model=model, seq_len=512, rows_per_device=1.0, mesh=dict(fsdp=-1)).on(4)
    memory, program = compiling.compile_step(e, V5E)
    plan = from_compiler(e, V5E, memory, CostAnalysis(parse_program(program), V5E).total())
    assert plan.fits and 0 < plan.memory["peak"] < 2e9
    assert 0.7 < (plan.matrix_flops + plan.kernel_flops) / plan.model_flops < 1.5
    assert plan.seconds[0] > 0 and plan.collective_bytes > 0 and not plan.unknown


def test_without_the_compiler_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(compiling.NoCompiler, match=r'pip install -e "\.\[tpu\]"'):
        compiling.compile_step(small, V5E)


def test_how_a_compiler_s_end_is_told() -> None:
    killed = compiling._failure(V5E, -6, "Check failed: a != b\n")
    assert str(killed) == "v5e:2x2: the compiler was killed by signal 6: Check failed: a != b"
    large = compiling._failure(V5E, 1, "Traceback\njax.errors.X: RESOURCE_EXHAUSTED: Used 2G of 1G hbm.\nmore\n")
    assert isinstance(large, compiling.OutOfMemory) and str(large).startswith("RESOURCE_EXHAUSTED: Used 2G")
    kernel = compiling._failure(V5E, 1, "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\n")
    assert not isinstance(kernel, compiling.OutOfMemory) and "lower compute.block" in str(kernel)
