"""What does a model lose that is told no positions? An encoder that fills in masked tokens, with and without them.

    lm study experiments.course.positions
    python -m experiments.course.positions runs/order

The second command gives a model of each arm the same words in two orders, and compares what it says of each word. An
encoder, since a causal mask gives the order away (2305.19466). docs/course/positions.md has what was measured.
"""

import sys
from pathlib import Path

import numpy as np

from experiments.ablations.small import experiment as small
from lm.data.masked import MaskedLM
from lm.model.positions import Learned, Positions, Rotary
from lm.pretrained import Pretrained, load
from lm.study.ablation import Ablation
from lm.tune.pretrain import Pretrain

ORDERS = ("i ate the cake", "the cake ate i")

encoder = small.replace(
    name="encoder",
    model=dict(vocab=small.model.vocab + 1, causal=False, positions=Positions()),  # the mask has an id of its own
    method=Pretrain(objective=MaskedLM(rate=0.3)),
    steps=500,
    eval_every_steps=100,
    checkpoint_every_steps=500,
    prompts=(),
)

order = Ablation(
    encoder,
    arms={
        "none": {},
        "rotary": dict(model=dict(positions=Rotary())),
        "learned": dict(model=dict(positions=Learned(init_scale=1.0))),
    },
    seeds=range(3),
    match="steps",
    measure="loss",
)


def pieces(model: Pretrained, text: str) -> list[int]:
    """The ids of the words of `text`, each with the space before it: they do not depend on the words beside them."""
    assert model.tokenizer is not None
    return [id for word in text.split() for id in model.tokenizer.encode(f" {word}")]


def apart(model: Pretrained, texts: tuple[str, str] = ORDERS) -> dict[str, float]:
    """By how much the logits of the same piece in two orders differ at most, by piece. Raises ValueError where the
    texts do not have the same pieces, each once."""
    one, other = (pieces(model, text) for text in texts)
    if sorted(one) != sorted(other) or len(set(one)) < len(one):
        raise ValueError(f"{texts[0]!r} and {texts[1]!r}: expected the same pieces, each once, in two orders")
    logits = np.asarray(model.logits([one, other]))
    assert model.tokenizer is not None
    return {
        model.tokenizer.piece(id): float(np.abs(logits[0, i] - logits[1, other.index(id)]).max())
        for i, id in enumerate(one)
    }


def main(study: Path) -> None:
    """Print the differences, arm by arm."""
    for arm in order.arms:
        found = apart(load(study / "runs" / arm / "0"))
        print(f"{arm:8}", "   ".join(f"{piece!r} {difference:.7f}" for piece, difference in found.items()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.course.positions runs/order")
    main(Path(sys.argv[1]))
