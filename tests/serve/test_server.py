"""What stands around the routes: keys, limits, clients that leave, an engine that fails."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from lm.decode.engine import Engine, Output, Request
from lm.serve.call import Limits
from lm.serve.conversation import engine_of
from lm.serve.start import application, read_keys
from lm.serve.worker import Generation, Reply
from tests.serve import small
from tests.serve.small import BIAS

BODY = {"prompt": "The", "max_tokens": 200, "temperature": 1.0, "seed": 1, "logit_bias": BIAS}


class Slow(Engine):
    """An engine whose steps take a hundredth of a second, and are counted."""

    steps = 0

    def step(self) -> list[Output]:
        time.sleep(0.01)
        self.steps += 1
        return super().step()


def slow() -> Slow:
    return Slow(small.model().model, small.model().params, small.SLOTS)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(stream: bool) -> None:
    """Within a step or two, and none of its tokens are drawn after that."""

    async def leave(engine: Slow) -> int:
        app, left, sent = application(small.model(), "tiny", engine), asyncio.Event(), []
        body = json.dumps({**BODY, "n": 3, "stream": stream}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        async with app.router.lifespan_context(app):
            call = asyncio.create_task(app(scope, receive, send))
            while engine.steps < 5:
                await asyncio.sleep(0.001)
            assert len(engine.running) == 3 and len(sent) >= 2 * stream
            left.set()
            await call
            before = engine.steps
            while engine.busy:
                await asyncio.sleep(0.001)
            return engine.steps - before

    small.warm()
    engine = slow()
    assert asyncio.run(leave(engine)) <= 2
    assert sorted(engine._free) == list(range(small.SLOTS))


def test_a_full_queue_is_said_and_goes_on() -> None:
    with small.client(own=slow(), most_waiting=1) as client, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, "/v1/completions", json={**BODY, "max_tokens": 80}) for _ in range(8)]
        answers = [one.result() for one in asked]
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 3
        full = next(answer for answer in answers if answer.status_code == 429)
        assert full.headers["retry-after"] == "1" and full.json()["error"]["code"] == "queue_full"
        assert client.post("/v1/completions", json={**BODY, "max_tokens": 1}).status_code == 200


def test_limits() -> None:
    small_limits = Limits(body_bytes=4000, new_tokens=250, seconds=0.2)
    with small.client(small_limits, own=slow()) as client:
        late = client.post("/v1/completions", json=BODY)
        assert late.status_code == 504 and "longer than 0.2 seconds" in late.text
        assert late.headers["x-should-retry"] == "false"
        *_, last = client.post("/v1/completions", json={**BODY, "stream": True}).text.strip().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"  # and no [DONE]
        assert client.post("/v1/completions", json={**BODY, "prompt": "x" * 4000}).status_code == 413
        most = client.post("/v1/completions", json={**BODY, "max_tokens": 251})
        assert most.status_code == 400 and "at most 250" in most.text


def test_every_route_but_health_wants_a_key() -> None:
    with small.client(keys=["one", "two"]) as client:
        for route in ("/v1/models", "/metrics", "/props", "/nowhere", "/v1/completions"):
            answer = client.get(route)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        for given, status in (("Bearer two", 200), ("bearer one", 200), ("Bearer three", 401), ("two", 401)):
            assert client.get("/v1/models", headers={"Authorization": given}).status_code == status
        assert client.get("/health").status_code == 200


def test_web_pages_read_nothing_unless_asked_for() -> None:
    page = {"Origin": "https://a.example"}
    with small.client() as client:
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=page).headers
    with small.client(origins=["https://a.example"]) as client:
        allowed = client.get("/v1/models", headers=page).headers["access-control-allow-origin"]
        assert allowed == "https://a.example"


def test_an_engine_that_fails_is_said() -> None:
    engine = slow()

    def step() -> list[Output]:
        raise RuntimeError("no memory")

    with small.client(own=engine) as client:
        engine.step = step  # type: ignore[method-assign]
        answer = client.post("/v1/completions", json=BODY)
        assert answer.status_code == 500 and "the engine failed" in answer.json()["error"]["message"]
        assert client.get("/health").status_code == 503
        assert client.post("/v1/completions", json=BODY).status_code == 503


def test_a_reader_that_does_not_read_is_let_go_of() -> None:
    async def stall(engine: Engine) -> None:
        app = application(small.model(), "tiny", engine, Limits(idle_seconds=0.05))
        messages = [{"type": "http.request", "body": json.dumps({**BODY, "stream": True}).encode()}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(app(scope, receive, send), 10)
            while engine.busy:
                await asyncio.sleep(0.001)

    engine = slow()
    asyncio.run(stall(engine))
    assert not engine.running


def test_what_cannot_be_served_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="--length 301: expected 3 to 300"):
        engine_of(small.model(), 2, 301)
    with pytest.raises(ValueError, match="--slots 0"):
        engine_of(small.model(), 0)
    (tmp_path / "keys").write_text("one\n\n two \n")
    assert read_keys(tmp_path / "keys") == ["one", "two"]
    for bad in ("", "a b\n", "é\n"):
        (tmp_path / "keys").write_text(bad)
        with pytest.raises(ValueError, match="a key a line"):
            read_keys(tmp_path / "keys")


class Ahead:
    """Stands for an EngineThread whose outputs outrun their reader: all are sent before the first is read."""

    def submit(self, requests: list[Request], deliver: Any) -> list[Reply]:
        replies = [Reply(request, deliver) for request in requests]
        for token in range(3):
            for number, reply in enumerate(replies):
                deliver(reply, Output(number, token, 0.0, [], "length" if token == 2 else ""))
        return replies

    def cancel(self, reply: Reply, reason: str = "abort") -> None:
        pass


def test_tokens_behind_a_stop_string_are_not_counted() -> None:
    """Those that were on their way when one of two requests was stopped."""

    async def read() -> tuple[list[tuple[int, int]], dict[str, int]]:
        generation, read = Generation(Ahead(), [Request([1], 3)] * 2, 60.0), []  # type: ignore[arg-type]
        async for index, output in generation:
            read.append((index, output.token))
            if (index, output.token) == (0, 0):
                generation.stop(0)
        return read, generation.usage(1)

    read_tokens, usage = asyncio.run(read())
    assert read_tokens == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert usage["completion_tokens"] == 4
