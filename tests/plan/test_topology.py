"""Topologies as they are written, and what is refused."""

import pytest

from lm.plan.topology import CHIPS, parse_topology


@pytest.mark.parametrize(
    ("text", "chips", "devices"),
    [
        ("v5p:4x4x4", 64, 64),
        ("v5e:16x16", 256, 256),
        ("v5p:4x4x4*2", 128, 128),
        ("tpu7x:2x2x1", 4, 8),
        ("h100:64", 64, 64),
    ],
)
def test_topologies(text: str, chips: int, devices: int) -> None:
    topology = parse_topology(text)
    assert (topology.name, topology.chips, topology.devices) == (text, chips, devices)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5p", "expected kind:shape, as in v5p:4x4x4"),
        ("v5p:4x4x5", "does not exist: v5p comes as 2x2x1, 2x2x2"),
        ("v5e:32x32", "does not exist: v5e comes as 1x1, .*16x16$"),
        ("v9:4x4", "known: v4, v5e, v5p, v6e, tpu7x, a100, h100"),
        ("h100:12", "GPUs come as a number, up to 8 or full hosts"),
        ("v5p:4x4x4*0", "at least one slice"),
    ],
)
def test_what_does_not_exist(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_topology(text)


def test_rings() -> None:
    assert parse_topology("v5p:4x4x4").options()["wrap"] == (True, True, True)
    assert "wrap" not in parse_topology("v5p:2x2x2").options()
    assert parse_topology("v5e:16x16").network == 2 * parse_topology("v5e:8x8").network == 4 * CHIPS["v5e"].link
    assert parse_topology("h100:16").network < parse_topology("h100:8").network
