"""What of a run is a number is no part of its program."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from lm.model.compute import Compute
from lm.model.transformer import Transformer
from lm.sharding.batches import place_batch
from lm.train.optim import Adafactor, AdamW, Lion, Muon, Optimizer
from lm.train.program import BLOCK, Program, learning_rates, tabulate_schedule
from lm.train.schedule import WSD, Constant, Cosine, InverseSquareRoot, Linear
from lm.train.step import build_step, state_shardings
from lm.tune.pretrain import Pretrain
from tests.model.reference import SIMPLE, trees_close
from tests.train.test_step import DROPOUT, LLAMA, batch, begun, learner_of, make_mesh


def lowered(first: Optimizer, other: Optimizer, steps: int, seed: int) -> str:
    """The program of a run with `other`, before it is compiled, where a run with `first` made it."""
    learner, mesh = learner_of(LLAMA), make_mesh({"data": 1}, jax.devices()[:1])
    state, _ = state_shardings(learner, other.build(steps, learner.axes()), mesh)
    step: Any = Program(learner, first, mesh).step(other, steps, seed)
    return str(step.lower(state, place_batch(batch(0), mesh)).as_text())


@pytest.mark.parametrize("one", [AdamW(), Muon(), Lion(), Adafactor(weight_decay=0.1)], ids=lambda o: type(o).__name__)
def test_numbers_schedules_lengths_and_seeds_are_data(one: Optimizer) -> None:
    other = replace(one, learning_rate=0.5, weight_decay=0.3, clip=2.0, schedule=WSD(warmup_steps=3000))
    text = lowered(one, one, 100, 0)
    assert lowered(one, other, BLOCK, 7) == lowered(other, other, BLOCK, 7) == text
    assert lowered(replace(one, weight_decay=0.0), replace(one, weight_decay=0.0), 100, 0) != text  # without a part


def test_a_program_is_the_step_of_its_run() -> None:
    """Its seed, its numbers and its schedule, none of which are those that it was made with."""
    learner, mesh = learner_of(DROPOUT), make_mesh({"data": 1}, jax.devices()[:1])
    optimizer = AdamW(learning_rate=0.02, b1=0.8, eps=1e-3, schedule=Linear(2, final=0.5))
    chain = optimizer.build(5, learner.axes())
    results = []
    for step in (
        Program(learner, AdamW(), mesh).step(optimizer, 5, 7),
        build_step(learner, chain, mesh, 7),
    ):
        state, losses = begun(learner, chain, mesh), []
        for n in range(4):
            state, metrics = step(state, place_batch(batch(n), mesh))
            losses.append(float(metrics["loss"]))
        results.append((losses, jax.device_get(state.params)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    trees_close(results[0][1], results[1][1], 1e-4)


@pytest.mark.parametrize("schedule", [Constant(), Cosine(3), WSD(5, decay_fraction=0.3), InverseSquareRoot(4)])
@pytest.mark.parametrize("steps", [20, BLOCK, BLOCK + 1])
def test_a_table_is_its_schedule(schedule: Any, steps: int) -> None:
    found = tabulate_schedule(AdamW(schedule=schedule), steps)
    assert len(found) % BLOCK == 0 and steps <= len(found) < steps + BLOCK
    wanted = np.asarray(schedule.build(1.0, steps)(np.arange(steps)))
    np.testing.assert_array_equal(found[:steps], wanted)
    assert set(found[steps:]) <= {found[steps - 1]}
    rates = learning_rates(AdamW(learning_rate=0.3, schedule=schedule), steps)
    np.testing.assert_allclose(rates[:steps], schedule.build(0.3, steps)(np.arange(steps)), rtol=2e-6, atol=1e-9)


def test_a_step_on_cpus_is_optimised_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")  # the tests' own say how much
    assert Compute().resolve("cpu").compiler_options == {"xla_backend_optimization_level": 1}
    assert not Compute().resolve("tpu").compiler_options and not Compute().resolve("gpu").compiler_options


def test_a_kernel_s_share_of_vector_memory_is_the_compiler_s_to_know() -> None:
    """Of a TPU's, whose option XLA does not know on CPUs, and refuses."""
    asked = Compute(scoped_vmem=64)
    assert [asked.resolve(kind).scoped_vmem for kind in ("tpu", "cpu", "gpu")] == [64, 0, 0]
    mesh, chain = make_mesh({"data": 1}, jax.devices()[:1]), AdamW()
    programs = []
    for compute in (SIMPLE, replace(SIMPLE, scoped_vmem=64)):
        learner = Pretrain().build(Transformer(LLAMA, compute))
        program = Program(learner, chain, mesh)
        state, _ = state_shardings(learner, chain.build(5, learner.axes()), mesh)
        programs.append((program, program.step(chain, 5, 0), state))
    shown = [program.fingerprint(step, 5, state, place_batch(batch(0), mesh)) for program, step, state in programs]
    assert shown[0] != shown[1]
    _, step, state = programs[1]
    with pytest.raises(Exception, match="xla_tpu_scoped_vmem_limit_kib"):
        step.lower(state, place_batch(batch(0), mesh)).compile()
