"""From a loaded model to a server that listens."""

from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from lm.decode.engine import Engine
from lm.pretrained.model import Pretrained
from lm.serve.app import build
from lm.serve.call import Limits, Served
from lm.serve.metrics import Metrics
from lm.serve.worker import EngineThread

USUAL = Limits()


def application(
    model: Pretrained,
    name: str,
    engine: Engine,
    limits: Limits = USUAL,
    most_waiting: int = 256,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> Starlette:
    """The application that serves `model`.

    Args:
      model: loaded; it needs a tokenizer.
      name: by which clients call it.
      engine: of the model.
      limits: of a request.
      most_waiting: requests that wait for a slot.
      keys, origins: as in `build`."""
    if model.tokenizer is None:
        raise ValueError("this model came without a tokenizer, which serving needs: put one beside its weights")
    served = Served(name, model, model.tokenizer, engine.length, limits)
    return build(served, EngineThread(engine, Metrics(name), most_waiting), keys, origins)


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
