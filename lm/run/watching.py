"""A run's inside.jsonl: what it notes of its model's inside on the way (lm/inspect/watching.py)."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.inspect.watching import Watching, inside, repeated_tokens
from lm.machine import processes
from lm.machine.monitor import keep_until
from lm.model.inputs import Inputs
from lm.run.prepared import Prepared
from lm.train.step import with_mesh

FILE = "inside.jsonl"


class Watcher:
    """Notes in the run's folder what `watch` asks for, from step `start` on. A collective: all processes call it.

    Raises ValueError where the mesh splits a row, of which no device then has the attention."""

    def __init__(self, watch: Watching, prepared: Prepared, folder: Path, start: int):
        if prepared.mesh.shape.get("context", 1) > 1:
            raise ValueError("watch reads attention of whole rows, and mesh.context splits them: leave one of them out")
        self.watch, self.file = watch, folder / FILE
        learner, model, data = prepared.learner, prepared.model, prepared.data
        batch = next(iter(data.heldout(data.sources[0], watch.rows)))
        self.text = Inputs.of(batch) if "tokens" in batch and not model.cfg.has_encoder else None
        length = min(watch.repeated, model.cfg.context // 2)
        repeats = length > 1 and not model.cfg.has_encoder
        self.repeated = repeated_tokens(model.cfg.vocab, watch.rows, length) if repeats else None

        def noted(params: Any, frozen: Any, text: Inputs | None, repeated: Any) -> Any:
            return inside(model, learner.model_params(params, frozen), text, repeated)

        self._read = with_mesh(prepared.mesh, jax.jit(noted), layout=prepared.experiment.layout)
        if processes.is_first():
            keep_until(self.file, start)

    def due(self, n: int) -> bool:
        """Whether step n is noted."""
        return n % self.watch.every_steps == 0

    def note(self, n: int, params: Any, frozen: Any) -> None:
        """Note the model after step n."""
        found = jax.device_get(self._read(params, frozen, self.text, self.repeated))
        if not processes.is_first():
            return
        values = {name: np.round(np.asarray(x, np.float64), 5).tolist() for name, x in found.items()}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": n, **values}) + "\n")
