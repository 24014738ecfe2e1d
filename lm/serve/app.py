"""The routes, and what stands around them: keys, limits, errors, streams, clients that leave."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm.page.chat import chat_page, page_headers
from lm.serve import answers
from lm.serve.answers import ChatCompletion, Completion
from lm.serve.call import Call, Served, chat_completion, completion, model_name
from lm.serve.embeddings import Embedder, embeddings_answer, embeddings_call
from lm.serve.fields import ApiError, Fields, bad, ids_of, parse
from lm.serve.inspector import Inspector, inspection
from lm.serve.metrics import Metrics
from lm.serve.worker import EngineThread, Generation, late
from lm.text.chat import chat_template_of
from lm.text.protocol import ROLES

LOG = logging.getLogger("uvicorn.error")
CACHE = "no-store"
OPEN = ("/", "/health")  # routes that want no key: the page asks for it, and holds nothing of the model


class Api:
    """The routes of one served model: those of a decoder where there is a `thread`, those of vectors where there is an
    `embedder`."""

    def __init__(self, served: Served, metrics: Metrics, thread: EngineThread | None, embedder: Embedder | None):
        self.served, self.metrics, self._thread, self._embedder = served, metrics, thread, embedder
        self._inspector = Inspector(served, metrics)

    @property
    def thread(self) -> EngineThread:
        """The engine's. Raises ApiError for a model that has none."""
        if self._thread is None:
            raise ApiError(400, "this model is no decoder: it has embeddings (/v1/embeddings), but generates no text")
        return self._thread

    @property
    def embedder(self) -> Embedder:
        """What gives vectors. Raises ApiError for a server without."""
        if self._embedder is None:
            raise ApiError(400, "this server gives no embeddings")
        return self._embedder

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.metrics_page),
            Route("/props", self.props),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/inspect", self.inspect, methods=["POST"]),
            Route("/apply-template", self.apply_template, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/tokenizer_info", self.tokenizer_info),
        ]

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """The engine's thread and the embedder run while the server does."""
        if self._thread:
            self._thread.start()
        if self._embedder:
            self._embedder.start()
        self.metrics.watch_compiler()
        yield
        if self._thread:
            await asyncio.to_thread(self._thread.close)
        if self._embedder:
            await self._embedder.close()
        await asyncio.to_thread(self._inspector.close)
        self.metrics.unwatch_compiler()

    # ---------------------------------------------------------------- generation

    async def completions(self, request: Request) -> Response:
        self.thread  # noqa: B018 - or it is refused
        call = await asyncio.to_thread(completion, self.served, await self._body(request))
        return await self._generate(request, call, Completion(self.served, call))

    async def chat(self, request: Request) -> Response:
        self.thread  # noqa: B018 - or it is refused
        call = await asyncio.to_thread(chat_completion, self.served, await self._body(request))
        return await self._generate(request, call, ChatCompletion(self.served, call))

    async def _generate(self, request: Request, call: Call, shape: Completion) -> Response:
        requests, capacity = call.requests(), self.thread.capacity
        if len(requests) > capacity:
            bad("n", f"{len(requests)} choices of all prompts: this server takes at most {capacity} at a time")
        generation = Generation(self.thread, requests, self.served.limits.seconds)
        if call.stream:
            return EventStream(answers.chunks(shape, generation), generation)
        try:
            return JSONResponse(await _unless_gone(request, answers.whole(shape, generation)))
        finally:
            generation.cancel()

    async def embeddings(self, request: Request) -> Response:
        body, seconds, begun = await self._body(request), self.served.limits.seconds, time.perf_counter()
        rows, kind = await asyncio.to_thread(embeddings_call, self.served, self.embedder, body)
        try:
            async with asyncio.timeout(seconds):
                vectors = await _unless_gone(request, self.embedder.vectors(rows))
        except TimeoutError:
            raise late(seconds) from None
        answer = embeddings_answer(self.served, rows, vectors, kind)
        self.metrics.embedded(answer["usage"]["prompt_tokens"])
        timings = {"prompt_ms": round(1e3 * (time.perf_counter() - begun), 3)}
        return JSONResponse(answer | {"timings": timings})

    async def _body(self, request: Request) -> Fields:
        """The fields of a body within the limits. Raises ApiError for others."""
        limits = self.served.limits
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"Content-Type {kind or 'is missing'}: expected application/json")
        data = bytearray()
        try:
            async with asyncio.timeout(limits.idle_seconds):
                async for part in request.stream():
                    data += part
                    if len(data) > limits.body_bytes:
                        raise ApiError(413, f"the body is longer than {limits.body_bytes:,} bytes, this server's limit")
        except TimeoutError:
            message = f"the body took longer than {limits.idle_seconds:g} seconds"
            raise ApiError(408, message, x_should_retry="false") from None
        return parse(bytes(data))

    # ---------------------------------------------------------------- pages

    async def page(self, request: Request) -> Response:
        """The page of a chat, which is the same for every model."""
        return HTMLResponse(chat_page(), headers=page_headers())

    async def inspect(self, request: Request) -> Response:
        """The page of `lm inspect`, of a text."""
        asked = await asyncio.to_thread(inspection, self.served, await self._body(request))
        page = await _unless_gone(request, self._inspector.page(asked))
        return HTMLResponse(page, headers={**page_headers(), "Cache-Control": CACHE})

    # ---------------------------------------------------------------- tokens

    async def apply_template(self, request: Request) -> Response:
        """As llama.cpp's: the text of messages, as the model's template writes them."""
        fields = await self._body(request)
        model_name(self.served, fields)
        prompt, _ = await asyncio.to_thread(self.served.chat, fields)
        fields.finish()
        return JSONResponse({"prompt": prompt})

    async def tokenize(self, request: Request) -> Response:
        """As vLLM's: the ids of a prompt, or of messages."""
        fields = await self._body(request)
        model_name(self.served, fields)
        prompt = fields.take("prompt", None, "a text", str)
        special, names = fields.flag("add_special_tokens", prompt is not None), fields.flag("return_token_strs")
        if (prompt is None) != ("messages" in fields.left):
            bad("prompt", "expected either prompt or messages")
        text, files = (prompt, []) if prompt is not None else self.served.chat(fields)
        ids = self.served.encode_chat(text, len(files), special)
        fields.finish()
        texts = {"token_strs": [self.served.tokenizer.piece(id) for id in ids]} if names else {}
        return JSONResponse({"count": len(ids), "max_model_len": self.served.length, "tokens": ids, **texts})

    async def detokenize(self, request: Request) -> Response:
        fields = await self._body(request)
        model_name(self.served, fields)
        ids = ids_of("tokens", fields.take("tokens", [], "token ids", list), self.served.tokenizer.vocab_size)
        fields.finish()
        return JSONResponse({"prompt": self.served.tokenizer.decode(ids)})

    async def tokenizer_info(self, request: Request) -> Response:
        """The names of control tokens by role, and the chat template, as in a tokenizer_config.json."""
        tokenizer = self.served.tokenizer
        names = {f"{role}_token": None for role in ROLES} | tokenizer.special_tokens()
        about = {"tokenizer_class": type(tokenizer).__name__, "vocab_size": tokenizer.vocab_size}
        about |= {"model_max_length": self.served.length, "add_bos_token": tokenizer.bos in self.served.encode("")[:1]}
        return JSONResponse({**names, **about, "chat_template": self._template})

    @property
    def _template(self) -> str | None:
        tokenizer = self.served.tokenizer
        return chat_template_of(tokenizer) if tokenizer.chat_template else None

    # ---------------------------------------------------------------- the server

    async def health(self, request: Request) -> Response:
        fault = self._thread.failure if self._thread else ""
        return JSONResponse({"status": fault or "ok"}, 503 if fault else 200)

    async def metrics_page(self, request: Request) -> Response:
        return Response(self.metrics.page(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._about_model()]})

    async def model(self, request: Request) -> Response:
        model_name(self.served, Fields({"model": request.path_params["name"]}))
        return JSONResponse(self._about_model())

    def _about_model(self) -> dict[str, Any]:
        own = {"id": self.served.name, "object": "model", "created": 0, "owned_by": "lm"}
        return {**own, "max_model_len": self.served.length}

    async def props(self, request: Request) -> Response:
        """What this server is set to, by llama.cpp's names."""
        settings = {"n_ctx": self.served.length, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        limits, thread = asdict(self.served.limits), self._thread
        limits |= {"most_waiting": thread.most_waiting} if thread else {}
        if vectors := self._embedder:
            limits |= {"most_texts": vectors.most_waiting, "text_tokens": vectors.length}
        return JSONResponse(
            {
                "model_alias": self.served.name,
                "total_slots": thread.engine.slots if thread else 0,
                "default_generation_settings": settings,
                "limits": limits,
                "modalities": {"vision": self.served.model.config.vision is not None and thread is not None},
                "chat_template": self._template,
                "eos_token_ids": list(self.served.model.stop_ids),
            }
        )


async def _unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """The answer. Raises ClientDisconnect where the client leaves before it is there."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(answer), asyncio.ensure_future(leave())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(StreamingResponse):
    """Server-sent events, of which the last is [DONE]; slots are freed when it ends or its client leaves."""

    def __init__(self, chunks: AsyncIterator[dict[str, Any]], generation: Generation):
        super().__init__(_events(chunks), media_type="text/event-stream", headers={"Cache-Control": CACHE})
        self.generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.generation.cancel()


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    try:
        async for chunk in chunks:
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except ApiError as error:  # after the status was sent
        yield _event(error.body)


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False, allow_nan=False)}\n\n"


# -------------------------------------------------------------------- around the routes


class Keys:
    """Every route but those that are OPEN wants one of `keys` in its Authorization header."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self.app, self.keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._known(dict(scope["headers"])):
            await self.app(scope, receive, send)
            return
        error = ApiError(401, "no valid key: send Authorization: Bearer KEY", code="invalid_api_key")
        await JSONResponse(error.body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _known(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and any(hmac.compare_digest(given.strip(), key) for key in self.keys)


class Patience:
    """A client that reads nothing for `seconds` is let go of."""

    def __init__(self, app: ASGIApp, seconds: float):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        late = False

        async def timed(message: Message) -> None:
            nonlocal late
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except TimeoutError:
                late = True
                raise

        try:
            await self.app(scope, receive, timed)
        except TimeoutError:
            if not late:
                raise
            LOG.warning("a client read nothing for %g seconds: its connection is closed", self.seconds)


async def _told(request: Request, error: Exception) -> Response:
    """The answer to an error that is a client's."""
    if isinstance(error, ApiError):
        return JSONResponse(error.body, error.status, error.headers)
    if isinstance(error, HTTPException):
        status, message = error.status_code, f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(ApiError(status, message).body, status, error.headers)
    return Response(status_code=499)  # its client has left


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, "the server failed: see its log", x_should_retry="false").body, 500)


def build(api: Api, keys: Sequence[str] = (), origins: Sequence[str] = ()) -> Starlette:
    """The application.

    Args:
      api: its routes, whose engine and embedder are not started.
      keys: of which every request has to have one, where there are any.
      origins: web pages' that may read the answers; none unless asked for."""
    around = [Middleware(Patience, api.served.limits.idle_seconds)]
    around += [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])] * bool(
        origins
    )
    around += [Middleware(Keys, keys)] * bool(keys)
    handlers: dict[Any, Callable[..., Any]] = dict.fromkeys((ApiError, HTTPException, ClientDisconnect), _told)
    handlers[Exception] = _failed
    return Starlette(routes=api.routes, middleware=around, exception_handlers=handlers, lifespan=api.lifespan)
