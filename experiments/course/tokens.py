"""How many bytes of held-out text is a token, by the size of the vocabulary and how its pieces were found?

    python -m experiments.course.tokens docs/course/tokens.svg

Trains SentencePiece's BPE (1508.07909) and unigram model (1804.10959) on a part of the standard library's prose, and
draws the figure of docs/course/tokens.md.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.course.figure import alone
from lm.data.stdlib import Stdlib
from lm.page.plots import Line, chart
from lm.text.tokenizer import SentencePieceSpec

SIZES = (512, 1024, 2048, 4096, 8192)
TRAINED_ON, HELDOUT = 1_000_000, 40  # bytes, and documents


def bytes_a_token(size: int, model_type: str, texts: Sequence[str]) -> float:
    """Of a tokenizer of `size` pieces, over `texts`."""
    spec = SentencePieceSpec(vocab_size=size, model_type=model_type, train_bytes=TRAINED_ON)
    tokenizer = spec.make(Stdlib("prose").documents("train"))
    return sum(len(text.encode()) for text in texts) / sum(len(tokenizer.encode(text)) for text in texts)


def main(out: Path, sizes: Sequence[int] = SIZES) -> None:
    """Print the table, and write the figure."""
    texts = list(itertools.islice(Stdlib("prose").documents("heldout"), HELDOUT))
    lines = []
    for colour, kind in enumerate(("bpe", "unigram")):
        found = [bytes_a_token(size, kind, texts) for size in sizes]
        print(f"{kind:8}", "  ".join(f"{size:,}: {value:.2f}" for size, value in zip(sizes, found, strict=True)))
        lines.append(Line(list(sizes), found, kind, colour, dots=True))
    drawn = chart("tokens", lines, size=(5.2, 2.8), across="pieces", log=True)
    out.write_text(alone(drawn), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.course.tokens FILE.svg")
    main(Path(sys.argv[1]))
