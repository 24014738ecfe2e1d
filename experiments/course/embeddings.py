"""What does a table of embeddings hold, and how large should its numbers be at first?

    python -m experiments.course.embeddings runs/course docs/course/embeddings.svg
    lm study experiments.course.embeddings

The first command prints the nearest neighbours of some pieces in a run's table, and draws a map of three kinds of
pieces. The second compares unit size (1706.03762, section 3.4) with a standard deviation of 0.02.
docs/course/embeddings.md has what was measured.
"""

import string
import sys
from pathlib import Path

import numpy as np

from experiments.ablations.small import experiment as small
from experiments.course.figure import alone
from lm.page.svg import drawing, literal, new_axes, series_colour, svg
from lm.pretrained import Pretrained, load
from lm.study.ablation import Ablation
from lm.train.word2vec import nearest

SHOWN = ("0", " if", " True", " self", "):", " is")
WORDS = "if for in is not and or return import raise def class True False None"
KINDS = {
    "digits": tuple(string.digits),
    "capitals": tuple(string.ascii_uppercase),
    "words of Python": tuple(f" {word}" for word in WORDS.split()),
}

embedding_size = Ablation(
    small,
    arms={"unit": {}, "0.02": dict(model=dict(init_scale=0.02, embed_scale=1.0))},
    seeds=range(3),
    match="steps",
    measure="bits_per_byte",
)


def pieces(model: Pretrained) -> dict[str, int]:
    """The pieces that a model's tokenizer makes of themselves, and their ids: not the bytes for what has no piece."""
    assert model.tokenizer is not None
    named = {id: model.tokenizer.piece(id) for id in range(model.tokenizer.vocab_size)}
    return {piece: id for id, piece in named.items() if model.tokenizer.encode(piece) == [id]}


def table(model: Pretrained) -> np.ndarray:
    """The embeddings [V, D]."""
    return np.asarray(model.params["stem"]["tokens"])


def flat(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, D] of unit length, seen from the side on which they are spread most: their first two principal
    components, [n, 2]."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    return np.asarray(centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T)


@drawing
def picture(model: Pretrained) -> str:
    """A map of KINDS, as SVG."""
    ids = pieces(model)
    kinds = {kind: [piece for piece in members if piece in ids] for kind, members in KINDS.items()}
    every = [(kind, piece) for kind, members in kinds.items() for piece in members]
    places = flat(table(model)[[ids[piece] for _, piece in every]])
    figure, axes = new_axes("embeddings", (5.2, 4.4))
    for i, (kind, members) in enumerate(kinds.items()):
        own = places[[j for j, (one, _) in enumerate(every) if one == kind]]
        axes.plot(*own.T, "o", color=series_colour(i), markersize=3, label=kind, alpha=0.3)
        for piece, (x, y) in zip(members, own, strict=True):
            axes.annotate(literal(piece.strip()), (x, y), color=series_colour(i), fontsize=7.5)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second")
    return svg(figure, "embeddings")


def main(run: Path, out: Path) -> None:
    """Print the neighbours, and write the map."""
    model = load(run)
    ids, vectors = pieces(model), table(model)
    names = {id: piece for piece, id in ids.items()}
    for piece in (piece for piece in SHOWN if piece in ids):
        found = nearest(vectors, ids[piece], 5, np.array(list(names)))
        print(f"{piece!r:10}", ", ".join(f"{names[id]!r} {cosine:.2f}" for id, cosine in found))
    out.write_text(alone(picture(model)), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m experiments.course.embeddings runs/course FILE.svg")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
