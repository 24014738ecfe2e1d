"""What cannot fit is refused before anything is allocated, and nothing that could run is."""

from pathlib import Path
from typing import Any

import jax
import pytest

from launch.__main__ import main
from lm.experiment import Experiment
from lm.machine import hardware
from lm.model.families import llama
from lm.plan.compile import lower_step
from lm.plan.topology import Chip, Topology
from lm.run import memory
from lm.run.memory import check_memory, host_bytes, least, total
from lm.sharding.mesh import make_mesh
from tests.tiny import experiment, write_texts


def here(devices: int, size: float = 1e9) -> Topology:
    return Topology(Chip("device", int(size), 1.0, 1.0, 1.0, 0, 1.0), (devices,))


@pytest.fixture
def tiny(tmp_path: Path) -> Experiment:
    return experiment(tmp_path).replace(compute=dict(dtype="float32", matmul="float32"), ema=0.0)


def model_of(layers: int, width: int) -> Any:
    return llama(vocab=258, layers=layers, width=width, heads=2, mlp=2 * width, context=64)


@pytest.mark.parametrize("changes", [{}, dict(compute=dict(remat="full")), dict(accumulate=4, ema=0.9)], ids=str)
def test_the_bound_is_below_what_the_compiler_needs(changes: dict[str, Any], tiny: Experiment) -> None:
    e = tiny.replace(model=model_of(4, 32), batch_tokens=64 * 64).replace(changes)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    needs = lower_step(e, mesh).compile().memory_analysis()
    compiled = needs.argument_size_in_bytes + needs.temp_size_in_bytes
    assert 0.1 * compiled < total(least(e, here(1))) <= compiled


def test_the_state_is_that_of_the_run(tiny: Experiment) -> None:
    parts = least(tiny.replace(ema=0.5), here(1))
    from lm.model import count

    size = 4 * count.parameters(tiny.model)
    assert (parts["parameters"], parts["average"], parts["gradients"]) == (size, size, size)
    assert 2 * size <= parts["optimizer"] < 2 * size + 64
    sharded = least(tiny.replace(ema=0.5, mesh=dict(fsdp=2)), here(2))
    assert sharded["parameters"] == size / 2 and sharded["activations"] == parts["activations"] / 2
    assert least(tiny.replace(optimizer=dict(clip=0.0)), here(1))["gradients"] == 0
    assert total(dict(parameters=1, optimizer=2, average=0, gradients=3, activations=5)) == 8


def given(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(hardware, "memory", lambda: (size, "this machine"))
    monkeypatch.setattr(memory.jax, "device_count", lambda: 1)


def test_a_machine_holds_what_all_of_its_cpu_devices_do(tiny: Experiment) -> None:
    assert host_bytes(tiny) == total(least(tiny, here(1)))
    replicated, sharded = (tiny.replace(compute=dict(devices=2), mesh={axis: 2}) for axis in ("data", "fsdp"))
    assert host_bytes(replicated) == 2 * total(least(replicated, here(2))) > host_bytes(sharded) > 0


def test_what_is_too_large_says_so_and_what_would_help(tiny: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, 10**9)
    check_memory(tiny)
    with pytest.raises(ValueError) as large:
        check_memory(tiny.replace(model=model_of(8, 4096)))
    said = str(large.value)
    assert said.startswith("tiny needs at least ") and "parameters 5.4, optimizer 10.8, gradients 5.4" in said
    assert "and this machine has 1.0 GB: take a smaller model, about 22 such devices with mesh.fsdp=-1" in said
    with pytest.raises(ValueError, match=r"what may fit, by arithmetic: compute.remat=full, or compute.remat=full"):
        check_memory(tiny.replace(model=model_of(8, 64), batch_tokens=64 * 2**12))
    with pytest.raises(ValueError, match="take fewer batch_tokens"):
        check_memory(tiny.replace(model=model_of(8, 64), batch_tokens=64 * 2**19))
    given(monkeypatch, 0)  # of a device that does not tell
    check_memory(tiny.replace(model=model_of(8, 4096)))


def test_nothing_is_prepared_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "prepare", lambda devices="": None)
    monkeypatch.setattr(hardware, "memory", lambda: (10**6, "this machine"))
    monkeypatch.setattr("lm.run.course.prepare_run", lambda *_, **__: pytest.fail("prepared"))
    monkeypatch.syspath_prepend(str(tmp_path))  # as its folder is added, and goes with it
    page = tmp_path / "too_large.py"
    write_texts(tmp_path / "texts")
    texts = f"experiment = tiny(Path({str(tmp_path / 'texts')!r}))\n"
    page.write_text(f"from pathlib import Path\nfrom tests.tiny import experiment as tiny\n{texts}")
    assert main(["train", str(page), "--workdir", str(tmp_path / "run"), "--set", "model.width=256"]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("tiny: ") and told.err.startswith("lm: tiny needs at least ")


def test_the_memory_of_a_machine_is_known() -> None:
    size, where = hardware.memory()
    assert 2**28 < size * jax.local_device_count() < 2**50 and where == "this machine"
    assert size == hardware.host_memory() // jax.local_device_count()


@pytest.mark.parametrize(("limit", "is_limit"), [("1000000", True), ("max", False), (str(2**62), False)])
def test_a_container_has_less(limit: str, is_limit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def with_limit(path: Path, *args: Any, **options: Any) -> str:
        return limit if path.name == "memory.max" else read(path, *args, **options)

    whole = hardware.host_memory()
    monkeypatch.setattr(Path, "read_text", with_limit)
    monkeypatch.setattr(Path, "is_file", lambda path: path.name == "memory.max")
    assert hardware.host_memory() == (1_000_000 if is_limit else max(whole, hardware.host_memory()))
