"""/inspect: pages of what the model has inside for a text, made beside the engine, one after the other."""

import asyncio
import logging
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from lm.pretrained.fill import encode
from lm.pretrained.inside import WhatIf, html, inside
from lm.serve.call import Served, model_name, refusing
from lm.serve.fields import ApiError, Fields
from lm.serve.metrics import Metrics
from lm.serve.worker import late

LOG = logging.getLogger("uvicorn.error")
HEADS, NAME = 64, 32  # heads that are zeroed at most, and characters of the name of one
OPTION = re.compile(r"--([a-z-]+)")  # of `lm inspect`, which the fields of a body are called after


@dataclass(frozen=True)
class Inspection:
    """What a body of /inspect asks for: the arguments of `lm.pretrained.inside.inside`."""

    text: str
    other_order: str
    output: str
    what_if: WhatIf


def inspection(served: Served, fields: Fields) -> Inspection:
    """The inspection that a body asks for. Raises ApiError for fields that are not known, and for a text that is longer
    than this server looks into."""
    model_name(served, fields)
    text, other_order, output, other = map(fields.text, ("text", "other_order", "output", "patch_from"))
    what_if = WhatIf(fields.strings("zero", HEADS, NAME), other)
    fields.finish()
    most = served.limits.inspect_tokens
    if not most:
        raise ApiError(403, "this server looks into no texts")
    for name, given in (("text", text), ("output", output), ("patch_from", other)):
        with refusing(name):
            n = len(encode(served.model, given)) if given else 0
        if n > most:
            message = f"{name} has {n:,} tokens: this server looks into at most {most:,}"
            raise ApiError(400, message, name, "context_length_exceeded")
    return Inspection(text, other_order, output, what_if)


@dataclass
class Inspector:
    """Makes the pages, one at a time in a thread of its own, while the engine goes on in its; `most_waiting` may
    wait."""

    served: Served
    metrics: Metrics
    most_waiting: int = 8
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "inspect"), init=False)
    _open: list["Future[str]"] = field(default_factory=list, init=False)

    async def page(self, asked: Inspection) -> str:
        """The page. One that waits is not made where who asked has left. Raises ApiError where too many wait, it takes
        too long, or `asked` is not possible."""
        self._open = [one for one in self._open if not one.done()]
        if len(self._open) > self.most_waiting:
            message = f"{len(self._open)} texts are being looked into: try again later"
            raise ApiError(429, message, code="queue_full", retry_after="1")
        future, seconds, begun = self._thread.submit(self._make, asked), self.served.limits.seconds, time.perf_counter()
        self._open.append(future)
        try:
            async with asyncio.timeout(seconds):
                page = await asyncio.wrap_future(future)
        except TimeoutError:
            raise late(seconds) from None
        self.metrics.inspected.observe(time.perf_counter() - begun)
        return page

    def close(self) -> None:
        """End after the page that is being made."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, asked: Inspection) -> str:
        try:
            with self.metrics.compiling():
                return html(
                    self.served.name,
                    *inside(self.served.model, asked.text, asked.other_order, asked.output, asked.what_if),
                )
        except ValueError as error:
            message = OPTION.sub(lambda option: option[1].replace("-", "_"), str(error))
            name = message.partition(" ")[0]
            raise ApiError(400, message, name if name in ("text", "output", "patch_from") else None) from None
        except Exception as error:
            LOG.exception("no page")
            raise ApiError(500, f"no page: {type(error).__name__}", x_should_retry="false") from None
