"""Induction heads (2209.11895): one layer never forms them, two layers do abruptly, and what repeats is lost without
them. And do they form without positions, or with others than rotary ones?

    lm study experiments.inspect.induction
    python -m experiments.inspect.induction runs/induction

Texts are a random piece over and over (lm/data/repeats.py): how one goes on can be told only by what followed the same
letters before. The second command reads what each run noted of its heads (inside.jsonl), and takes heads away.

Measured (11 minutes on two busy cores; means over 3 seeds, ± half of a 95% interval; steps of 1,000; losses in nats
of letters that came before, with all heads and without some, see `Formed`):

               score          formed by   rose       fell       loss           no_induction  no_previous   no_other
    two_layers 0.78 ± 0.05    383 ± 36    383 ± 36   367 ± 36   0.10 ± 0.02    6.5 ± 1.5     5.4 ± 1.0     0.2 ± 0.1
    one_layer  0.05 ± 0.01    never                             3.03 ± 0.09
    none       0.06 ± 0.10    never                             2.57 ± 1.8
    alibi      0.63 ± 0.16    500 ± 220   492 ± 180  483 ± 140  0.18 ± 0.02    6.3 ± 2.8     6.5 ± 1.8     2.3 ± 8.1
    learned    0.30 ± 0.16    533 ± 200   467 ± 240  467 ± 240  0.41 ± 0.04    7.0 ± 6.6     1.1 ± 2.1     2.4 ± 8.2

Found again: no head of one layer ever scores above 0.06; in two layers the score goes from 0.05 to 0.6 within a hundred
steps, in those in which the loss falls. The circuit is there: one head of layer 0 that gives the token before all its
attention, and three or four of layer 1; without either part what repeats is lost, to more than one layer's loss. Rotary
positions form it first. ALiBi and learned ones form weaker heads, later in the mean, though three seeds cannot tell by
how much. Without positions one of three runs had begun to by the end: there is no other way to the token before than to
find it by its place in a causal mask.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.repeats import Repeats
from lm.experiment import Experiment
from lm.inspect.edits import Zero
from lm.inspect.look import look
from lm.inspect.watching import Watching
from lm.model.families import llama
from lm.model.positions import Alibi, Learned, Positions
from lm.model.transformer import Params, Transformer
from lm.pretrained import Pretrained, load
from lm.study.ablation import Ablation
from lm.study.statistics import student
from lm.text.tokenizer import Bytes
from lm.train.optim import Muon
from lm.train.schedule import Constant

LENGTH = 64
WINDOW = 100  # steps, in which a loss falls most
FORMED = 0.15  # the score of a head that is one


two_layers = Experiment(
    name="induction",
    model=llama(
        vocab=258,
        layers=2,
        width=64,
        heads=4,
        mlp=128,
        context=LENGTH,
        tied=True,
        init_scale=64**-0.5,
        embed_scale=64**0.5,
    ),
    data=Data(Mixture({"repeats": Repeats(LENGTH)}, {"repeats": 1.0}), tokenizer=Bytes(), packing=Pack()),
    optimizer=Muon(learning_rate=0.01, adam_learning_rate=4e-3, schedule=Constant(warmup_steps=20)),
    watch=Watching(every_steps=25, rows=8, repeated=32),
    seq_len=LENGTH,
    batch_tokens=32 * LENGTH,
    steps=1000,
    log_every_steps=25,
    eval_every_steps=500,
    checkpoint_every_steps=1000,
    prompts=(),
)

induction = Ablation(
    two_layers,
    arms={
        "two_layers": {},
        "one_layer": dict(model=dict(layers=1)),
        "none": dict(model=dict(positions=Positions())),
        "alibi": dict(model=dict(positions=Alibi())),
        "learned": dict(model=dict(positions=Learned())),
    },
    seeds=range(3),
    match="steps",
    measure="loss",
)


Heads = Sequence[Sequence[Any]]  # (layer, head)


class Formed(NamedTuple):
    """Of a run: the best head's induction `score` at the end, the step by which it was half of that (nan: it formed
    none), the steps about which the score `rose` and the loss `fell` most, and losses of repeated letters in nats: with
    all heads, without those of at least half the best score, without the head of layer 0 that looks most at the token
    before, and without the one that does so least."""

    score: float
    half: float
    rose: float
    fell: float
    loss: float
    no_induction: float
    no_previous: float
    no_other: float


def formed(run: Path) -> Formed:
    """Read a run's folder."""
    notes, logged = (
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        for name in ("inside.jsonl", "metrics.jsonl")
    )
    steps, heads = np.array([note["step"] for note in notes]), np.array([note["induction"] for note in notes])
    losses = np.array([(line["step"], line["loss"]) for line in logged if "loss" in line])
    best, previous = heads.max((1, 2)), np.array(notes[-1]["previous_token"][0])
    inductive = np.argwhere(heads[-1] >= best[-1] / 2).tolist()
    model = load(run)
    return Formed(
        best[-1],
        float(steps[np.argmax(best >= best[-1] / 2)]) if best[-1] > FORMED else math.nan,
        steepest(steps, best),
        steepest(losses[:, 0], -losses[:, 1]),
        *(
            repeated_loss(model, without)
            for without in ([], inductive, [(0, previous.argmax())], [(0, previous.argmin())])
        ),
    )


def steepest(steps: np.ndarray, values: np.ndarray) -> float:
    """The middle of the WINDOW of steps in which `values` rise most."""
    before = np.interp(steps - WINDOW / 2, steps, values)
    after = np.interp(steps + WINDOW / 2, steps, values)
    return float(steps[np.argmax(after - before)])


def repeated_loss(model: Pretrained, without: Heads, rows: int = 100) -> float:
    """The loss of held-out letters that stood a piece before."""
    source = Repeats(LENGTH)
    ids = np.array([model.encode(source.text("heldout", i)) for i in range(rows)])
    pieces = np.array([[len(source.piece("heldout", i))] for i in range(rows)])
    first = ids.shape[1] - LENGTH  # behind tokens that begin a text
    return lost(model.model, model.params, ids, np.arange(1, ids.shape[1]) >= first + pieces, without)


def lost(model: Transformer, params: Params, ids: np.ndarray, seen: np.ndarray, without: Heads) -> float:
    """The mean loss of the tokens of ids [B, T + 1] that are `seen` [B, T] (of the second on), with the heads of
    `without` at zero."""
    edits = [Zero("attn_head", layers=int(layer), heads=int(head)) for layer, head in without]
    logits = jax.jit(lambda params, ids: look(model, params, ids, edits=edits).logits)(params, jnp.asarray(ids[:, :-1]))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(ids[:, 1:]))
    return float(np.asarray(losses)[seen].mean())


def report(study: Path) -> list[str]:
    """A table of the arms of a study's folder: means over its runs, below them the half widths of their 95%
    intervals."""
    lines = [" " * 12 + "".join(f"{name:>14}" for name in Formed._fields)]
    for arm in induction.arms:
        runs = [formed(run) for run in sorted((study / "runs" / arm).iterdir())]
        cells = [student(values) for values in zip(*runs, strict=True)]
        lines.append(f"{arm:12}" + "".join(f"{cell.value:14.3g}" for cell in cells))
        lines.append(f"{'':12}" + "".join(f"{f'± {cell.half_width:.2g}':>14}" for cell in cells))
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.inspect.induction runs/induction")
    print("\n".join(report(Path(sys.argv[1]))))
