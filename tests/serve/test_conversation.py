"""A conversation: its template, its history, its commands, and `lm chat` around it."""

import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lm.machine.hardware
from launch.__main__ import main
from lm.decode.engine import Engine, Request
from lm.decode.sampling import Sampling
from lm.serve.conversation import Conversation, engine_of
from lm.text.tokenizer import ByteTokenizer
from tests.serve import small
from tests.serve.small import BIAS

PRINTABLE = Sampling(0.9, logit_bias=tuple((int(id), float(value)) for id, value in BIAS.items()))


def conversation(**options: Any) -> Conversation:
    return Conversation(small.model(), engine_of(small.model(), 1), **{"max_new_tokens": 9, "seed": 3, **options})


def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that engines get from here on."""
    seen: list[Request] = []
    submit = Engine.submit

    def note(self: Engine, request: Request) -> int:
        seen.append(request)
        return submit(self, request)

    monkeypatch.setattr(Engine, "submit", note)
    return seen


def test_history_goes_into_the_template_with_one_bos(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = asked(monkeypatch)
    talk = conversation(sampling=PRINTABLE)
    talk.command("/system Be kind.")
    first = "".join(talk.reply("Hi"))
    second = "".join(talk.reply("Why?"))
    start = "system: Be kind.\nuser: Hi\nassistant: "
    assert seen[0].prompt == [256, *start.encode()]
    assert seen[1].prompt == [256, *f"{start}{first}\nuser: Why?\nassistant: ".encode()]
    assert seen[0].sampling == Sampling(0.9, logit_bias=PRINTABLE.logit_bias, vocab_size=258)
    assert seen[0].stop == (257,) and len(first) == len(second) == 9
    assert talk.messages[-1] == {"role": "assistant", "content": second}
    assert "".join(conversation(sampling=PRINTABLE, messages=talk.messages[:1]).reply("Hi")) == first


def test_an_interruption_ends_a_reply_and_keeps_what_was_said() -> None:
    talk = conversation(sampling=PRINTABLE, max_new_tokens=100)
    said: list[str] = []
    for text in talk.reply("Hi", lambda: len(said) == 5):
        said.append(text)
    assert talk.messages[-1]["content"] == "".join(said) and len("".join(said)) == 5
    assert not talk.engine.running and len("".join(talk.reply("More"))) == 100


def test_a_model_without_a_template_continues_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small.model().tokenizer, "chat_template", None)
    seen, talk = asked(monkeypatch), conversation(sampling=PRINTABLE)
    first = "".join(talk.reply("def "))
    list(talk.reply("x"))
    assert seen[1].prompt == [256, *f"def {first}x".encode()]


def test_a_conversation_that_is_too_long_loses_nothing() -> None:
    talk = conversation(messages=[{"role": "user", "content": "x"}])
    with pytest.raises(ValueError, match="/reset begins a new one"):
        list(talk.reply("y" * 300))
    assert talk.messages == [{"role": "user", "content": "x"}]


def test_commands(tmp_path: Path) -> None:
    talk = conversation(messages=[{"role": "user", "content": "é"}])
    talk.command("/system Be brief.")
    talk.command("/system Be kind.")
    file = tmp_path / "talk.jsonl"
    assert talk.command(f"/save {file}") == f"2 messages in {file}"
    assert json.loads(file.read_text())["messages"] == talk.messages
    talk.command("/temperature 0.25")
    talk.command("/reset")
    assert talk.sampling.temperature == 0.25 and talk.messages == [{"role": "system", "content": "Be kind."}]
    talk.command("/system")
    assert talk.messages == []
    for line, message in (
        (f"/save {file}", "is there already"),
        ("/save", "expected the name"),
        ("/temperature hot", "expected a number"),
        ("/temperature -1", "temperature=-1"),
        ("/rest", "unknown command /rest: /reset"),
    ):
        with pytest.raises(ValueError, match=message):
            talk.command(line)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prepare", "use_compilation_cache"):
        monkeypatch.setattr(lm.machine.hardware, name, lambda *args: None)
    monkeypatch.setattr("lm.pretrained.is_run", lambda run: False)
    monkeypatch.setattr("lm.pretrained.load", lambda path, **options: small.model())
    monkeypatch.setattr(Engine, "warm_up", lambda self: None)


def test_lm_chat(loaded: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Replies on standard output; the rest, also an error, in a line beside it; then it goes on."""
    seen = asked(monkeypatch)
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("Hi\n/nothing\n\n" + "y" * 300 + "\n/temperature 0\nAgain\n/exit\nHi\n")
    )
    assert main(["chat", "model", "--system", "Be kind.", "--max-new-tokens", "4", "--seed", "5"]) == 0
    out, err = capsys.readouterr()
    assert [request.max_new_tokens for request in seen] == [4, 4] and seen[1].sampling.temperature == 0
    assert seen[0].seed == 5 and seen[0].sampling.top_p == 0.95
    assert bytes(seen[0].prompt[1:]).startswith(b"system: Be kind.\nuser: Hi")
    assert out.count("\n") >= 2 and "unknown command /nothing" in err and "/reset begins" in err


def test_control_c_ends_a_reply_and_not_the_chat(
    loaded: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal in the midst of a step: the step ends, the reply too, and the next line is answered."""
    seen, steps, step = asked(monkeypatch), [], Engine.step

    def interrupted(self: Engine) -> Any:
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Engine, "step", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nAgain\n"))
    before = signal.getsignal(signal.SIGINT)
    assert main(["chat", "model", "--max-new-tokens", "50"]) == 0
    assert len(seen) == 2 and len(steps) > 10
    history = seen[1].prompt[len(seen[0].prompt) :]  # what was said by then, of up to four tokens
    assert len(history) < 4 * 3 + len("\nuser: Again\nassistant: ") and capsys.readouterr().out.endswith("\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_model_without_a_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="came without a tokenizer"):
        engine_of(replace(small.model(), tokenizer=None), 1)
    assert isinstance(small.model().tokenizer, ByteTokenizer)
