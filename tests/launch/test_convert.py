"""`lm convert`, `lm show` and `lm sample` on published models: what a newcomer sees."""

from pathlib import Path

import pytest

from launch.__main__ import main
from launch.convert import TYPES
from lm.pretrained import load
from lm.pretrained.gguf_save import TYPES as KNOWN
from tests.pretrained.small import BY_NAME, LLAMA, checkpoint
from tests.pretrained.test_model import WRITER


def test_converted_it_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(BY_NAME[LLAMA], tmp_path / "a")
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "float32, no tokenizer" in capsys.readouterr().out
    assert load(tmp_path / "b").config == load(tmp_path / "a").config


def test_in_place_the_tokenizer_keeps_its_files(tmp_path: Path) -> None:
    """Also those of a form that is not read (sentencepiece.bpe.model), and of a second form beside the one that is."""
    WRITER.save(tmp_path / "m")
    beside = {"merges.txt": b"#version: 0.2\n", "special_tokens_map.json": b"{}", "tekken.json": b"{}"}
    for name, data in beside.items():
        (tmp_path / "m" / name).write_bytes(data)
    before = {f.name: f.read_bytes() for f in (tmp_path / "m").iterdir()}
    for target in ("m", "m", "n"):
        assert main(["convert", str(tmp_path / "m"), str(tmp_path / target)]) == 0
        assert {f.name: f.read_bytes() for f in (tmp_path / target).iterdir()} == before
    checkpoint(BY_NAME[LLAMA], tmp_path / "bare")
    (tmp_path / "bare" / "sentencepiece.bpe.model").write_bytes(b"{}")
    assert main(["convert", str(tmp_path / "bare"), str(tmp_path / "bare")]) == 0
    assert (tmp_path / "bare" / "sentencepiece.bpe.model").read_bytes() == b"{}"
    checkpoint(BY_NAME[LLAMA], tmp_path / "other")
    assert main(["convert", str(tmp_path / "other"), str(tmp_path / "m")]) == 0  # of another model they go
    assert not {"merges.txt", "tokenizer.json"} & {f.name for f in (tmp_path / "m").iterdir()}


def test_a_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    WRITER.save(tmp_path / "m")
    for type in (*TYPES, None):
        more = ["--type", type] if type else []
        assert main(["convert", str(tmp_path / "m"), str(tmp_path / "x.gguf"), *more]) == 0
        told = capsys.readouterr().out
        assert f"parameters, {type or 'f32'}, with its tokenizer" in told
        assert ("of its tensors are f16, since their rows are no multiple of 32: " in told) == (type == "q8_0")
        assert set(TYPES) == set(KNOWN)
    again = load(tmp_path / "x.gguf")
    assert again.generate("ab", 9) == WRITER.generate("ab", 9) and again.stop_ids == WRITER.stop_ids


def test_a_published_model_is_shown_and_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    WRITER.save(tmp_path / "m")
    assert main(["show", str(tmp_path / "m")]) == 0
    shown = capsys.readouterr().out
    assert "layers 2" in shown and "parameters" in shown
    assert main(["sample", str(tmp_path / "m"), "--prompt", "ab", "--temperature", "0", "--max-new-tokens", "9"]) == 0
    assert WRITER.generate("ab", 9) in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "b")]) == 1
    assert main(["evaluate", str(checkpoint(BY_NAME[LLAMA], tmp_path / "a"))]) == 1
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--type", "f16"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert "--type f16 is of a .gguf file" in told.pop()
    assert len(told) == 2 and "is not a run" in told[0] and "name files with --text" in told[1]


def test_what_is_trained_and_what_is_frozen_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    lora = "trains=LoRA(rank=4, where='query|value')"
    assert main(["show", "experiments.quickstart", "--set", lora, "optimizer=AdamW"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "trained 14,336 parameters (0.34%); frozen: 4,196,608" in shown
    assert "frozen 16.0, optimizer 0.1, gradients 0.1" in shown
    assert main(["show", "experiments.quickstart", "--set", "trains=LoRA(where='quarry')"]) == 1
    assert "'quarry' matches no matrix: did you mean query" in capsys.readouterr().err


def test_an_adapter_is_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it writes: tests/pretrained/test_peft.py."""
    assert (
        main(["convert", str(checkpoint(BY_NAME[LLAMA], tmp_path / "m")), str(tmp_path / "a"), "--adapter-only"]) == 1
    )
    assert "--adapter-only is of a run's folder" in capsys.readouterr().err
    assert main(["sample", str(tmp_path / "m"), "--prompt", "a", "--adapter", str(tmp_path)]) == 1
    assert "is no adapter: expected adapter_config.json" in capsys.readouterr().err


def test_what_carries_loss_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = "from pathlib import Path\nfrom tests.tune.talks import talking, write\n"
    Path("talkative.py").write_text(page + "experiment = talking(write(Path('talks.jsonl')))\n")
    assert main(["show", "talkative", "--examples", "2"]) == 0
    shown = capsys.readouterr().out
    assert "example 2" in shown and "example 3" not in shown and shown.count("<eos>") >= 2
    WRITER.save(tmp_path / "m")
    for arguments in (["talkative", "--examples", "-1"], [str(tmp_path / "m"), "--examples", "1"]):
        assert main(["show", *arguments]) == 1
        assert "expected how many documents of an experiment to show" in capsys.readouterr().err
