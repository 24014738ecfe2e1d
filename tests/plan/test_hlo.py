"""Programs read from their text: FLOPs of products and convolutions, loops times their trips, collectives, kernels."""

import jax
import jax.numpy as jnp
import pytest

from lm.plan import hlo
from lm.plan.cost import CostAnalysis, kernel_flops
from lm.plan.topology import parse_topology

V5P = parse_topology("v5p:2x2x1")

TPU = """\
HloModule jit_step, is_scheduled=true

%fused (p0: bf16[64,256], p1: bf16[256,512]) -> bf16[64,512] {
  %p0 = bf16[64,256]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[256,512]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[64,512]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%body (carry: (s32[], bf16[64,256], bf16[256,512])) -> (s32[], bf16[64,256], bf16[256,512]) {
  %carry = (s32[]{:T(128)}, bf16[64,256]{1,0:T(8,128)(2,1)}, bf16[256,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %x = bf16[64,256]{1,0:T(8,128)(2,1)} get-tuple-element(%carry), index=1
  %w = bf16[256,512]{1,0:T(8,128)(2,1)} get-tuple-element(%carry), index=2
  %f = bf16[64,512]{1,0:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"1750"}}
  %k = bf16[64,512]{1,0:T(8,128)(2,1)} custom-call(%f), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/attention"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"459000000"}}}
  %gs = (bf16[64,256]{1,0}, bf16[256,256]{1,0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}
  %gd = bf16[256,256]{1,0} all-gather-done(%gs)
  %r = bf16[64,256]{1,0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %t = (s32[], bf16[64,256]{1,0}, bf16[256,512]{1,0}) tuple(%i, %r, %w)
}

%condition (carry.1: (s32[], bf16[64,256], bf16[256,512])) -> pred[] {
  %carry.1 = (s32[], bf16[64,256]{1,0}, bf16[256,512]{1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(7)
  %count = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %less = pred[] compare(%count, %bound), direction=LT
}

ENTRY %main (a: (s32[], bf16[64,256], bf16[256,512])) -> (s32[], bf16[64,256], bf16[256,512]) {
  %a = (s32[], bf16[64,256]{1,0}, bf16[256,512]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[64,256]{1,0}, bf16[256,512]{1,0}) while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"10"}}
}
"""


def test_a_loop_counts_as_often_as_it_runs() -> None:
    cost = CostAnalysis(hlo.parse_program(TPU), V5P).total()
    assert cost.matrix == 10 * 2 * 64 * 256 * 512
    assert cost.matrix_seconds == pytest.approx(10 * 1750 / 1.75e9)
    assert cost.kernel == 10 * 459e6 and cost.kernel_seconds == pytest.approx(10 * 1e-6)
    assert cost.kernels == {"k": 10}
    assert not cost.unknown


def test_collectives_by_kind_by_bytes_and_by_whether_they_are_waited_for() -> None:
    cost = CostAnalysis(hlo.parse_program(TPU), V5P).total()
    x = 64 * 256 * 2
    gather, reduce = cost.collectives["all-gather", "ici", True], cost.collectives["all-reduce", "ici", False]
    assert (gather.count, gather.bytes) == (10, 10 * 3 * x)  # of what is gathered, the others' parts
    assert (reduce.count, reduce.bytes) == (10, 10 * 2 * x * 3 / 4)  # it goes round twice
    assert cost.collective_bytes == gather.bytes + reduce.bytes
    assert cost.collective_seconds(False) == pytest.approx(reduce.bytes / V5P.network)


def test_a_collective_between_slices_goes_over_the_data_centre_s_network() -> None:
    text = TPU.replace("replica_groups={{0,1,2,3}}", "replica_groups=[4,2]<=[2,4]T(1,0)")
    cost = CostAnalysis(hlo.parse_program(text), parse_topology("v5p:2x2x1*2")).total()
    assert {key[:2] for key in cost.collectives} == {("all-gather", "ici"), ("all-reduce", "dcn")}


def test_a_loop_counts_up_to_the_constant_of_its_condition() -> None:
    """As the TPU compiler leaves it: without a known trip count."""
    cost = CostAnalysis(hlo.parse_program(TPU.replace('"known_trip_count":{"n":"10"}', "")), V5P).total()
    assert cost.matrix == 7 * 2 * 64 * 256 * 512 and not cost.unknown


def test_a_loop_whose_body_is_two_trips_runs_half_as_often() -> None:
    text = TPU.replace('"known_trip_count":{"n":"10"}', "").replace("constant(7)", "constant(8)")
    text = text.replace("  ROOT %t = ", "  %two = s32[] constant(2)\n  %next = s32[] add(%i, %two)\n  ROOT %t = ")
    text = text.replace("tuple(%i, %r, %w)", "tuple(%next, %r, %w)")
    assert CostAnalysis(hlo.parse_program(text), V5P).total().matrix == 4 * 2 * 64 * 256 * 512


def test_a_gather_that_several_fusions_help_along_counts_once() -> None:
    piece = """
%piece.{0} (p: bf16[64,256]) -> bf16[256,256] {{
  %p.{0} = bf16[64,256]{{1,0}} parameter(0)
  ROOT %g.{0} = bf16[256,256]{{1,0}} all-gather(%p.{0}), channel_id=5, \
replica_groups=mesh['axis_0'=1,'axis_1'=4] {{'axis_1'}}, dimensions={{0}}
}}
"""
    calls = "".join(f"  %h.{i} = bf16[256,256]{{1,0}} fusion(%x), kind=kCustom, calls=%piece.{i}\n" for i in (0, 1))
    text = TPU.replace("\n%body", piece.format(0) + piece.format(1) + "\n%body").replace("  %gs = ", calls + "  %gs = ")
    traffic = CostAnalysis(hlo.parse_program(text), V5P).total().collectives["all-gather", "ici", True]
    assert (traffic.count, traffic.bytes) == (20, 20 * 3 * 64 * 256 * 2)


def test_attention_s_kernels_count_the_keys_that_are_seen() -> None:
    shapes = ["f32[8,512,64]", "s8[1,2,2]", "bf16[8,512,64]", "bf16[2,1024,64]", "bf16[2,1024,64]"]
    made = hlo.Instruction("splash_mha_dkv_segmented.1", shapes[0], "custom-call", (), "")
    operands = [hlo.arrays(s)[0] for s in shapes[1:]]
    assert kernel_flops(made, operands, 0.5) == 4 * 2 * 8 * 512 * 1024 * 64 / 2


def test_a_loop_without_a_trip_count_is_told() -> None:
    text = TPU.replace('"known_trip_count":{"n":"10"}', "").replace("direction=LT", "direction=NE")
    cost = CostAnalysis(hlo.parse_program(text), V5P).total()
    assert cost.unknown == {"loop without a trip count": 1} and cost.matrix == 2 * 64 * 256 * 512


def test_a_text_that_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse_program("nothing")


def test_a_compiled_program_has_the_flops_of_its_products() -> None:
    """Of the compiler that is here: a scan of products, forward and backward."""

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    w, x = jax.ShapeDtypeStruct((6, 32, 32), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(w, x).compile().as_text()
    assert text is not None
    cost = CostAnalysis(hlo.parse_program(text), parse_topology("v5p:2x2x1")).total()
    assert cost.matrix == 6 * 3 * 2 * 16 * 32 * 32  # forward, and two products backward


@pytest.mark.parametrize(
    ("shapes", "attributes", "expected"),
    [
        # a product; one a batch entry, which a TPU writes as a window in which each entry meets its own; a convolution
        # that stays inside, and one that begins and ends on padding
        ("f32[8,16] f32[8,32] f32[32,16]", "dim_labels=bf_io->bf", 2 * 8 * 16 * 32),
        (
            "f32[4,8,16] f32[4,8,32] f32[4,16,32]",
            "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0oi->0bf",
            2 * 4 * 8 * 16 * 32,
        ),
        ("f32[1,6,5] f32[1,8,3] f32[3,3,5]", "window={size=3}, dim_labels=b0f_0io->b0f", 2 * 6 * 3 * 3 * 5),
        ("f32[1,8,5] f32[1,8,3] f32[3,3,5]", "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", 2 * 22 * 3 * 5),
    ],
)
def test_convolutions_count_what_is_no_padding(shapes: str, attributes: str, expected: int) -> None:
    out, *operands = shapes.split()
    made = hlo.Instruction("c", out, "convolution", (), attributes)
    assert hlo.flops(made, [hlo.arrays(s)[0] for s in operands]) == expected
