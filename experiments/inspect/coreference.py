"""Which heads know who *it* is: a search over all heads of a model, on 40 sentences, and with their nouns exchanged.

    python -m experiments.inspect.coreference SmolLM2-135M-Instruct.Q4_1.gguf

"The cat sat on the mat because it was tired" and "The mat sat on the cat because it was tired": *it* is the cat in
both, once the first noun and once the second, so that a head that goes by position is right once and no more. A decoder
looks back from *it* before it reads why; in every sentence the right noun is the one that can do or feel anything.
Heads are ranked by the attention that *it* pays to the right noun less that to the other, on every second sentence, and
scored on the rest, which took no part in the choice of one head among hundreds.

Measured for SmolLM2-135M-Instruct (Q4_1), in 5 s of CPU time: the best of 270 heads by the first 20 sentences is 13.8
(layer 13, head 8), which on the other 20 gives the right noun 0.59 of its attention from *it*, 0.44 more than the other
noun; it is right in 100% of them as they are, in 80% exchanged, in 80% both times. Head 9.3 is right in all of them
both times, by a margin of 0.18. To go by position alone is right in 50% of the texts, and never both times.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.taps import ENCODER, Watch
from lm.pretrained import Pretrained, load

SENTENCES = (  # {0} is who does it, {1} what it is done to; the right noun is the first of the pair
    ("The {0} sat on the {1} because it was tired", "cat mat"),
    ("The {0} slept on the {1} because it was tired", "dog rug"),
    ("The {0} lay on the {1} because it was sleepy", "lion rock"),
    ("The {0} ran to the {1} because it was hungry", "horse barn"),
    ("The {0} hid under the {1} because it was afraid", "mouse chair"),
    ("The {0} jumped over the {1} because it was excited", "fox fence"),
    ("The {0} sat in the {1} because it was cold", "bird tree"),
    ("The {0} climbed the {1} because it was curious", "bear hill"),
    ("The {0} pushed the {1} because it was angry", "bull gate"),
    ("The {0} stood on the {1} because it wanted to see", "goat wall"),
    ("The {0} walked to the {1} because it was thirsty", "cow river"),
    ("The {0} crossed the {1} because it was in a hurry", "chicken road"),
    ("The {0} looked at the {1} because it was bored", "monkey wall"),
    ("The {0} left the {1} because it was hungry", "wolf cave"),
    ("The {0} slept in the {1} because it was ill", "pig box"),
    ("The {0} bit the {1} because it was hungry", "rat bag"),
    ("The {0} carried the {1} because it was strong", "elephant log"),
    ("The {0} kicked the {1} because it was angry", "horse door"),
    ("The {0} watched the {1} because it was waiting", "cat window"),
    ("The {0} licked the {1} because it was thirsty", "dog bowl"),
    ("The {0} sat by the {1} because it felt cold", "cat fire"),
    ("The {0} swam to the {1} because it felt hungry", "duck boat"),
    ("The {0} rolled on the {1} because it felt happy", "bear grass"),
    ("The {0} left the {1} because it felt afraid", "snake garden"),
    ("The {0} chewed the {1} because it felt bored", "puppy shoe"),
    ("The {0} rested on the {1} because it felt weak", "bird roof"),
    ("The {0} hit the {1} because it could not see", "bat window"),
    ("The {0} fell off the {1} because it could not balance", "cat shelf"),
    ("The {0} stayed on the {1} because it could not swim", "dog island"),
    ("The {0} ate near the {1} because it liked the shade", "sheep tree"),
    ("The {0} slept on the {1} because it liked the sun", "cat roof"),
    ("The {0} scratched the {1} because it wanted to come in", "dog door"),
    ("The {0} sniffed the {1} because it smelled food", "rabbit bag"),
    ("The {0} followed the {1} because it wanted a ride", "monkey truck"),
    ("The {0} circled the {1} because it was hunting", "shark boat"),
    ("The {0} landed on the {1} because it needed rest", "eagle tower"),
    ("The {0} pulled the {1} because it was trained to", "horse cart"),
    ("The {0} sat on the {1} because it was lazy", "frog stone"),
    ("The {0} ran around the {1} because it was playful", "puppy table"),
    ("The {0} waited at the {1} because it was loyal", "dog station"),
)
TOP = 10


@dataclass(frozen=True)
class Example:
    """A text, its right noun and the other, each with the characters where it stands, and where *it* does."""

    text: str
    right: tuple[int, int]
    other: tuple[int, int]
    it: tuple[int, int]


def examples() -> list[tuple[Example, Example]]:
    """Each sentence, and with its nouns exchanged."""
    return [
        (_example(form, right, other), _example(form, right, other, exchanged=True))
        for form, (right, other) in ((form, nouns.split()) for form, nouns in SENTENCES)
    ]


def _example(form: str, right: str, other: str, exchanged: bool = False) -> Example:
    text = form.format(*((other, right) if exchanged else (right, other)))

    def where(word: str) -> tuple[int, int]:
        start = text.index(f" {word} ") + 1
        return start, start + len(word)

    return Example(text, where(right), where(other), where("it"))


def tokens_at(model: Pretrained, text: str, span: tuple[int, int]) -> list[int]:
    """The numbers of the tokens of a prompt that cover any character of `span`."""
    assert model.tokenizer is not None
    tokens, prompt = model.tokenizer.encode_with_offsets(text), model.encode(text)
    ids = [id for id, _, _ in tokens]
    before = next(i for i in range(len(prompt)) if prompt[i : i + len(ids)] == ids)
    return [before + i for i, (_, start, end) in enumerate(tokens) if start < span[1] and end > span[0]]


def looks(model: Pretrained, rows: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """The attention of *it* (its last token) to the right noun and to the other, of each head: [rows, L, N] each."""
    prompts = [model.encode(row.text) for row in rows]
    width = max(map(len, prompts))
    ids = np.array([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
    there = np.array([np.arange(width) < len(prompt) for prompt in prompts])
    start = np.full((len(rows), 1), model.decoder_start) if model.config.has_encoder else None
    it = jnp.array([tokens_at(model, row.text, row.it)[-1] for row in rows])

    def marked(span: Callable[[Example], tuple[int, int]]) -> jax.Array:
        return jnp.array([np.isin(np.arange(width), tokens_at(model, row.text, span(row))) for row in rows])

    nouns = [marked(lambda row: row.right), marked(lambda row: row.other)]

    def read(pattern: jax.Array) -> jax.Array:
        """[B, N, T, S] -> [2, B, N]."""
        own = jnp.take_along_axis(pattern, it[:, None, None, None], 2)[:, :, 0]
        return jnp.stack([(own * noun[:, None]).sum(-1) for noun in nouns])

    place = (ENCODER if model.config.has_encoder else "") + "attn_pattern"
    watching = replace(model.model, watch=Watch({place: read}))
    run = jax.jit(lambda params, inputs: watching.hidden(params, inputs).taps[place])
    found = np.asarray(run(model.params, model.inputs(ids, there, start)))  # [L, 2, B, N]
    right, other = found.transpose(1, 2, 0, 3)
    return right, other


def scores(right: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    """Of pairs [P, 2, L, N] of attention, [L, N] each: the mean `margin`; the share of texts that are `won`, with the
    nouns as they are and `exchanged`, and of pairs that are won in `both`."""
    won = right > other
    margin = (right - other).mean((0, 1))
    return dict(margin=margin, won=won[:, 0].mean(0), exchanged=won[:, 1].mean(0), both=won.all(1).mean(0))


def report(right: np.ndarray, other: np.ndarray) -> list[str]:
    """The best heads by the first half of the pairs [P, 2, L, N], with their scores on the second half."""
    chosen, held = (scores(right[i::2], other[i::2]) for i in (0, 1))
    order = np.argsort(-chosen["margin"], axis=None)[:TOP]
    lines = ["head    margin   on the held-out half: margin   as it is   exchanged   both   to the right noun"]
    for index in order:
        layer, head = (int(i) for i in np.unravel_index(index, chosen["margin"].shape))
        own = {name: values[layer, head] for name, values in held.items()}
        mass = right[1::2, :, layer, head].mean()
        lines.append(
            f"{f'{layer}.{head}':6}{chosen['margin'][layer, head]:8.3f}{own['margin']:31.3f}{own['won']:11.0%}"
            f"{own['exchanged']:12.0%}{own['both']:7.0%}{mass:20.3f}"
        )
    first = right[:, 0].sum() + other[:, 1].sum() > other[:, 0].sum() + right[:, 1].sum()
    many = int((held["both"] > 0.5).sum())
    lines += [
        "",
        "Position alone: always the first noun, or always the nearer one, is right in 50% of the texts, in 0% both",
        f"times, by a margin of 0. Over all heads *it* looks more at the {'first' if first else 'nearer'} noun.",
        f"Of {held['both'].size} heads {many} are right both times in more than half of the held-out pairs.",
    ]
    return lines


def main(path: str) -> None:
    """Print the best heads of the model at `path`."""
    model, pairs = load(path), examples()
    right, other = looks(model, [one for pair in pairs for one in pair])
    shape: tuple[Any, ...] = (len(pairs), 2, *right.shape[1:])
    print("\n".join(report(right.reshape(shape), other.reshape(shape))))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.inspect.coreference MODEL")
    main(sys.argv[1])
