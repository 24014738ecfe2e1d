"""The page of `lm serve`, and the inspections that it asks for."""

import asyncio
import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lm.pretrained.inside import WhatIf
from lm.serve import inspector
from lm.serve.call import Limits, Served
from lm.serve.embeddings import Embedder
from lm.serve.fields import Fields
from lm.serve.inspector import Inspection, Inspector, inspection
from lm.serve.metrics import COMPILED, Metrics
from lm.serve.start import application, page_address
from lm.text.tokenizer import ByteTokenizer
from tests.browser import Page, browser, needs_chromium
from tests.serve import small
from tests.serve.test_server import slow


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with small.client() as client:
        yield client


def served(**limits: int) -> Served:
    tokenizer = small.model().tokenizer
    assert tokenizer is not None
    return Served("tiny", small.model(), tokenizer, small.CONTEXT, Limits(**limits))


def test_the_page_wants_no_key_and_knows_nothing() -> None:
    with small.client(keys=["secret"]) as client:
        page = client.get("/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert "tiny" not in page.text and "http" not in page.text.replace("http://www.w3.org/2000/svg", "")
        assert client.post("/inspect", json={"text": "a"}).status_code == 401
        policy = page.headers["content-security-policy"]
    script = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert len(script) == 1 and "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode() in policy


def test_an_inspection_is_that_of_the_command_line(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments arrive, and its page is given whole."""
    seen: list[Any] = []

    def note(*args: Any) -> Any:
        seen.append(args)
        return {}, []

    monkeypatch.setattr(inspector, "inside", note)
    monkeypatch.setattr(inspector, "html", lambda name, data, attentions: f"<p>{name}</p>")
    asked = dict(text="a b", other_order="b a", output="c", zero=["1.0", "0.1"], patch_from="c d")
    answer = client.post("/inspect", json={**asked, "model": "tiny"})
    assert answer.text == "<p>tiny</p>" and answer.headers["cache-control"] == "no-store"
    assert client.post("/inspect", json={"text": "a", "zero": "1.1"}).status_code == 200
    assert [args[1:] for args in seen] == [
        ("a b", "b a", "c", WhatIf(("1.0", "0.1"), "c d")),
        ("a", "", "", WhatIf(("1.1",), "")),
    ]
    assert 'inspection_seconds_count{model_name="tiny"} 2.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "status", "said", "param"),
    [
        ({}, 400, "text is empty: expected what the model is to read", "text"),
        ({"text": "a" * 300}, 400, "text has 301 tokens: expected 1 to 300, the model's context", "text"),
        ({"text": "a", "zero": "9.0"}, 400, "head '9.0': this model has layers 0 to 1", None),
        ({"text": "ab", "patch_from": "a"}, 400, "patch_from has 2 tokens and text 3: patching", "patch_from"),
        ({"text": "a", "output": "a"}, 400, "output is what an encoder-decoder writes", "output"),
        ({"text": "a", "word": "a"}, 400, "unknown field word", "word"),
        ({"text": "a", "model": "other"}, 404, "no model 'other'", "model"),
    ],
)
def test_what_cannot_be_looked_into_is_one_line(
    client: TestClient, body: dict[str, Any], status: int, said: str, param: str | None
) -> None:
    answer = client.post("/inspect", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and error["message"].startswith(said) and error["param"] == param


def test_half_a_character_is_no_text(client: TestClient) -> None:
    sent = {"content": rb'{"text": "a\ud83d"}', "headers": {"Content-Type": "application/json"}}
    answer = client.post("/inspect", **sent)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "text", answer.text


def test_a_server_s_own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("no memory")

    with small.client(Limits(inspect_tokens=4)) as client:
        for name in ("text", "patch_from"):
            error = client.post("/inspect", json={"text": "abc", name: "abcd"}).json()["error"]
            assert error["message"] == f"{name} has 5 tokens: this server looks into at most 4"
            assert error["code"] == "context_length_exceeded"
        monkeypatch.setattr(inspector, "inside", fail)
        answer = client.post("/inspect", json={"text": "abc"})
        assert answer.status_code == 500 and answer.json()["error"]["message"] == "no page: RuntimeError"
    with small.client(Limits(inspect_tokens=0)) as client:
        answer = client.post("/inspect", json={"text": "a"})
        assert answer.status_code == 403 and "looks into no texts" in answer.text


def test_requests_are_served_while_a_text_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """One text at a time; too many that wait are refused."""
    going, at_once = threading.Event(), []

    def wait(*args: Any) -> Any:
        at_once.append(1)
        going.wait(30)
        assert len(at_once) == 1
        at_once.pop()
        return {}, []

    monkeypatch.setattr(inspector, "inside", wait)
    monkeypatch.setattr(inspector, "html", lambda *args: "page")
    with small.client() as client, ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(client.post, "/inspect", json={"text": "a"}) for _ in range(11)]
        while sum(one.done() for one in asked) < 2:
            time.sleep(0.005)
        assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}).status_code == 200
        going.set()
        assert sorted(one.result().status_code for one in asked) == [200] * 9 + [429] * 2


def test_who_has_left_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    going, seen = threading.Event(), []

    def wait(model: Any, text: str, *args: Any) -> Any:
        seen.append(text)
        going.wait(30)
        return {}, []

    async def leave() -> None:
        own = Inspector(served(), Metrics("tiny"))
        tasks = [
            asyncio.create_task(own.page(Inspection(text, "", "", WhatIf()))) for text in ("first", "second", "third")
        ]
        while not seen:
            await asyncio.sleep(0.001)
        tasks[1].cancel()
        await asyncio.gather(tasks[1], return_exceptions=True)
        going.set()
        assert await tasks[2] == "page"
        own.close()

    monkeypatch.setattr(inspector, "inside", wait)
    monkeypatch.setattr(inspector, "html", lambda *args: "page")
    asyncio.run(leave())
    assert seen == ["first", "third"]


def test_an_inspection_s_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "inside", lambda *args: (time.sleep(0.3), []))
    monkeypatch.setattr(inspector, "html", lambda *args: "page")
    with small.client(Limits(seconds=0.05)) as client:
        assert client.post("/inspect", json={"text": "a"}).status_code == 504


def test_what_an_inspection_compiles_is_expected() -> None:
    metrics = Metrics("tiny")
    with metrics.compiling():
        metrics._compilation(COMPILED, 1.0)
    assert b'compiles_after_warmup_total{model_name="tiny"} 0.0' in metrics.page()
    metrics._compilation(COMPILED, 1.0)
    assert b'compiles_after_warmup_total{model_name="tiny"} 1.0' in metrics.page()


def test_messages_as_text(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page gives to look into; a model without a template is one line, and is said by /props."""
    messages = [{"role": "user", "content": "Hi"}]
    assert client.post("/apply-template", json={"messages": messages}).json() == {
        "prompt": "<bos>user: Hi\nassistant: "
    }
    assert inspection(served(), Fields({"text": "<bos>user: Hi\nassistant: "})).text.startswith("<bos>")
    assert client.get("/props").json()["chat_template"] == small.TEMPLATE
    monkeypatch.setattr(small.model().tokenizer, "chat_template", None)
    assert client.get("/props").json()["chat_template"] is None
    error = client.post("/apply-template", json={"messages": messages}).json()["error"]
    assert "chat template" in error["message"]


def test_the_address_to_open() -> None:
    assert page_address("127.0.0.1", 80) == page_address("0.0.0.0", 80) == "http://127.0.0.1:80/"
    assert page_address("::", 8000) == "http://[::1]:8000/" and page_address("a.example", 1) == "http://a.example:1/"


# ---------------------------------------------------------------- in a browser


@contextmanager
def listening(app: Starlette) -> Iterator[str]:
    """The address of a server."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [own]})
        thread.start()
        try:
            yield page_address(*own.getsockname())
        finally:
            server.should_exit = True
            thread.join()


def say(page: Page, words: str) -> None:
    page.run("document.getElementById('words').focus()")
    page.type(words)
    page.press("Enter")


ANSWERED = "document.getElementById('stop').disabled && document.querySelector('#log button')"


@needs_chromium
def test_a_conversation_and_a_look_inside(tmp_path: Path) -> None:
    small.warm()
    markup = '<b id="bold">a</b><script>window.ran = 1</script>'
    app = application(small.model(), "<i>tiny</i>", small.engine(), keys=["secret"])
    with listening(app) as address, browser(tmp_path) as page:
        page.open(address, 400)
        page.until("!document.getElementById('ask-key').hidden")
        for key in ("wrong", "secret"):
            page.run(
                f"document.getElementById('key').value = '{key}'; document.getElementById('ask-key').requestSubmit()"
            )
            page.until("!document.getElementById('note').hidden || document.documentElement.dataset.ready")
        page.until("document.documentElement.dataset.ready")
        assert page.text("h1") == "<i>tiny</i>" and page.text("#about") == "300 tokens of context"
        page.run("document.getElementById('temperature').value = 0; document.getElementById('max_tokens').value = 6")
        say(page, markup)
        page.until(ANSWERED)
        body = dict(messages=[{"role": "user", "content": markup}], temperature=0, top_p=0.95, max_tokens=6)
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        request = Request(address + "v1/chat/completions", json.dumps(body).encode(), headers)
        whole = json.loads(urlopen(request, timeout=30).read())
        (answer,), usage = whole["choices"], whole["usage"]
        assert page.text(".turn.user") == markup and page.text(".turn.assistant pre") == answer["message"]["content"]
        assert re.fullmatch(
            rf"{usage['prompt_tokens']} \+ 6 tokens · [\d.]+ tokens a second · cut at the most tokens · look inside",
            page.text(".turn.assistant p"),
        )
        page.run("document.querySelector('#log button').click()")
        frame = page.frame()
        frame.until("document.documentElement.dataset.ready")
        assert frame.text("h1") == "<i>tiny</i>" and frame.text("#look").startswith("<bos>user:·<b·id")
        ran = "window.ran, document.getElementById('bold')"
        assert frame.run(f"return [{ran}, self.origin]") == [None, None, "null"]
        assert page.run(f"return [{ran}]") == [None, None]
        assert page.overflow() <= 0 and frame.overflow() <= 0
        page.run("document.getElementById('zero').value = '7.7'; document.getElementById('inspect').requestSubmit()")
        page.until("!document.getElementById('amiss').hidden")
        assert page.text("#amiss") == "head '7.7': this model has layers 0 to 1"


@needs_chromium
def test_stop_clear_and_a_model_without_turns(tmp_path: Path) -> None:
    small.warm()
    engine = slow()
    plain = replace(small.model(), tokenizer=ByteTokenizer())
    with listening(application(plain, "tiny", engine)) as address, browser(tmp_path) as page:
        with listening(application(plain, "embeds", None, embedder=Embedder(plain, 32))) as encoder:
            page.open(encoder)
            page.until("document.documentElement.dataset.ready")
            assert page.text("#note").startswith("This model writes no text here. It has embeddings")
            assert page.run("return document.getElementById('chat').hidden && document.activeElement.id") == "text"
        with listening(application(plain, "chats", slow(), Limits(inspect_tokens=0))) as chats:
            page.open(chats)
            page.until("document.documentElement.dataset.ready && document.title === 'chats'")
            assert page.run("return document.getElementById('looks').hidden && !document.getElementById('chat').hidden")
        page.open(address)
        page.until("document.documentElement.dataset.ready && document.title === 'tiny'")
        assert page.text("#note") == "This model has no chat template: it continues the text, without turns."
        say(page, "The")
        page.until("document.querySelector('.turn.assistant pre')?.textContent.length > 3")
        page.press("Escape")
        page.until(ANSWERED)
        assert "stopped · look inside" == page.text(".turn.assistant p")
        first = page.text(".turn.assistant pre")
        page.until("document.getElementById('text').value")
        continued = ("The" + first).replace("\r\n", "\n").replace("\r", "\n")  # as a text area does
        assert page.run("return document.getElementById('text').value") == continued
        page.run("document.getElementById('max_tokens').value = 3")
        say(page, " end")
        page.until("document.querySelectorAll('#log button').length === 2")
        assert page.run("return document.getElementById('text').value").startswith(continued + " end")
        page.run("document.getElementById('clear').click()")
        assert page.text("#log") == ""
        say(page, "a" * 300)
        page.until("!document.getElementById('fault').hidden")
        assert page.text("#fault") == "the conversation has 301 tokens, and the context 300: clear it"
        assert page.text("#log") == "" and page.run("return document.getElementById('words').value") == "a" * 300
        assert page.overflow() <= 0
