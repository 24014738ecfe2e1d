"""From a loaded model to a server that listens."""

import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from lm.decode.engine import Engine
from lm.pretrained.model import Pretrained
from lm.serve.app import Api, build
from lm.serve.call import Limits, Served
from lm.serve.embeddings import Embedder
from lm.serve.metrics import Metrics
from lm.serve.worker import EngineThread

USUAL = Limits()


def application(
    model: Pretrained,
    name: str,
    engine: Engine | None,
    limits: Limits = USUAL,
    most_waiting: int = 256,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    embedder: Embedder | None = None,
) -> Starlette:
    """The application that serves `model`: its text by an engine, its vectors by an embedder, or both.

    Args:
      model: loaded; it needs a tokenizer.
      name: by which clients call it.
      engine: of the model, where it is a decoder.
      limits: of a request.
      most_waiting: requests that wait for a slot.
      keys, origins: as in `build`.
      embedder: of the model."""
    if model.tokenizer is None:
        raise ValueError("this model came without a tokenizer, which serving needs: put one beside its weights")
    metrics, length = Metrics(name), engine.length if engine else embedder.length if embedder else 0
    if embedder:
        metrics.gauge("embeddings_waiting", "Texts that wait for their vector.", lambda: embedder.waiting)
    thread = EngineThread(engine, metrics, most_waiting) if engine else None
    return build(Api(Served(name, model, model.tokenizer, length, limits), metrics, thread, embedder), keys, origins)


def read_keys(path: Path) -> list[str]:
    """The keys of a file, one a line. Raises ValueError where it has none, or one that no header can have."""
    keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not keys or not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError(f"{path}: expected a key a line, of ASCII characters without spaces")
    return keys


class Server(uvicorn.Server):
    """One that prints the address of its page when it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            print(f"open {page_address(self.config.host, port)} in a browser", flush=True)


def page_address(host: str, port: int) -> str:
    """Where a browser on this machine finds the page of a server that listens at `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def listen(app: Starlette, host: str, port: int, drain_seconds: int) -> None:
    """Serve until SIGTERM or Ctrl-C: then new connections are refused, and those there are answered. Exits where
    it cannot listen at that address."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        timeout_graceful_shutdown=drain_seconds,
        server_header=False,
        ws="none",
    )
    with suppress(KeyboardInterrupt):
        Server(config).run()
