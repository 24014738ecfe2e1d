"""The official `openai` client against a running `lm serve`: what it reads, streams, retries, and leaves.

    lm serve MODEL --port 8000
    python3 -m venv /tmp/openai && /tmp/openai/bin/pip install openai==3.57.0
    /tmp/openai/bin/python benchmarks/openai_client.py http://127.0.0.1:8000/v1

It imports nothing of ours. Every line that it prints is something that was found as it should be; the first that is not
ends it. `--clients 64 --seconds 60` is the load of its last part.
"""

import argparse
import asyncio
import base64
import enum
import json
import math
import re
import struct
import time
import urllib.request
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import openai
import pydantic

IMPOSSIBLE = {
    "type": "json_schema",
    "json_schema": {"name": "none", "schema": {"type": "integer", "minimum": 2, "maximum": 1}},
}
HELLO: list[Any] = [{"role": "user", "content": "Say hello to the world, and tell it something about yourself."}]


def check(what: str, true: bool) -> None:
    """Say what was found, or end."""
    if not true:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok  {what}", flush=True)


def metric(url: str, name: str) -> float:
    """The sum of a counter or gauge over its labels."""
    page = urllib.request.urlopen(url.removesuffix("/v1") + "/metrics").read().decode()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", page, re.M))


def decodes(client: openai.OpenAI, model: str) -> bool:
    """Whether the model generates text; an encoder says that it does not."""
    try:
        client.completions.create(model=model, prompt="a", max_tokens=1)
    except openai.BadRequestError as error:
        check(f"an encoder says so: {error.body['message']}", "no decoder" in error.body["message"])
        return False
    return True


def completions(client: openai.OpenAI, model: str) -> None:
    """Text from a prompt, whole and streamed."""
    asked: dict[str, Any] = dict(model=model, prompt="The capital", max_tokens=12, temperature=0, logprobs=2)
    whole = client.completions.create(**asked)
    check("a completion has text, usage and log-probabilities", len(whole.choices[0].logprobs.tokens) > 0)
    check("its usage adds up", whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens)
    parts = list(client.completions.create(**asked, stream=True))
    check("its stream is the same text", "".join(p.choices[0].text for p in parts) == whole.choices[0].text)
    echo = client.completions.create(**{**asked, "max_tokens": 1, "logprobs": 1}, echo=True).choices[0]
    check("echo begins with the prompt", echo.text.startswith("The capital"))
    check("the first log-probability is null, the last entry is new", echo.logprobs.token_logprobs[0] is None)
    several = client.completions.create(**{**asked, "prompt": ["a", "b"], "n": 2, "temperature": 1}, seed=1)
    check("two prompts of two choices are four", [c.index for c in several.choices] == [0, 1, 2, 3])


def chats(client: openai.OpenAI, model: str) -> None:
    """Messages, whole, streamed, and by the client's own stream helper."""
    asked: dict[str, Any] = dict(model=model, messages=HELLO, max_tokens=16, seed=3)
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices[0]
    check("a chat answers as the assistant", whole.message.role == "assistant")
    check("with three alternatives a token", all(len(t.top_logprobs) == 3 for t in whole.logprobs.content))
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    check("its stream is the same text", text == whole.message.content)
    check("the last chunk has the usage alone", not parts[-1].choices and parts[-1].usage.completion_tokens > 0)
    with client.chat.completions.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
    check("the stream helper reads it", "".join(deltas) == text)


def png(red: int, green: int, blue: int, size: int = 32) -> str:
    """A PNG of one colour, in a data: URL."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes((red, green, blue)) * size) * size)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def images(client: openai.OpenAI, model: str, url: str) -> None:
    """Images in messages, of a model with a vision tower; others refuse them by name."""
    props = json.loads(urllib.request.urlopen(url.removesuffix("/v1") + "/props").read())

    def about(address: str) -> Any:
        content: Any = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "What is this?"}]
        messages: list[Any] = [{"role": "user", "content": content}]
        return client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)

    for what, address in (("an address", "https://example.org/cat.png"), ("no image", "data:image/png;base64,AA==")):
        try:
            about(address)
        except openai.BadRequestError as error:
            check(f"{what} is refused: {error.body['message'][:90]}", bool(error.body["message"]))
        else:
            check(f"{what} is refused", False)
    if not props["modalities"]["vision"]:
        return
    one, same = about(png(250, 0, 0)), about(png(250, 0, 0))
    check("an image has its tokens", one.usage.prompt_tokens > 4)
    check("the same image has the same answer", one.choices[0].message.content == same.choices[0].message.content)


def embeddings(client: openai.OpenAI, model: str, encoder: bool) -> None:
    """Vectors, in the base64 that the client asks for and decodes, and in numbers; an encoder's are near where meanings
    are."""
    asked: dict[str, Any] = dict(model=model, input=["eating food", "having a meal", "prime numbers"])
    found = client.embeddings.create(**asked)
    vectors = [one.embedding for one in found.data]
    plain = client.embeddings.create(**asked, encoding_format="float")
    check("vectors in base64 are those in numbers", vectors == [one.embedding for one in plain.data])
    check("their usage is that of the texts", found.usage.total_tokens == found.usage.prompt_tokens > 0)
    near, far = (cosine(vectors[0], other) for other in vectors[1:])
    ordered = far <= near or not encoder
    check(f"cosines to 'eating food': {near:.3f} 'having a meal', {far:.3f} 'prime numbers'", ordered)
    try:
        client.embeddings.create(**asked, dimensions=3)
    except openai.BadRequestError as error:
        check(f"dimensions are refused: {error.body['message'][:60]}", error.body["param"] == "dimensions")
    else:
        check("dimensions are refused", False)


def product(a: Sequence[float], b: Sequence[float]) -> float:
    """The inner product."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the angle between two vectors."""
    return product(a, b) / math.sqrt(product(a, a) * product(b, b))


class Mood(enum.Enum):
    """Of two."""

    GOOD = "good"
    BAD = "bad"


class Place(pydantic.BaseModel):
    """In another one, or in none."""

    name: str = pydantic.Field(max_length=12)
    inside: "Place | None"


class Report(pydantic.BaseModel):
    """A bit of everything."""

    mood: Mood
    count: int = pydantic.Field(ge=0, le=99)
    sure: bool | None
    where: Place
    kinds: list[Literal["a", "b"]] = pydantic.Field(max_length=3)


def parsed(client: openai.OpenAI, model: str) -> None:
    """Objects of schemas, by the client's own parse: recursive references, enums, optional fields. Drawn almost evenly,
    since a small model would go into places for ever."""
    for kind in (Place, Report):
        asked: dict[str, Any] = dict(model=model, messages=HELLO, response_format=kind, max_tokens=400, seed=1)
        try:
            found = client.chat.completions.parse(**asked, temperature=5.0).choices[0].message.parsed
        except openai.LengthFinishReasonError:
            check(f"a {kind.__name__} in 400 tokens", False)
        check(f"a {kind.__name__}: {found!r}"[:100], isinstance(found, kind))
    either = {"structured_outputs": {"choice": ["yes", "no"]}}
    text = client.chat.completions.create(model=model, messages=HELLO, extra_body=either).choices[0].message.content
    check(f"one of two choices: {text}", text in ("yes", "no"))


def errors(client: openai.OpenAI, model: str) -> None:
    """What the client raises, and that it does not try again in vain."""
    for what, kind, body in (
        ("a negative temperature", openai.BadRequestError, dict(temperature=-1)),
        ("a field that is not honoured", openai.BadRequestError, dict(extra_body={"best_of": 3})),
        ("a schema that nothing meets", openai.BadRequestError, dict(response_format=IMPOSSIBLE)),
        ("another model", openai.NotFoundError, dict(model="nobody")),
    ):
        try:
            client.chat.completions.create(**{"model": model, "messages": HELLO, "max_tokens": 2, **body})
        except kind as error:
            check(f"{what} is {kind.__name__}: {error.body['message'][:70]}", bool(error.body["message"]))
        else:
            check(f"{what} is {kind.__name__}", False)


def leaving(client: openai.OpenAI, model: str, url: str) -> None:
    """A stream that is closed frees its slot."""
    stream = client.completions.create(
        model=model, prompt="a", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while metric(url, "vllm:num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.02)
    check("a stream that is closed frees its slot", metric(url, "vllm:num_requests_running") == 0)


async def load(url: str, key: str, model: str, clients: int, seconds: float) -> None:
    """Many clients at once: every answer comes, and the same question has one answer."""
    client, until, answers = openai.AsyncOpenAI(base_url=url, api_key=key), time.monotonic() + seconds, {}
    count = 0

    async def ask(i: int) -> None:
        nonlocal count
        while time.monotonic() < until:
            answer = await client.completions.create(
                model=model, prompt=f"Number {i}", max_tokens=4 + i % 13, temperature=0.8, seed=i
            )
            count += 1
            text = answers.setdefault(i, answer.choices[0].text)
            check_quietly(text == answer.choices[0].text)

    await asyncio.gather(*(ask(i) for i in range(clients)))
    check(f"{clients} clients got {count} answers in {seconds:g} s, each the same every time", count >= clients)


def check_quietly(true: bool) -> None:
    """End where the same question had two answers."""
    if not true:
        check("the same question has the same answer", False)


def main() -> None:
    """Everything, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server, with its /v1")
    parser.add_argument("--key", default="none")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.url, api_key=args.key)
    model = client.models.list().data[0].id
    check(f"openai {openai.__version__} finds the model {model}", client.models.retrieve(model).id == model)
    decoder = decodes(client, model)
    embeddings(client, model, not decoder)
    if decoder:
        completions(client, model)
        chats(client, model)
        images(client, model, args.url)
        parsed(client, model)
        errors(client, model)
        leaving(client, model, args.url)
        asyncio.run(load(args.url, args.key, model, args.clients, args.seconds))
    check("nothing was compiled after the warm-up", metric(args.url, "compiles_after_warmup_total") == 0)


if __name__ == "__main__":
    main()
