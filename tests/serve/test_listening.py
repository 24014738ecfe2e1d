"""A server at a port: what only real connections show."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from lm.serve import start
from lm.serve.start import application, listen
from tests.serve import small
from tests.serve.test_server import BODY, Slow, slow


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """The SIGTERMs that reach this process after the server has seen them."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGTERM, before)


def served(engine: Slow, client: Callable[[int], Any]) -> Any:
    """What `client` of a port gives, while a server listens there until SIGTERM."""
    small.warm()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, given = free.getsockname()[1], []

    def run() -> None:
        try:
            until(lambda: ask(port, "GET", "/health")[0] == 200)
            given.append(client(port))
        except Exception as error:
            given.append(error)
        finally:
            if isinstance(given[-1], Exception):
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    listen(application(small.model(), "tiny", engine), "127.0.0.1", port, 30)
    thread.join()
    if isinstance(given[0], Exception):
        raise given[0]
    return given[0]


def ask(port: int, method: str, path: str, **body: Any) -> tuple[int, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except ConnectionError:  # refused, or reset while the server ends
        return 0, b""
    finally:
        connection.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_sigterm_lets_requests_finish(signals: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that runs and one that waits get whole answers; who comes later finds nobody. Who listens says where."""
    engine, answers, ports = slow(), [], []
    said: list[str] = []
    monkeypatch.setattr(start, "print", lambda text, flush: said.append(text), raising=False)

    def client(port: int) -> Any:
        ports.append(port)
        body = {**BODY, "max_tokens": 40, "n": 3}
        threads = [threading.Thread(target=lambda: answers.append(ask(port, "POST", "/v1/completions", **body)))]
        threads.append(threading.Thread(target=lambda: answers.append(ask(port, "POST", "/v1/completions", **body))))
        for thread in threads:
            thread.start()
        until(lambda: len(engine.running) == 4)
        until(lambda: bool(engine.waiting))
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: ask(port, "GET", "/health")[0] == 0)
        late = len(answers)
        for thread in threads:
            thread.join()
        return late

    assert served(engine, client) < 2 == len(answers)
    assert [status for status, _ in answers] == [200, 200] and signals == [signal.SIGTERM]
    assert all(json.loads(body)["usage"]["completion_tokens"] == 120 for _, body in answers)
    assert said == [f"open http://127.0.0.1:{ports[0]}/ in a browser"]


def test_a_connection_that_breaks_frees_its_slot(signals: list[int]) -> None:
    engine = slow()

    def client(port: int) -> None:
        for stream in (True, False):
            body = json.dumps({**BODY, "stream": stream}).encode()
            lines = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(lines + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                until(lambda: bool(engine.running))
                if stream:
                    assert connection.recv(100).startswith(b"HTTP/1.1 200")
            before = engine.steps
            until(lambda: not engine.running)
            assert engine.steps - before < 50  # of 200
        os.kill(os.getpid(), signal.SIGTERM)

    served(engine, client)
