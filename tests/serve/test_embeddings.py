"""/v1/embeddings of an encoder and a decoder: the model's own vectors, the same in any company."""

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from lm.model.families import bert
from lm.model.transformer import Transformer
from lm.pretrained.model import Pretrained
from lm.pretrained.sentences import Vectors
from lm.serve.call import Limits
from lm.serve.embeddings import Embedder
from lm.serve.start import USUAL, application
from lm.text.tokenizer import ByteTokenizer
from tests.model.reference import SIMPLE, lively
from tests.serve import small

CONTEXT = 48
TEXTS = ["eating food", "having a meal", "x", "a text that is longer than thirty-two tokens"]


@cache
def encoder() -> Pretrained:
    cfg = bert(vocab=258, layers=2, width=16, heads=2, mlp=24, context=CONTEXT)
    return Pretrained(cfg, lively(cfg), ByteTokenizer(), Transformer(cfg, SIMPLE))


@cache
def embedder(model: Any = encoder, length: int = CONTEXT, most: int = 20) -> Embedder:
    made = Embedder(model(), length, most)
    made.warm_up()
    return made


def served(own: Embedder | None = None, limits: Limits = USUAL) -> TestClient:
    app = application(encoder(), "tiny", None, limits, embedder=own or embedder())
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with served() as client:
        yield client


def post(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def vectors(client: TestClient, **body: Any) -> np.ndarray:
    data = post(client, **body)["data"]
    assert [one["index"] for one in data] == list(range(len(data))) and data[0]["object"] == "embedding"
    return np.array([one["embedding"] for one in data], np.float32)


def test_vectors_are_the_model_s(client: TestClient) -> None:
    """From texts or ids, one or many, in numbers or in base64."""
    ids = [encoder().encode(text) for text in TEXTS]
    found = vectors(client, input=TEXTS)
    np.testing.assert_allclose(found, encoder().embed(TEXTS), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found, vectors(client, input=ids))
    for text, row, vector in zip(TEXTS, ids, found, strict=True):
        for one in (text, [text], row, [row]):
            np.testing.assert_array_equal(vectors(client, input=one), [vector])
    coded = post(client, input=TEXTS, encoding_format="base64", model="tiny", user="me", dimensions=16)
    read = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in coded["data"]]
    np.testing.assert_array_equal(read, found)
    tokens = sum(map(len, ids))
    assert coded["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens} and coded["model"] == "tiny"
    assert coded["object"] == "list" and coded["timings"]["prompt_ms"] > 0


def test_the_same_bits_in_any_company_and_nothing_is_compiled(client: TestClient) -> None:
    compiled = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("compiles_after_warmup_total")
    ]
    alone = [vectors(client, input=text)[0] for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        many = list(pool.map(lambda i: vectors(client, input=[TEXTS[i % 4], TEXTS[(i + 1) % 4]]), range(24)))
    for i, pair in enumerate(many):
        np.testing.assert_array_equal(pair, [alone[i % 4], alone[(i + 1) % 4]])
    page = client.get("/metrics").text
    assert len(compiled) == 1 and compiled[0] in page  # by the tests before this one
    assert 'embeddings_waiting{model_name="tiny"} 0.0' in page


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "expected a text"),
        ({"input": []}, "input", "expected a text"),
        ({"input": [[]]}, "input", "has no tokens"),
        ({"input": ["a", [1]]}, "input", "one kind"),
        ({"input": [258]}, "input", "token id 258"),
        ({"input": "x" * CONTEXT}, "input", "a text of 49 tokens is longer than the 48"),
        ({"input": ["a"] * 21}, "input", "21 texts, at most 20"),
        ({"input": "a", "dimensions": 8}, "dimensions", "this model's vectors have 16"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "float or base64"),
        ({"input": "a", "truncate": True}, "truncate", "unknown field truncate"),
    ],
)
def test_what_cannot_be_is_refused(client: TestClient, body: dict[str, Any], param: str, message: str) -> None:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert message in answer.json()["error"]["message"]


def test_an_encoder_generates_no_text(client: TestClient) -> None:
    for route in ("/v1/completions", "/v1/chat/completions"):
        answer = client.post(route, json={"prompt": "a"})
        assert answer.status_code == 400 and "no decoder: it has embeddings" in answer.json()["error"]["message"]
    assert client.get("/health").json() == {"status": "ok"} and client.get("/props").json()["total_slots"] == 0
    assert client.post("/tokenize", json={"prompt": "a"}).json()["max_model_len"] == CONTEXT


def test_a_decoder_has_vectors_too() -> None:
    app = application(small.model(), "tiny", small.engine(), embedder=embedder(small.model, 32))
    with TestClient(app) as client:
        found = vectors(client, input=TEXTS[:3])
        np.testing.assert_allclose(found, small.model().embed(TEXTS[:3]), rtol=1e-4, atol=1e-5)
    with TestClient(application(small.model(), "tiny", small.engine())) as client:
        assert "gives no embeddings" in client.post("/v1/embeddings", json={"input": "a"}).text


def test_the_default_prompt_stands_before_texts_not_ids(client: TestClient) -> None:
    """As `embed` has it; the programs are those of a model without prompts."""
    model = replace(encoder(), vectors=Vectors(prompts=(("query", "a question: "),), default="query"))
    own_embedder = Embedder(model, CONTEXT, 20)
    own_embedder._programs = embedder()._programs
    app = application(model, "tiny", None, USUAL, embedder=own_embedder)
    with TestClient(app) as own:
        found = vectors(own, input=["x", "yy"])
        np.testing.assert_array_equal(found, vectors(client, input=["a question: x", "a question: yy"]))
        np.testing.assert_allclose(found, model.embed(["x", "yy"]), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(vectors(own, input=[5, 6]), vectors(client, input=[5, 6]))


class Held(Embedder):
    """One whose batches wait to be let go, and are counted."""

    def __init__(self, most: int):
        super().__init__(encoder(), CONTEXT, most)
        self._programs, self.batches, self.go = embedder()._programs, 0, asyncio.Event()

    async def hold(self, f: Any, *args: Any) -> Any:
        await self.go.wait()
        self.batches += 1
        return f(*args)


def test_the_queue_and_the_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text too many is told to come again, one that waits too long is told so, and nobody computes for who left."""

    async def ask(app: Any, sent: list[Any], left: asyncio.Event, **body: Any) -> None:
        messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers, "query_string": b""}
        await app(scope, receive, send)

    async def main() -> tuple[list[Any], Held]:
        own = Held(20)
        monkeypatch.setattr("lm.serve.embeddings.asyncio.to_thread", to_thread := asyncio.to_thread)
        monkeypatch.setattr(own, "_embed", own._embed)

        async def held(f: Any, *args: Any) -> Any:
            return await (own.hold(f, *args) if f == own._embed else to_thread(f, *args))

        monkeypatch.setattr("lm.serve.embeddings.asyncio.to_thread", held)
        app = application(encoder(), "tiny", None, Limits(seconds=0.3), embedder=own)
        gone, never, answers = asyncio.Event(), asyncio.Event(), [[], [], [], []]  # type: ignore[var-annotated]
        async with app.router.lifespan_context(app):
            first = asyncio.create_task(ask(app, answers[0], never, input=["a"] * 8))  # a batch, which is held
            await asyncio.sleep(0.02)
            leaves = asyncio.create_task(ask(app, answers[1], gone, input=["b"] * 20))
            while own.waiting < 20:
                await asyncio.sleep(0.001)
            await ask(app, answers[2], never, input="c")
            gone.set()
            await asyncio.gather(first, leaves)
            own.go.set()
            await ask(app, answers[3], never, input="d")
        return answers, own

    answers, own = asyncio.run(main())
    assert [sent[0]["status"] for sent in answers] == [504, 499, 429, 200]
    assert own.batches == 2  # the one that was under way, and d


def test_a_model_that_fails_is_said_and_the_server_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Embedder(encoder(), CONTEXT)
    own._programs = {**embedder()._programs, 32: lambda ids, mask: np.full((8, 16), np.nan)}  # type: ignore[dict-item]
    with served(own) as client:
        answer = client.post("/v1/embeddings", json={"input": "a"})
        assert answer.status_code == 500 and "NaN" in answer.json()["error"]["message"]
        own._programs[32] = lambda ids, mask: 1 // 0
        answer = client.post("/v1/embeddings", json={"input": "a"})
        assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]["message"]
        assert client.post("/v1/embeddings", json={"input": "x" * 40}).status_code == 200
