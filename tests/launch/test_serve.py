"""`lm serve` loads, warms up and listens as it is told to."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import lm.machine.hardware
from launch.__main__ import main
from lm.serve import start
from tests.serve import small


@pytest.fixture(autouse=True)
def listened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What `listen` is called with, in place of a server."""
    seen: list[Any] = []
    for name in ("prepare", "use_compilation_cache"):
        monkeypatch.setattr(lm.machine.hardware, name, lambda *args: None)
    monkeypatch.setattr("lm.pretrained.is_run", lambda run: False)
    monkeypatch.setattr("lm.pretrained.load", lambda path, **options: small.model())
    monkeypatch.setattr(start, "listen", lambda *args: seen.append(args))
    template = small.model().tokenizer.chat_template  # type: ignore[union-attr]
    yield seen
    small.model().tokenizer.chat_template = template  # type: ignore[union-attr]


def test_what_is_asked_for_is_served(listened: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("secret\n")
    (tmp_path / "template").write_text("{{ messages[0].content }}!")
    options = ["--slots", "4", "--name", "mine", "--max-new-tokens", "3", "--max-waiting", "7", "--max-seconds", "9"]
    options += ["--inspect-tokens", "99"]
    options += ["--api-key-file", str(tmp_path / "keys"), "--chat-template", str(tmp_path / "template")]
    assert main(["serve", "model", "--port", "8123", "--drain-seconds", "5", *options]) == 0
    ((app, *where),) = listened
    assert where == ["127.0.0.1", 8123, 5] and "mine: 4 slots of 300 tokens" in capsys.readouterr().out
    with TestClient(app, headers={"Authorization": "Bearer secret"}) as client:
        props = client.get("/props").json()
        assert props["model_alias"] == "mine" and props["total_slots"] == 4
        assert props["limits"]["new_tokens"] == 3 and props["limits"]["most_waiting"] == 7
        assert props["limits"]["inspect_tokens"] == 99
        assert props["limits"]["seconds"] == 9 and props["limits"]["body_bytes"] == 8 << 20
        messages = [{"role": "user", "content": "Hi"}]
        assert client.post("/tokenize", json={"messages": messages}).json()["tokens"] == list(b"Hi!")
        assert 'compiles_after_warmup_total{model_name="mine"} 0.0' in client.get("/metrics").text


def test_who_can_reach_it_is_said(listened: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "some/model", "--slots", "4", "--host", "0.0.0.0"]) == 0
    assert "0.0.0.0 can be reached by others" in capsys.readouterr().out
    assert listened[0][1] == "0.0.0.0" and listened[0][0].state is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "70000"], "--port 70000: expected 0 to 65535"),
        (["--max-seconds", "nan"], "--max-seconds nan: expected at least 1"),
        (["--max-waiting", "-1"], "--max-waiting -1"),
        (["--inspect-tokens", "-1"], "--inspect-tokens -1: expected at least 0"),
        (["--length", "301"], "--length 301"),
        (["--api-key-file", "nowhere"], "nowhere"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    listened: list[Any], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "model", *options]) == 1
    *loaded, error = capsys.readouterr().err.splitlines()
    assert message in error and error.startswith("lm: ") and len(loaded) <= 1 and not listened


def test_a_run_s_dtype_is_its_experiment_s(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lm.pretrained.is_run", lambda run: True)
    for verb in ("serve", "chat"):
        assert main([verb, "runs/mine", "--dtype", "bfloat16"]) == 1
        assert "--dtype bfloat16: a run is computed as in its experiment" in capsys.readouterr().err


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "lm.serve.start")
    monkeypatch.delattr("lm.serve.start")
    assert main(["serve", "model"]) == 1
    assert 'lm serve needs uvicorn: pip install -e ".[serve]"' in capsys.readouterr().err
