"""/v1/embeddings: vectors of texts, computed in batches of a few fixed shapes.

A text is padded to the next of a few widths, and read beside others of that width, whoever asked for them, in a batch
whose number of rows belongs to the width. So each shape is compiled once, before the first request, and a vector has
the same bits in any company.
"""

import asyncio
import base64
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from lm.pretrained.model import Pretrained
from lm.serve.call import Served, model_name, prompts_of
from lm.serve.fields import ApiError, Fields, bad

LOG = logging.getLogger("uvicorn.error")
NARROWEST, GROWTH = 32, 4  # tokens of the least width, and from one to the next
BATCH_TOKENS = 256  # of a batch, padding included, where a row is not longer
EMBEDDED = 2048  # tokens of a text, where nothing else is asked for: a long shape compiles for half a minute
FORMATS = ("float", "base64")


@dataclass(eq=False)
class _Waiting:
    """The ids of a text, and where its vector is awaited."""

    ids: Sequence[int]
    width: int
    vector: "asyncio.Future[np.ndarray]"


@dataclass
class Embedder:
    """The vectors of texts of up to `length` tokens; at most `most_waiting` texts wait for theirs at a time."""

    model: Pretrained
    length: int
    most_waiting: int = 2048
    _programs: dict[int, Callable[[np.ndarray, np.ndarray], jax.Array]] = field(default_factory=dict, init=False)
    _waiting: list[_Waiting] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        widths = [NARROWEST]
        while widths[-1] < self.length:
            widths.append(widths[-1] * GROWTH)
        self.widths = [*widths[:-1], self.length]

    @property
    def waiting(self) -> int:
        """Texts without a vector yet."""
        return len(self._waiting)

    def warm_up(self) -> None:
        """Compile every shape."""
        for width in self.widths:
            self._programs[width] = self.model.embedder(max(1, BATCH_TOKENS // width), width)

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._arrived = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End after the batch under way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def vectors(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """[len(rows), n] float32. Raises ApiError where too many texts wait, or the model fails."""
        if len(self._waiting) + len(rows) > self.most_waiting:
            message = f"{len(self._waiting)} texts of at most {self.most_waiting} are waiting: try again later"
            raise ApiError(429, message, code="queue_full", retry_after="1")
        new = [_Waiting(ids, self._width(ids), asyncio.get_running_loop().create_future()) for ids in rows]
        self._waiting += new
        self._arrived.set()
        try:
            return np.stack(await asyncio.gather(*(one.vector for one in new)))
        finally:  # also where who asked has left
            for one in new:
                one.vector.cancel()

    def _width(self, ids: Sequence[int]) -> int:
        return next(width for width in self.widths if len(ids) <= width)

    async def _run(self) -> None:
        """Batch by batch, the oldest text first."""
        while True:
            if not (batch := self._next_batch()):
                self._arrived.clear()
                await self._arrived.wait()
                continue
            vectors: Any
            try:
                vectors = await asyncio.to_thread(self._embed, batch[0].width, [one.ids for one in batch])
            except Exception as error:
                LOG.exception("no vector")
                vectors = [ApiError(500, f"no vector: {type(error).__name__}", x_should_retry="false")] * len(batch)
            for one, vector in zip(batch, vectors, strict=True):
                _settle(one.vector, vector)

    def _next_batch(self) -> list[_Waiting]:
        """The oldest text that is still wanted, and others of its width."""
        self._waiting = [one for one in self._waiting if not one.vector.done()]
        width = self._waiting[0].width if self._waiting else 0
        batch = [one for one in self._waiting if one.width == width][: BATCH_TOKENS // max(width, 1) or 1]
        self._waiting = [one for one in self._waiting if one not in batch]
        return batch

    def _embed(self, width: int, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """[len(rows), n]: of a batch that is filled up with texts of no tokens."""
        ids = np.zeros((max(1, BATCH_TOKENS // width), width), np.int32)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return np.asarray(self._programs[width](ids, mask))[: len(rows)]


def _settle(future: "asyncio.Future[np.ndarray]", vector: Any) -> None:
    if future.done():  # who asked has left
        return
    if isinstance(vector, Exception):
        future.set_exception(vector)
    elif np.isfinite(vector).all():
        future.set_result(vector)
    else:
        future.set_exception(ApiError(500, "the model's states are NaN or infinite", x_should_retry="false"))


def embeddings_call(served: Served, embedder: Embedder, fields: Fields) -> tuple[list[list[int]], str]:
    """The ids of each text of a body of /v1/embeddings, and the format of their vectors. Raises ApiError."""
    model_name(served, fields)
    special = fields.flag("add_special_tokens", True)
    rows = [ids for _, ids in prompts_of(served, fields, "input", special, served.model.vectors.prompt())]
    if len(rows) > embedder.most_waiting:
        bad("input", f"input: {len(rows):,} texts, at most {embedder.most_waiting:,} are taken at a time")
    if (longest := max(map(len, rows))) > embedder.length:
        message = f"a text of {longest:,} tokens is longer than the {embedder.length:,} that are read: shorten it"
        raise ApiError(400, message, "input", "context_length_exceeded")
    kind, width = fields.text("encoding_format", FORMATS[0]), served.model.vectors.size_of(served.model.config)
    if kind not in FORMATS:
        bad("encoding_format", f"encoding_format={kind}: expected {' or '.join(FORMATS)}")
    if fields.integer("dimensions", width, 1, 2**31 - 1) != width:
        bad("dimensions", f"dimensions: this model's vectors have {width}, and are not shortened: leave it out")
    fields.text("user")  # whose request it is, which changes no answer
    fields.finish()
    return rows, kind


def embeddings_answer(served: Served, rows: Sequence[Sequence[int]], vectors: np.ndarray, kind: str) -> dict[str, Any]:
    """As OpenAI's API has it; in base64 a vector is its little-endian float32."""

    def written(vector: np.ndarray) -> Any:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if kind == "base64" else vector.tolist()

    data = [{"object": "embedding", "index": i, "embedding": written(vector)} for i, vector in enumerate(vectors)]
    usage = dict.fromkeys(("prompt_tokens", "total_tokens"), sum(map(len, rows)))
    return {"object": "list", "data": data, "model": served.name, "usage": usage}
