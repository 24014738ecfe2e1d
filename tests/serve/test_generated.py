"""Generated bodies for every route: whatever is sent, the answer is JSON, an error says so, and the server goes on."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from lm.decode.engine import Engine
from lm.inspect import page
from lm.page.chat import chat_page
from lm.pretrained.inside import Look, WhatIf
from lm.pretrained.model import Pretrained
from lm.serve import inspector
from lm.serve.embeddings import Embedder
from lm.serve.start import application
from tests.serve import small

PAGE = "<p>inside</p>"
HEADERS = {"content-type": "application/json"}
MESSAGE = {"role": "user", "content": "Hi"}
SHORT = {"max_tokens": 2, "temperature": 0.7, "seed": 1}
VALID: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "prompt": "The",
        **SHORT,
        **dict(n=1, stop=["q"], logit_bias={"5": 1}, top_k=3, top_p=0.9, echo=True, logprobs=2, stream=False),
    },
    "/v1/chat/completions": {
        "messages": [MESSAGE],
        **SHORT,
        **dict(logprobs=True, top_logprobs=1, stop="q", stream=True, stream_options={"include_usage": True}),
    },
    "/v1/embeddings": {"input": ["a", "b c"], "encoding_format": "base64", "dimensions": 16},
    "/inspect": dict(text="a b", other_order="b a", output="", zero=["1.0"], patch_from="b a"),
    "/apply-template": {"messages": [MESSAGE]},
    "/tokenize": {"prompt": "a <eos>", "add_special_tokens": True, "return_token_strs": True},
    "/detokenize": {"tokens": [65, 66, 256]},
}
NAMES = sorted(
    {name for body in VALID.values() for name in body} | {"model", "user", "chat_template_kwargs", "metadata"}
)


def nested(depth: int, leaf: Any, by_name: bool) -> Any:
    for _ in range(depth):
        leaf = {"a": leaf} if by_name else [leaf]
    return leaf


# all code points, half a pair and NUL among them
texts = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(["<bos>", "</s>", "{{", "\ud83d"])
numbers = st.integers() | st.sampled_from([10**18, -(10**400), 2**31, 1e308, -1e-320, 0.0, -1]) | st.floats(-1e9, 1e9)
leaves = st.none() | st.booleans() | numbers | texts
deep = st.builds(nested, st.sampled_from([3, 90, 400, 900]), leaves, st.booleans())
values = deep | st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """(route, body): a valid body with some fields exchanged, dropped or added; sometimes cut or garbled."""
    route = draw(st.sampled_from(sorted(VALID)))
    body = dict(VALID[route])
    for name in draw(st.lists(st.sampled_from(sorted(body)), max_size=2)):
        body.pop(name, None)
    body |= draw(st.dictionaries(st.sampled_from(NAMES), values, max_size=2))
    body |= draw(st.dictionaries(texts, values, max_size=1))
    if draw(st.booleans()):
        key = draw(st.sampled_from(sorted(VALID[route])))
        body[key] = _inside(draw, VALID[route][key])
    data = json.dumps(body).encode()
    cut = draw(st.integers(0, len(data)))
    garble: Callable[[bytes], bytes] = draw(st.sampled_from([bytes, bytes, bytes, lambda d: d[:cut], bytes.swapcase]))
    return route, garble(data)


def _inside(draw: st.DrawFn, value: Any) -> Any:
    """`value` with something in it exchanged."""
    if isinstance(value, dict) and draw(st.booleans()):
        return {**value, draw(texts): draw(values)}
    if isinstance(value, dict):
        return {name: draw(values) for name in value}
    if isinstance(value, list):
        return [_inside(draw, one) for one in value] + draw(st.lists(values, max_size=1))
    return draw(values)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return small.engine()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    small.warm()
    embedder = Embedder(small.model(), 32)
    embedder.warm_up()
    app = application(small.model(), "tiny", engine, embedder=embedder)
    with pytest.MonkeyPatch.context() as patch, TestClient(app, raise_server_exceptions=False) as client:
        patch.setattr(inspector, "inside", read)
        patch.setattr(inspector, "html", lambda *args: PAGE)
        yield client


def read(model: Pretrained, text: str, other_order: str, output: str, what_if: WhatIf) -> Any:
    """What `inside` does before it computes for long."""
    look = Look(model, text, output)
    page.other_order(look.pieces, look.controls, other_order)
    return {}, []


def check(answer: Any, sent: bytes) -> None:
    """An answer, or an error that says what is wrong."""
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, (answer.status_code, answer.text, sent)
    if answer.headers["content-type"].startswith("text/event-stream"):
        *events, last, end = answer.text.split("\n\n")
        assert last == "data: [DONE]" and not end
        assert all(json.loads(event.removeprefix("data: "))["choices"] is not None for event in events)
        return
    if answer.status_code == 200 and answer.headers["content-type"].startswith("text/html"):
        assert answer.text in (PAGE, chat_page(), "")
        return
    assert answer.headers["content-type"] == "application/json", sent
    found = answer.json()
    if answer.status_code != 200:
        assert (
            set(found) == {"error"} and found["error"]["message"] and found["error"]["type"] == "invalid_request_error"
        )


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(sent=bodies())
@example(sent=("/v1/completions", b'{"prompt": "a", "metadata": ' + b"[" * 900 + b"]" * 900 + b"}"))
@example(sent=("/v1/completions", b"[" * 100_000))
@example(sent=("/v1/completions", b'{"prompt": "a", "temperature": 1e999}'))
@example(sent=("/v1/completions", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}"))
@example(sent=("/tokenize", b"\xff\xfe{}"))
@example(sent=("/tokenize", b'\xef\xbb\xbf{"prompt": "a"}'))
@example(sent=("/detokenize", b'{"tokens": [1], "tokens": [2]}'))
@example(sent=("/v1/embeddings", b"null"))
def test_every_body_has_an_answer(client: TestClient, sent: tuple[str, bytes]) -> None:
    route, data = sent
    check(client.post(route, content=data, headers=HEADERS), data)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]),
    route=st.sampled_from([*VALID, "/v1/models", "/props", "/tokenizer_info", "/"]),
    more=st.text("aé/%?#.\\ {}", max_size=6),
    kind=st.sampled_from(["application/json", "text/plain", "application/json; charset=latin-1", ""]),
)
def test_every_path_has_an_answer(client: TestClient, method: str, route: str, more: str, kind: str) -> None:
    answer = client.request(
        method, route + more.replace("?", "%3F").replace("#", "%23"), headers={"content-type": kind}
    )
    check(answer, more.encode())


def test_all_slots_are_free_in_the_end(client: TestClient, engine: Engine) -> None:
    assert not engine.busy and sorted(engine._free) == list(range(small.SLOTS))
    assert client.get("/health").json() == {"status": "ok"}
    assert client.post("/v1/completions", json=VALID["/v1/completions"]).status_code == 200
