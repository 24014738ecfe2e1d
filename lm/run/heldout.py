"""What a model makes of held-out text: the objective's measures, by source."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from lm.data.loader import Batches
from lm.data.store import TokenStore
from lm.experiment import Experiment
from lm.train.step import place

SUMS = ("loss", "accuracy", "tokens", "next_sentence", "pairs")
Evaluate = Callable[[Any, Any], dict[str, Any]]  # (params, batch) -> sums over the batch


def heldout(
    accumulate: int, evaluate: Evaluate, mesh: Mesh, params: Any, most_tokens: int, data: Batches
) -> dict[str, float]:
    """SOURCE/MEASURE for each of the measures of `data`'s objective, and loss, the mean of the sources' losses.

    At most `most_tokens` a source are read (0: all), in `accumulate` parts of a batch. All processes call it, and get
    the same."""
    out: dict[str, float] = {}
    losses = []
    for source in data.sources:
        sums = _sums(accumulate, evaluate, mesh, params, most_tokens, data, source)
        found = measured(sums, data.stores[source, "heldout"])
        out |= {f"{source}/{name}": found[name] for name in data.objective.measures}
        losses.append(found["loss"])
    return out | {"loss": sum(losses) / len(losses)}


def _sums(
    accumulate: int, evaluate: Evaluate, mesh: Mesh, params: Any, most_tokens: int, data: Batches, source: str
) -> dict[str, float]:
    """The sums of loss and accuracy over what is asked, and how much that is (tokens); of next sentences too."""
    rows = data.batch_rows // accumulate
    sums = dict.fromkeys(SUMS, 0.0)
    for i, batch in enumerate(data.heldout(source, rows)):
        if most_tokens and i and i * rows * data.seq_len >= most_tokens:
            break
        found = jax.device_get(evaluate(params, place(batch, mesh)))
        sums = {name: sums[name] + float(found.get(name, 0.0)) for name in SUMS}
    return sums


def measured(sums: dict[str, float], store: TokenStore) -> dict[str, float]:
    """From the sums over what was asked: loss (nats each), perplexity, accuracy, and the bits per byte of `store`'s
    text, were every token of it but each document's first predicted at that loss; the share of right next sentences."""
    loss = sums["loss"] / max(sums["tokens"], 1.0)
    targets = store.total_tokens - len(store)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": sums["accuracy"] / max(sums["tokens"], 1.0),
        "next_sentence": sums["next_sentence"] / max(sums["pairs"], 1.0),
        "bits_per_byte": loss * targets / store.total_bytes / math.log(2),
    }


def told(
    e: Experiment, sources: list[str], n: int, values: dict[str, float], baselines: dict[str, dict[str, float]]
) -> str:
    """The line that says it, of step n."""
    parts = []
    for source in sources:
        if "bits_per_byte" in e.objective.measures:
            others = ", ".join(f"{name} {bits:.3f}" for name, bits in baselines[source].items())
            parts.append(f"{source} {values[f'eval/{source}/bits_per_byte']:.3f} ({others})")
        else:
            right = f"{values[f'eval/{source}/accuracy']:.1%} right"
            if "next_sentence" in e.objective.measures:
                right += f", {values[f'eval/{source}/next_sentence']:.1%} of next sentences"
            parts.append(f"{source} {values[f'eval/{source}/loss']:.3f} ({right})")
    what = "bits per byte" if "bits_per_byte" in e.objective.measures else f"loss a {e.objective.target_name}"
    return f"step {n}: held-out {what}: {'; '.join(parts)}"
