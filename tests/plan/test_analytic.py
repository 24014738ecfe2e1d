"""Plans by arithmetic against counts, an experiment on many devices, and the search."""

from dataclasses import replace

import pytest

from experiments.llama import experiment as small
from experiments.llama import llama3_8b, llama3_70b
from experiments.mixtral import mixtral_8x7b
from lm import value
from lm.experiment import Experiment, published
from lm.model import count
from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.families import deepseek_v2
from lm.plan import analytic
from lm.plan.advice import advice, excess
from lm.plan.plan import Plan
from lm.plan.search import candidates, more_vmem, search
from lm.plan.topology import parse_topology
from lm.sharding.rules import Layout
from lm.tune.lora import LoRA

V5P = parse_topology("v5p:4x4x4")


def on(model: ModelConfig, topology: str = "v5p:4x4x4", **changes: object) -> Experiment:
    return published(small, "published", model).replace(changes).on(parse_topology(topology).devices)


def test_a_published_size_takes_what_devices_there_are() -> None:
    e = published(small, "llama3_8b", llama3_8b)
    assert (e.on(64).rows, e.on(64).mesh, e.on(8).rows) == (64, {"fsdp": 64}, 8)
    assert e.replace(rows_per_device=0.5, mesh=dict(fsdp=-1, tensor=2)).on(8).mesh == {"fsdp": 4, "tensor": 2}
    assert small.on(8) == small
    with pytest.raises(ValueError, match="rows_per_device=0.3 is 2.4 rows on 8 devices"):
        e.replace(rows_per_device=0.3).on(8)
    with pytest.raises(ValueError, match="leaves no whole number of 8 devices to fsdp"):
        e.replace(mesh=dict(fsdp=-1, tensor=3)).on(8)


def test_flops_are_those_of_the_count() -> None:
    e = on(llama3_8b)
    plan = analytic.plan(e, V5P)
    assert plan.model_flops == count.flops_per_token(llama3_8b, 8192) * 8192
    nothing = analytic.plan(e.replace(compute=dict(remat="nothing")), V5P)
    assert nothing.matrix_flops == nothing.model_flops
    assert 1.25 < plan.matrix_flops / plan.model_flops < 4 / 3  # full remat: most of another forward pass


def test_latent_attention_is_planned() -> None:
    lite = deepseek_v2(vocab=102400, layers=27, width=2048, heads=16, mlp=10944, context=4096)
    e = on(lite)
    plan = analytic.plan(e, V5P)
    assert plan.model_flops == count.flops_per_token(lite, e.length) * e.length
    layer = sum(lite.attention.products(2048).values()) + lite.attention.flops(4096) + 2 * 2 * 2048 * 10944
    assert plan.matrix_flops - plan.model_flops == pytest.approx(4096 * 27 * layer)  # full: all but the last product
    assert plan.memory["arguments"] == pytest.approx(12 * count.parameters(lite) / 64, rel=1e-3)
    low = on(replace(lite, attention=replace(lite.attention, q_lora_rank=1536)))
    keep = [
        analytic.plan(x.replace(compute=dict(remat="names", keep=("query",))), V5P).memory["peak"] for x in (e, low)
    ]
    assert keep[1] > keep[0]


def test_the_state_is_split_and_the_weights_travel() -> None:
    plan, parameters = analytic.plan(on(llama3_8b), V5P), count.parameters(llama3_8b)
    assert plan.memory["arguments"] == pytest.approx(12 * parameters / 64, rel=1e-3)
    # gathered twice in bfloat16, gradients in float32, all but a device's own part
    assert plan.collective_bytes == pytest.approx((2 * 2 * parameters + 4 * parameters) * 63 / 64)
    wide = analytic.plan(on(llama3_8b, mesh=dict(fsdp=16, tensor=4)), V5P)
    assert {c.kind for c in wide.collectives} == {"all-gather", "reduce-scatter", "all-reduce"}
    assert wide.memory["arguments"] == plan.memory["arguments"]


def test_less_is_kept_and_more_is_done_again() -> None:
    plans = [analytic.plan(on(llama3_8b, compute=dict(remat=r)), V5P) for r in ("nothing", "dots", "minimal", "full")]
    peaks, flops = [p.memory["peak"] for p in plans], [p.matrix_flops for p in plans]
    assert peaks == sorted(peaks, reverse=True) and flops == sorted(flops)


def test_gpus_are_planned_by_arithmetic() -> None:
    plan = analytic.plan(on(llama3_8b, "h100:64"), parse_topology("h100:64"))
    assert 0.1 < plan.mfu < 0.75 and plan.as_data()["source"] == "analytic"


def test_the_search_ranks_what_may_fit() -> None:
    found = candidates(on(mixtral_8x7b, "v5p:4x4x8"), parse_topology("v5p:4x4x8"))
    seconds = [sum(c.analytic.seconds) for c in found]
    assert seconds == sorted(seconds) and any(c.experiment.mesh.get("expert") == 8 for c in found)
    assert found[0].settings.startswith("mesh.") and found[0].paste.startswith("mesh=dict(")
    with pytest.raises(ValueError, match="fits v5e:2x2 in no mesh"):
        search(on(llama3_70b, "v5e:2x2"), parse_topology("v5e:2x2"), None)


def test_what_fits_comes_first() -> None:
    """Without a compiler too, where candidates within SLACK of the memory are kept, and some of them are faster."""
    e = on(llama3_70b)
    found = search(e, V5P, None)
    fits = [c.fits for c in found]
    assert fits == sorted(fits, reverse=True) and fits[0] and not fits[-1]
    assert sum(found[0].analytic.seconds) > min(sum(c.analytic.seconds) for c in found if not c.fits)
    assert sum(found[0].analytic.seconds) == min(sum(c.analytic.seconds) for c in found if c.fits)


def test_what_the_compiler_refuses_is_not_said_to_fit() -> None:
    def compile_one(e: Experiment) -> Plan:
        raise ValueError("does not fit")

    found = search(on(llama3_8b), V5P, compile_one, most=2, report=lambda _: None)
    refused = [i for i, c in enumerate(found) if c.failure]
    assert refused and min(refused) >= sum(c.fits for c in found) > 0
    assert all(found[i].analytic.fits for i in refused)  # which arithmetic alone would paste


def test_nothing_fits_is_said_only_where_the_search_says_so_too() -> None:
    """Where the usual changes do not do, the best of the search is advised."""
    v5e = parse_topology("v5e:16x16")
    e = on(llama3_70b, "v5e:16x16")
    (best, *_) = [c for c in search(e, v5e, None) if c.fits]
    assert advice(e, v5e) == f"what would fit, by arithmetic: {best.settings}"


def test_what_a_search_prints_can_be_set_and_pasted() -> None:
    found = candidates(on(llama3_8b), V5P)
    kinds = {(str(c.experiment.compute), tuple(c.experiment.mesh)): c for c in found}
    assert len(kinds) >= 14 and any("tensor" in c.experiment.mesh for c in kinds.values())
    for candidate in kinds.values():
        e, meant = on(llama3_8b), candidate.experiment
        for setting in candidate.settings.split():
            e = value.parse(e, setting)
        for name in ("mesh", "accumulate", "compute", "layout"):
            assert getattr(e, name) == getattr(meant, name)
        pasted = eval(f"dict({candidate.paste})", {"Compute": Compute, "Layout": Layout})
        assert pasted["mesh"] == e.mesh and pasted["compute"].keep == e.compute.keep
        assert pasted.get("layout", Layout()) == e.layout


def test_a_search_gives_up_what_keeps_the_same_and_tries_what_keeps_else() -> None:
    asked: list[Experiment] = []

    def compile_one(e: Experiment) -> Plan:
        asked.append(e)
        if e.compute.remat == "nothing":
            raise ValueError("does not fit")
        return replace(analytic.plan(e, V5P), source="compiled")

    search(on(llama3_8b), V5P, compile_one, most=3, report=lambda _: None)
    fitting = [(e.compute.remat, e.compute.keep) for e in asked if e.compute.remat != "nothing"]
    assert len(set(fitting)) == 3  # and blocks of the best
    needs = [analytic.plan(e, V5P).memory["peak"] for e in asked if e.compute.remat == "nothing"]
    assert needs == sorted(needs, reverse=True) and len(set(needs)) == len(needs)


def test_the_compiler_has_the_last_word() -> None:
    asked: list[Experiment] = []

    def compile_one(e: Experiment) -> Plan:
        asked.append(e)
        if len(asked) == 1:
            raise ValueError("does not fit")
        guess = analytic.plan(e, V5P)
        return replace(guess, source="compiled", parts=guess.parts | {"matrix": 10.0 - len(asked)})

    found = search(on(llama3_8b), V5P, compile_one, most=2, report=lambda _: None)
    assert found[0].best.source == "compiled" and found[0].experiment in asked
    assert any(c.failure == "does not fit" and not c.compiled for c in found)


@pytest.mark.parametrize(("kind", "asked_for"), [("v5p:4x4x4", [64]), ("v6e:16x16", [])])
def test_what_only_the_compiler_knows_is_tried_with_the_best(kind: str, asked_for: list[int]) -> None:
    """Attention blocks, and with the better of them more vector memory, where a chip has more."""
    asked: list[Compute] = []

    def compile_one(e: Experiment) -> Plan:
        asked.append(e.compute)
        seconds = 2.0 - (e.compute.block == 1024) - e.compute.scoped_vmem / 100
        guess = analytic.plan(e, parse_topology(kind))
        fits, parts = guess.memory | {"peak": 0.0}, guess.parts | {"matrix": seconds}
        return replace(guess, source="compiled", memory=fits, parts=parts)

    best, *_ = search(on(llama3_8b, kind), parse_topology(kind), compile_one, most=1, report=lambda _: None)
    assert [c.scoped_vmem for c in asked if c.scoped_vmem] == asked_for
    assert (best.experiment.compute.block, best.experiment.compute.scoped_vmem) == (1024, sum(asked_for))
    assert ("compute.scoped_vmem=64" in best.settings) == ("scoped_vmem=64" in best.paste) == bool(asked_for)
    assert more_vmem(best.experiment.compute, V5P) == ([] if asked_for else [dict(scoped_vmem=64)])


def test_advice_to_what_does_not_fit() -> None:
    e = on(llama3_70b, compute=dict(remat="nothing"))
    assert "compute.remat=full" in advice(e, V5P)
    assert "times the chips" in advice(on(llama3_70b, "v5e:2x2"), parse_topology("v5e:2x2"))
    said = "RESOURCE_EXHAUSTED: XLA:TPU compile error. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    assert excess(said) == "it needs 20.50GiB of 15.75GiB, 4.75GiB too much"


def test_what_is_frozen_has_neither_gradients_nor_optimizer_state() -> None:
    whole, part = analytic.plan(on(llama3_8b), V5P), analytic.plan(on(llama3_8b, trains=LoRA(rank=16)), V5P)
    weights, added = count.parameters(llama3_8b), LoRA(rank=16).added(llama3_8b)
    assert added == 41_943_040
    assert whole.memory["arguments"] == pytest.approx(12 * weights / 64, rel=1e-3)
    assert part.memory["arguments"] == pytest.approx((4 * weights + 12 * added) / 64, rel=1e-3)
    assert 0.7 < part.model_flops / whole.model_flops < 0.76  # attention has no weights to freeze
    assert part.collective_bytes < whole.collective_bytes
