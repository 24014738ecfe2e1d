"""Is the embedding good enough as the output, too? Tied and untied tables; and how the ways to draw a token differ.

    lm study experiments.course.output
    python -m experiments.course.output runs/course docs/course/output.svg

The second command continues 64 held-out texts by a run's model, and counts what they repeat, beside how they really go
on (1904.09751); and draws how much of the probability the likeliest pieces have. docs/course/output.md has what was
measured.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.ablations.small import experiment as small
from experiments.course.figure import alone
from lm.data.stdlib import Stdlib
from lm.decode.sampling import Sampling
from lm.page.plots import Line, chart
from lm.pretrained import Pretrained, load
from lm.study.ablation import Ablation

TEXTS, PROMPT, NEW = 64, 16, 64  # texts, tokens of each that are given, and tokens that follow
WAYS = {
    "greedy": Sampling(temperature=0.0),
    "top-p 0.95": Sampling(top_p=0.95),
    "temperature 1": Sampling(),
    "temperature 1.5": Sampling(temperature=1.5),
}

tying = Ablation(
    small,
    arms={"tied": {}, "untied": dict(model=dict(tied=False))},
    seeds=range(3),
    match="steps",
    measure="bits_per_byte",
)


def repeated(rows: Iterable[Sequence[int]]) -> float:
    """The share of the four tokens in a row that stood before in the same row, over all rows."""
    fours = [[tuple(row[i : i + 4]) for i in range(len(row) - 3)] for row in rows]
    return 1 - sum(len(set(own)) for own in fours) / max(sum(map(len, fours)), 1)


def heldout(model: Pretrained) -> list[list[int]]:
    """The first tokens of held-out docstrings that are long enough."""
    encoded = map(model.encode, Stdlib("prose").documents("heldout"))
    return [ids[: PROMPT + NEW] for ids in encoded if len(ids) >= PROMPT + NEW][:TEXTS]


def mass(model: Pretrained, texts: Sequence[Sequence[int]], temperature: float) -> np.ndarray:
    """[V]: the probability of the likeliest pieces, of the first n together, a mean over the tokens of `texts`."""
    p = np.asarray(jax.nn.softmax(model.logits(np.array(texts)) / temperature, axis=-1))
    return np.asarray(np.cumsum(-np.sort(-p, axis=-1), axis=-1).mean((0, 1)))


def picture(model: Pretrained, texts: Sequence[Sequence[int]]) -> str:
    """That of three temperatures, as SVG."""
    lines = []
    for colour, temperature in enumerate((0.5, 1.0, 1.5)):
        y = mass(model, texts, temperature)
        lines.append(Line(range(1, len(y) + 1), y.tolist(), f"temperature {temperature:g}", colour))
    across = "so many of the likeliest pieces"
    return chart("output", lines, size=(5.2, 2.8), across=across, log=True, percent=True)


def main(run: Path, out: Path) -> None:
    """Print the table, and write the figure."""
    model = load(run)
    texts = heldout(model)
    print(f"{'as they go on':16} {repeated(text[PROMPT:] for text in texts):6.1%}")
    for name, sampling in WAYS.items():
        drawn: list[list[int]] = [[] for _ in texts]
        for new in model.stream_ids([text[:PROMPT] for text in texts], NEW, sampling):
            drawn = [own + more for own, more in zip(drawn, new, strict=True)]
        print(f"{name:16} {repeated(drawn):6.1%}")
    out.write_text(alone(picture(model, texts)), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m experiments.course.output runs/course FILE.svg")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
