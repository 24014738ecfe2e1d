"""Where do heads look? And what are the root of the head size and several heads good for?

    lm study experiments.inspect.induction --only two_layers one_layer
    python -m experiments.course.attention runs/induction/runs/two_layers/0 docs/course/attention.svg
    lm study experiments.course.attention

The second command draws two heads of a model that has learned to go on with what repeats (2209.11895): of the first
layer that which looks most at the token before, of the second that which looks most at what followed the same token
earlier.
docs/course/attention.md has what was measured.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.ablations.small import experiment as small
from experiments.course.figure import alone
from lm.inspect.look import look
from lm.inspect.views import induction, previous_token
from lm.page.svg import drawing, new_axes, svg
from lm.pretrained import Pretrained, load
from lm.study.ablation import Ablation

TEXT = "pQ7xLm2a" * 3

attention = Ablation(
    small,
    arms={
        "scaled": {},
        "unscaled": dict(model=dict(attention=dict(scale=1.0))),
        "one_head": dict(model=dict(attention=dict(heads=1, head_dim=small.model.width))),
    },
    seeds=range(3),
    match="steps",
    measure="bits_per_byte",
)


def patterns(model: Pretrained, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The patterns [T, T] of two heads for a text: in the first layer the best at the token before, in the last the
    best at induction."""
    assert model.tokenizer is not None
    ids = jnp.array([model.tokenizer.encode(text)])
    every = look(model.model, model.params, ids, taps=["attn_pattern"]).taps["attn_pattern"][:, 0]  # [L, N, T, T]
    first, last = every[0], every[-1]
    before, again = previous_token(first), induction(last, ids)
    print(f"layer 0, head {before.argmax()}: {before.max():.2f} of its attention is on the token before")
    print(f"layer {len(every) - 1}, head {again.argmax()}: {again.max():.2f} on what followed the same token earlier")
    return np.asarray(first[before.argmax()]), np.asarray(last[again.argmax()])


@drawing
def picture(text: str, first: np.ndarray, last: np.ndarray) -> str:
    """Both patterns as SVG: a row for the token that looks, a column for the token that is looked at."""
    figure, axes = new_axes("attention", (5.2, 3.0))
    axes.remove()
    named = ("layer 0: the token before", "layer 1: what followed the same letter")
    for i, (title, pattern) in enumerate(zip(named, (first, last), strict=True)):
        axes = figure.add_subplot(1, 2, i + 1)
        axes.imshow(pattern, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xticks(range(len(text)), list(text), fontsize=5.5)
        axes.set_yticks(range(len(text)), list(text), fontsize=5.5)
        axes.set_title(title, fontsize=8.5)
        axes.set_xlabel("looked at")
    figure.axes[0].set_ylabel("looks")
    return svg(figure, "attention")


def main(run: Path, out: Path) -> None:
    """Write the picture."""
    out.write_text(alone(picture(TEXT, *patterns(load(run), TEXT))), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m experiments.course.attention RUN FILE.svg")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
