"""The thread that runs the engine's steps, and the requests that asyncio hands it."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from lm.decode.engine import Engine, Output, Request
from lm.serve.fields import ApiError
from lm.serve.metrics import Metrics

LOG = logging.getLogger("uvicorn.error")


@dataclass(eq=False)
class Reply:
    """One request on its way: its number in the engine, and when things happened (seconds; 0: not yet)."""

    request: Request
    deliver: Callable[["Reply", Output | Exception], None]
    number: int = -1
    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    ended: bool = False


@dataclass
class EngineThread:
    """Runs `engine` in a thread of its own; its methods are called in the event loop. Beside the requests in slots,
    `most_waiting` may wait."""

    engine: Engine
    metrics: Metrics
    most_waiting: int = 256
    failure: str = ""
    _inbox: "queue.SimpleQueue[Callable[[], None]]" = field(default_factory=queue.SimpleQueue)
    _open: set[Reply] = field(default_factory=set)
    _replies: dict[int, Reply] = field(default_factory=dict)  # the thread's own
    _closed: bool = False

    def __post_init__(self) -> None:
        engine, gauge = self.engine, self.metrics.gauge
        gauge("vllm:num_requests_running", "Requests in slots.", lambda: len(engine.running))
        gauge("vllm:num_requests_waiting", "Requests that wait for a slot.", self._waiting)
        gauge("vllm:kv_cache_usage_perc", "The part of the cache that is in use; 1: all.", self._usage)

    def _waiting(self) -> int:
        return max(0, len(self._open) - len(self.engine.running))

    def _usage(self) -> float:
        used = sum(one.read + one.given for one in list(self.engine.running))
        return used / (self.engine.slots * self.engine.length)

    @property
    def capacity(self) -> int:
        """The most requests at a time."""
        return self.engine.slots + self.most_waiting

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End after the step under way."""
        self._closed = True
        self._inbox.put(lambda: None)
        self._thread.join()

    def submit(self, requests: Sequence[Request], deliver: Callable[[Reply, Output | Exception], None]) -> list[Reply]:
        """All of `requests`, or none. Raises ApiError where they are too many."""
        if self.failure:
            raise ApiError(503, self.failure)
        if len(self._open) + len(requests) > self.capacity:
            message = f"{len(self._open)} requests of at most {self.capacity} are being served: try again later"
            raise ApiError(429, message, code="queue_full", retry_after="1")
        replies = [Reply(request, deliver) for request in requests]
        self._open.update(replies)
        for reply in replies:
            self._inbox.put(lambda reply=reply: self._begin(reply))  # type: ignore[misc]
        return replies

    def cancel(self, reply: Reply, reason: str = "abort") -> None:
        """Free the reply's slot, before the next step; one that has ended stays as it is."""
        if reply in self._open:
            self._finish(reply, reason)
            self._inbox.put(lambda: self._drop(reply))

    def _finish(self, reply: Reply, reason: str) -> None:
        self._open.discard(reply)
        reply.ended = True
        self.metrics.ended(reason)
        self.metrics.whole.observe(time.perf_counter() - reply.submitted)
        self.metrics.request_prompt.observe(len(reply.request.prompt))
        self.metrics.request_generated.observe(reply.tokens)

    def _receive(self, given: list[tuple[Reply, Output | Exception]]) -> None:
        """What a step gave, in the event loop."""
        for reply, output in given:
            if reply.ended:
                continue
            reply.deliver(reply, output)
            if isinstance(output, Exception):
                self._finish(reply, "error")
            elif output.finish_reason:
                failed = output.finish_reason in ("not finite", "grammar")
                self._finish(reply, "error" if failed else output.finish_reason)

    # ---------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            while not self._closed:
                self._take()
                if self.engine.busy:
                    self._step()
        except Exception as error:
            LOG.exception("the engine failed")
            self.failure = f"the engine failed: {type(error).__name__}"
            self._send([(reply, ApiError(500, self.failure)) for reply in list(self._open)])

    def _take(self) -> None:
        """Do what the event loop asked for; wait for something while there are no requests."""
        block = not self.engine.busy
        while True:
            try:
                self._inbox.get(block)()
            except queue.Empty:
                return
            block = False

    def _begin(self, reply: Reply) -> None:
        try:
            reply.number = self.engine.submit(reply.request)
        except ValueError as error:
            self._send([(reply, ApiError(400, str(error)))])
        else:
            self._replies[reply.number] = reply

    def _drop(self, reply: Reply) -> None:
        if self._replies.pop(reply.number, None):
            self.engine.cancel(reply.number)

    def _step(self) -> None:
        before = time.perf_counter()
        outputs = self.engine.step()
        now = time.perf_counter()
        for number in [*(one.number for one in self.engine.running), *(output.number for output in outputs)]:
            if not self._replies[number].started:
                self._start(self._replies[number], before)
        given: list[tuple[Reply, Output | Exception]] = []
        for output in outputs:
            reply = self._replies.pop(output.number) if output.finish_reason else self._replies[output.number]
            self._count(reply, now)
            given.append((reply, output))
        self._send(given)

    def _start(self, reply: Reply, now: float) -> None:
        reply.started = now
        self.metrics.queued.observe(max(0.0, now - reply.submitted))
        self.metrics.prompt_tokens.inc(len(reply.request.prompt))

    def _count(self, reply: Reply, now: float) -> None:
        if reply.tokens:
            self.metrics.between_tokens.observe(now - reply.last)
        else:
            reply.first = now
            self.metrics.first_token.observe(now - reply.submitted)
        reply.last, reply.tokens = now, reply.tokens + 1
        self.metrics.generation_tokens.inc()

    def _send(self, given: list[tuple[Reply, Output | Exception]]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._receive, given)
        except RuntimeError:  # the event loop is closed, and nobody listens
            self._closed = True


def late(seconds: float) -> ApiError:
    """What a client is told whose request took too long."""
    message = f"the request took longer than {seconds:g} seconds, this server's limit"
    return ApiError(504, message, code="timeout", x_should_retry="false")


class Generation:
    """The outputs of several requests, as they come, until a time limit."""

    def __init__(self, thread: EngineThread, requests: Sequence[Request], seconds: float):
        self.thread, self.seconds = thread, seconds
        self._outputs: asyncio.Queue[tuple[Reply, Output | Exception]] = asyncio.Queue()
        self.replies = thread.submit(requests, lambda *item: self._outputs.put_nowait(item))
        self.deadline = asyncio.get_running_loop().time() + seconds
        self.counts = [0] * len(self.replies)
        self._open = set(range(len(self.replies)))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Output]]:
        """(index of the request, output). Raises ApiError where the engine or the time fails."""
        while self._open:
            try:
                async with asyncio.timeout_at(self.deadline):
                    reply, output = await self._outputs.get()
            except TimeoutError:
                raise late(self.seconds) from None
            if isinstance(output, Exception):
                raise output
            if output.finish_reason == "not finite":
                raise ApiError(500, "the model's logits are NaN or infinite", x_should_retry="false")
            if output.finish_reason == "grammar":
                raise ApiError(400, "the grammar is too large to be followed: simplify it", code="grammar_too_large")
            index = self.replies.index(reply)
            if index in self._open:  # not stopped by its reader
                self.counts[index] += 1
                self._open -= {index} if output.finish_reason else set()
                yield index, output

    def stop(self, index: int) -> None:
        """End one of the requests, whose text is complete."""
        self._open.discard(index)
        self.thread.cancel(self.replies[index], "stop")

    def cancel(self) -> None:
        """Free the slots of all."""
        for reply in self.replies:
            self.thread.cancel(reply)

    def usage(self, prompt_tokens: int) -> dict[str, int]:
        """OpenAI's counts, of `prompt_tokens` and the tokens so far."""
        new = sum(self.counts)
        return {"prompt_tokens": prompt_tokens, "completion_tokens": new, "total_tokens": prompt_tokens + new}

    def timings(self, prompt_tokens: int) -> dict[str, float]:
        """llama.cpp's names: milliseconds of the slowest in the queue, with the prompt, with its tokens."""
        replies, new = self.replies, sum(self.counts)
        queued = 1e3 * max(reply.started - reply.submitted for reply in replies)
        reading = 1e3 * max(reply.first - reply.started for reply in replies)
        drawing = 1e3 * max(reply.last - reply.first for reply in replies)
        return {
            "queue_ms": round(max(0.0, queued), 3),
            "prompt_n": prompt_tokens,
            "prompt_ms": round(reading, 3),
            "prompt_per_second": round(1e3 * prompt_tokens / max(reading, 1e-3), 3),
            "predicted_n": new,
            "predicted_ms": round(drawing, 3),
            "predicted_per_second": round(1e3 * max(0, new - len(replies)) / max(drawing, 1e-3), 3),
        }
