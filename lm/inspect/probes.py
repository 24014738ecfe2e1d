"""Probes: fixed texts of which a run keeps, every so many steps, where each head looked, how long the residual stream
was, and what came next (`Watching.probes`).

    (probe,) = read_probes("runs/quickstart")
    probe.attn_pattern[-1, 3, 5]  # [T, T]: layer 3, head 5, after step probe.steps[-1]
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.inputs import Inputs
from lm.model.output import NoOutput
from lm.model.taps import Watch
from lm.model.transformer import Params, Transformer

FOLDER = "probes"  # in a run's: a file a time
BEST = 20  # tokens of each place whose probabilities are kept
MOST_TOKENS = 256  # of a probe, whose pattern grows with their square


@dataclass(frozen=True, eq=False)
class Probe:
    """A text at each of the `steps` [S] after which it was looked at.

    Args:
      text: the text; `pieces` are its T tokens, `tokens` [T] their ids.
      attn_pattern: [S, L, N, T, T] float16: attention's probabilities by layer and head, from a token to a token.
      layers: [L]: the number of each layer that has attention.
      resid_norm: [S, 1 + layers of the model, T]: the norm of the residual stream after the embedding and each layer.
      best_tokens, best_probs: [S, T, k]: the likeliest tokens at each place, and their probabilities: of what comes
        next, or of an encoder what stands there. Empty (k = 0) for a model without an output.
      next_probs: [S, T - 1]: the probability of each token but the first, given those before; empty for an encoder.
    """

    text: str
    pieces: Sequence[str]
    tokens: np.ndarray
    steps: np.ndarray
    layers: np.ndarray
    attn_pattern: np.ndarray
    resid_norm: np.ndarray
    best_tokens: np.ndarray
    best_probs: np.ndarray
    next_probs: np.ndarray


OVER_STEPS = ("attn_pattern", "resid_norm", "best_tokens", "best_probs", "next_probs")


def probe(model: Transformer, params: Params, tokens: jax.Array) -> dict[str, jax.Array]:
    """What is kept of a text, tokens [T], at one step: the arrays OVER_STEPS without their first axis. Traced."""

    def norm(x: jax.Array) -> jax.Array:
        return jnp.linalg.norm(x[0].astype(jnp.float32), axis=-1)

    reads = {"attn_pattern": lambda x: x[0].astype(jnp.float16), "embedding": norm, "resid_post": norm}
    hidden = replace(model, watch=Watch(reads)).hidden(params, Inputs(tokens[None]))
    T, taps = len(tokens), hidden.taps
    kept = {
        "attn_pattern": taps.get("attn_pattern", jnp.zeros((0, 0, T, T), jnp.float16)),
        "resid_norm": jnp.concatenate([taps["embedding"], taps["resid_post"]]),
    }
    if isinstance(model.cfg.output, NoOutput):
        none = dict(best_tokens=jnp.zeros((T, 0), jnp.int32), best_probs=jnp.zeros((T, 0)), next_probs=jnp.zeros(0))
        return kept | none
    chances = jax.nn.softmax(model.logits(params, hidden.x)[0])
    best, ids = jax.lax.top_k(chances, min(BEST, model.cfg.vocab))
    following = chances[jnp.arange(T - 1), tokens[1:]] if model.cfg.causal else chances[:0, 0]
    return {**kept, "best_tokens": ids, "best_probs": best, "next_probs": following}


def save_probes(run: Path, step: int, texts: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> Path:
    """Write the file of a step, whole or not at all.

    Args:
      run: the run's folder.
      step: after which it was looked.
      texts: of each probe its `text`, `pieces`, `tokens` and `layers`.
      found: of each what `probe` gave.

    Returns: the file's path."""
    arrays = {
        f"{i}.{name}": np.asarray(a)
        for i, one in enumerate(zip(texts, found, strict=True))
        for part in one
        for name, a in part.items()
    }
    file = run / FOLDER / f"{step:08}.npz"
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("wb") as opened:
        np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]
    return part.replace(file)


def drop_probes_after(run: Path, step: int) -> None:
    """Remove the files of later steps, which a run that resumes at `step` writes again."""
    for file in (run / FOLDER).glob("*.npz"):
        if file.stem.isdecimal() and int(file.stem) > step:
            file.unlink()


def read_probes(run: str | Path) -> list[Probe]:
    """The probes of a run's folder, each over the steps at which it was kept. Raises ValueError where there are none,
    or a file is damaged."""
    files = sorted((Path(run).expanduser() / FOLDER).glob("*.npz"), key=lambda file: int(file.stem))
    if not files:
        raise ValueError(f"{run} has no probes: Experiment.watch=Watching(probes=('a text',)) keeps them")
    steps = [_read(file) for file in files]
    texts = [str(one["text"]) for one in steps[-1]]
    at = [[{str(one["text"]): one for one in found}.get(text) for found in steps] for text in texts]
    return [
        _over_steps([int(file.stem) for file, one in zip(files, series, strict=True) if one], [o for o in series if o])
        for series in at
    ]


def _over_steps(steps: list[int], series: list[dict[str, np.ndarray]]) -> Probe:
    last = series[-1]
    text = str(last["text"]), last["pieces"].tolist(), last["tokens"]
    arrays = (np.stack([one[name] for one in series]) for name in OVER_STEPS)
    return Probe(*text, np.array(steps), last["layers"], *arrays)


def _read(file: Path) -> list[dict[str, np.ndarray]]:
    """The arrays of each probe of one file."""
    found: dict[int, dict[str, np.ndarray]] = {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                i, _, name = key.partition(".")
                found.setdefault(int(i), {})[name] = arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file} is damaged: {error}; remove it") from None
    if missing := [
        name
        for one in found.values()
        for name in ("text", "pieces", "tokens", "layers", *OVER_STEPS)
        if name not in one
    ]:
        raise ValueError(f"{file} is damaged: {missing[0]} is missing; remove it")
    return [found[i] for i in sorted(found)]
