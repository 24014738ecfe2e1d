"""Many clients of a running `lm serve` for a minute, good ones and bad ones: nothing is lost, and it lives.

    lm serve MODEL --port 8000
    python benchmarks/serve_load.py http://127.0.0.1:8000 --clients 64 --seconds 60

It needs Python alone, and imports nothing of ours. Three of four clients ask questions, whole and in streams, and hold
every answer against the first to the same question. The others read slowly, leave in the middle, send bodies that are
too large, are cut off, or are no JSON. In the end no request is running, nothing was compiled after the warm-up, and
the questions still have their answers.
"""

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

LARGE = 9 << 20  # bytes: more than the server takes unless told otherwise
PATIENCE = 120.0  # seconds in which an answer has to be there


@dataclass
class Load:
    """What the clients share: the server, the model, the end of the time, and what came of it."""

    host: str
    port: int
    model: str = ""
    until: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)
    answers: dict[int, Any] = field(default_factory=dict)
    slowest: float = 0.0
    tokens: int = 0


def fail_unless(true: bool, what: str) -> None:
    """End where something is not as it should be."""
    if not true:
        raise SystemExit(f"FAILED: {what}")


def request(path: str, body: bytes, length: int | None = None) -> bytes:
    """The bytes of a request: POST where there is a body."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: load", "Connection: close"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def call(load: Load, path: str, body: Any = None) -> tuple[int, bytes]:
    """(status, body) of a request with a body of bytes or JSON."""
    reader, writer = await asyncio.open_connection(load.host, load.port)
    try:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        writer.write(request(path, data))
        async with asyncio.timeout(PATIENCE):
            return answer(await reader.read())
    finally:
        writer.close()


def answer(data: bytes) -> tuple[int, bytes]:
    """(status, body) of a whole HTTP answer, joined where it is in chunks."""
    head, _, rest = data.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        parts = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            parts.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        fail_unless(not parts[-1], "a stream ends with an empty chunk")
        rest = b"".join(parts)
    return int(head.split()[1]), rest


# ---------------------------------------------------------------- good clients


def question(load: Load, number: int) -> dict[str, Any]:
    """Questions of several lengths and options, whose answers are certain: each has a seed."""
    options: dict[str, Any] = {"temperature": 0.9, "seed": number, "max_tokens": 4 + 5 * (number % 7)}
    options |= {"logprobs": number % 4} if number % 3 == 0 else {}
    options |= {"top_k": 20, "repetition_penalty": 1.1} if number % 5 == 0 else {}
    return {"model": load.model, "prompt": f"Number {number}. " * (1 + number % 9), "n": 1 + number % 2, **options}


async def ask(load: Load, client: int) -> None:
    """Questions until the time is over, in turn as a whole and as a stream."""
    turn = 0
    while time.monotonic() < load.until:
        number, turn, begun = (client * 7 + turn) % 97, turn + 1, time.monotonic()
        stream = (client + turn) % 2 == 0
        body = question(load, number) | ({"stream": True} if stream else {})
        status, data = await call(load, "/v1/completions", body)
        if status == 429:
            load.seen["told to come again"] += 1
            await asyncio.sleep(1)
            continue
        fail_unless(status == 200, f"question {number} has {status}: {data[:200]!r}")
        texts = streamed(data) if stream else [one["text"] for one in whole(load, data, body)]
        fail_unless(load.answers.setdefault(number, texts) == texts, f"question {number} has one answer")
        load.seen["streams" if stream else "answers"] += 1
        load.slowest = max(load.slowest, time.monotonic() - begun)


def whole(load: Load, data: bytes, body: dict[str, Any]) -> list[Any]:
    """The choices of an answer that is complete."""
    found = json.loads(data)
    fail_unless(all(one["finish_reason"] in ("stop", "length") for one in found["choices"]), "every choice has ended")
    fail_unless(len(found["choices"]) == body["n"], "every choice is there")
    load.tokens += found["usage"]["completion_tokens"]
    return list(found["choices"])


def streamed(data: bytes) -> list[str]:
    """The texts of a stream that is complete."""
    *events, last, end = data.decode().split("\n\n")
    fail_unless(last == "data: [DONE]" and not end, f"a stream ends with [DONE]: {last[:200]!r}")
    texts: dict[int, str] = {}
    for event in events:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return [texts[index] for index in sorted(texts)]


# ---------------------------------------------------------------- bad clients


async def disturb(load: Load, client: int) -> None:
    """One kind of mischief after the other."""
    kinds = (slow_reader, leave, too_large, half_a_body, no_json, wrong)
    turn = client
    while time.monotonic() < load.until:
        kind, turn = kinds[turn % len(kinds)], turn + 1
        await kind(load, turn)
        load.seen[kind.__name__.replace("_", " ")] += 1


def long_stream(load: Load, number: int) -> bytes:
    """The request for a stream of many tokens."""
    body = {"model": load.model, "prompt": "a", "max_tokens": 100, "stream": True, "ignore_eos": True, "seed": number}
    return request("/v1/completions", json.dumps(body).encode())


async def slow_reader(load: Load, number: int) -> None:
    """Reads a few bytes at a time, then all the rest: the stream is whole, or was closed."""
    reader, writer = await asyncio.open_connection(load.host, load.port, limit=256)
    writer.write(long_stream(load, number))
    data = b""
    for _ in range(20):
        data += await reader.read(16)
        await asyncio.sleep(0.1)
    data += await reader.read()
    status, body = answer(data)
    fail_unless(status == 429 or body.endswith(b"data: [DONE]\n\n"), "a slow reader gets all")
    writer.close()


async def leave(load: Load, number: int) -> None:
    """Leaves after the first bytes of a stream."""
    reader, writer = await asyncio.open_connection(load.host, load.port)
    writer.write(long_stream(load, number))
    await reader.read(200 + number % 500)
    writer.transport.abort()


async def too_large(load: Load, number: int) -> None:
    """A body larger than the limit has 413, or its connection is closed."""
    try:
        status, _ = await call(load, "/v1/completions", b'{"prompt": "' + b"x" * LARGE + b'"}')
        fail_unless(status == 413, f"a body of {LARGE:,} bytes has {status}")
    except ConnectionError:
        pass
    await asyncio.sleep(0.5)


async def half_a_body(load: Load, number: int) -> None:
    """Promises more than it sends, and leaves."""
    _, writer = await asyncio.open_connection(load.host, load.port)
    writer.write(request("/v1/completions", b'{"prompt": "a', length=1000))
    await asyncio.sleep(0.2)
    writer.transport.abort()


async def no_json(load: Load, number: int) -> None:
    """Bytes that are no JSON, and JSON that is no object."""
    bodies = (b'{"prompt": "a",}', b"\xff\xfe\x00", b"[" * 5000, b"null", b'{"prompt": "a", "temperature": NaN}')
    status, data = await call(load, "/v1/completions", bodies[number % len(bodies)])
    fail_unless(status == 400 and "error" in json.loads(data), f"no JSON has {status}")
    await asyncio.sleep(0.05)


async def wrong(load: Load, number: int) -> None:
    """Fields, models and routes that are not there."""
    bodies = ({"prompt": {}}, {"prompt": "a", "n": "two"}, {"prompt": "a", "best_of": 3}, {"prompt": [10**9]})
    status, data = await call(load, "/v1/completions", bodies[number % len(bodies)])
    fail_unless(status == 400 and "error" in json.loads(data), f"a wrong body has {status}")
    for path, body in (("/v1/nothing", {}), ("/v1/completions", {"prompt": "a", "model": "nobody"})):
        status, _ = await call(load, path, body)
        fail_unless(status == 404, f"what is not there has {status}")


# ---------------------------------------------------------------- all of them


async def metric(load: Load, name: str) -> float:
    """The sum of a counter or gauge over its labels."""
    _, page = await call(load, "/metrics")
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", page.decode(), re.M))


async def main() -> None:
    """The clients, and the state of the server afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    url = urlsplit(args.url)
    load = Load(url.hostname or "127.0.0.1", url.port or 80)
    load.model = json.loads((await call(load, "/v1/models"))[1])["data"][0]["id"]
    load.until = time.monotonic() + args.seconds
    bad = [disturb(load, i) for i in range(args.clients // 4)]
    await asyncio.gather(*bad, *(ask(load, i) for i in range(args.clients - len(bad))))
    print(", ".join(f"{count} {what}" for what, count in sorted(load.seen.items())))
    print(f"{len(load.answers)} questions; the slowest answer took {load.slowest:.1f} s")
    deadline = time.monotonic() + 30
    while await metric(load, "vllm:num_requests_running") and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    state = {name: await metric(load, name) for name in ("vllm:num_requests_running", "vllm:num_requests_waiting")}
    state["compiles_after_warmup_total"] = await metric(load, "compiles_after_warmup_total")
    print(", ".join(f"{name} {value:g}" for name, value in state.items()))
    fail_unless(not any(state.values()), "all of these are 0")
    for number, texts in list(load.answers.items())[:5]:
        _, data = await call(load, "/v1/completions", question(load, number))
        fail_unless([one["text"] for one in json.loads(data)["choices"]] == texts, "an answer alone is that in company")
    print("nothing lost, every answer the same each time, and alone")


if __name__ == "__main__":
    asyncio.run(main())
