"""From a loaded model to a server that listens."""

from collections.abc import Sequence
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


def listen(app: Starlette, host: str, port: int, drain_seconds: int) -> None:
    """Serve until SIGTERM or Ctrl-C: then new connections are refused, and those there are answered."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        access_log=False,
        timeout_graceful_shutdown=drain_seconds,
        server_header=False,
        ws="none",
    )
