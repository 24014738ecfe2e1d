"""What a run notes of its model's inside on the way: inside.jsonl (lm/inspect/watching.py), and its probes
(lm/inspect/probes.py)."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.inspect.probes import MOST_TOKENS, drop_probes_after, save_probes
from lm.inspect.watching import Watching, repeated_tokens
from lm.machine import processes
from lm.machine.monitor import keep_until
from lm.model.inputs import Inputs
from lm.pretrained.fill import encode
from lm.pretrained.model import Pretrained
from lm.run.prepared import Prepared

FILE = "inside.jsonl"


class Watcher:
    """Notes in the run's folder what `watch` asks for, from step `start` on. A collective: all processes call it.

    Raises ValueError where the mesh splits a row, of which no device then has the attention, and for a probe that the
    model cannot read."""

    def __init__(self, watch: Watching, prepared: Prepared, folder: Path, start: int):
        if prepared.mesh.shape.get("context", 1) > 1:
            raise ValueError("watch reads attention of whole rows, and mesh.context splits them: leave one of them out")
        self.watch, self.folder, self.file = watch, folder, folder / FILE
        model, data = prepared.model, prepared.data
        batch = next(iter(data.heldout(data.sources[0], watch.rows)))
        self.text = Inputs.of(batch) if "tokens" in batch and not model.cfg.has_encoder else None
        length = min(watch.repeated, model.cfg.context // 2)
        repeats = length > 1 and not model.cfg.has_encoder
        known = (
            np.unique(batch["tokens"]) if "tokens" in batch else np.arange(model.cfg.vocab)
        )  # others may be untrained
        self.repeated = repeated_tokens(known, watch.rows, length) if repeats else None

        self.probes = [_probe(prepared, text) for text in watch.probes]
        self._read, self._probe = prepared.read_inside, prepared.read_probes
        if processes.is_first():
            keep_until(self.file, start)
            drop_probes_after(folder, start)

    def due(self, n: int) -> bool:
        """Whether anything is noted of step n."""
        return n % self.watch.every_steps == 0 or self._probes_due(n)

    def _probes_due(self, n: int) -> bool:
        return bool(self.probes) and n % self.watch.probe_every_steps == 0

    def note(self, n: int, params: Any, frozen: Any) -> None:
        """Note the model after step n, what is due of it."""
        if n % self.watch.every_steps == 0:
            self._note(n, jax.device_get(self._read(params, frozen, self.text, self.repeated)))
        if self._probes_due(n):
            tokens = [jnp.asarray(one["tokens"]) for one in self.probes]
            found = jax.device_get(self._probe(params, frozen, tokens))
            if processes.is_first():
                save_probes(self.folder, n, self.probes, found)

    def _note(self, n: int, found: dict[str, Any]) -> None:
        if processes.is_first():
            values = {name: np.round(np.asarray(x, np.float64), 5).tolist() for name, x in found.items()}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": n, **values}) + "\n")


def _probe(prepared: Prepared, text: str) -> dict[str, Any]:
    """A text as it is read. Raises ValueError for one that is not."""
    cfg, data = prepared.model.cfg, prepared.data
    if cfg.has_encoder:
        raise ValueError(
            "watch.probes are for models of one text, and this one has an encoder and a decoder: leave them out"
        )
    model = Pretrained(cfg, {}, data.tokenizer, prepared.model, markers=data.objective.markers(data.context))
    ids, most = encode(model, text), min(MOST_TOKENS, cfg.context)
    if not 0 < len(ids) <= most:
        raise ValueError(f"watch.probes: {text[:40]!r} has {len(ids):,} tokens: expected 1 to {most}")
    pieces = [data.tokenizer.piece(id) if id < data.tokenizer.vocab_size else f"<{id}>" for id in ids]
    layers = [i for i, slot in enumerate(cfg.by_layer) if not slot.mixer.recurrent]
    return dict(text=text, pieces=pieces, tokens=np.array(ids, np.int32), layers=np.array(layers))
