"""Images of coloured shapes with questions about them: made, not downloaded, so that anybody trains a vision tower."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np

from lm.bounds import Share, check, whole
from lm.data.random import generator
from lm.data.source import Documents, Source, digest, is_train, not_empty, text_hash
from lm.value import suggest

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "yellow": (235, 210, 50)}
SHAPES = ("circle", "square", "triangle")
QUESTIONS = ("count", "colour", "shape", "side")
SHOWN = ("own", "another", "none")
PAPER = 240  # of 255: an empty patch of exactly nothing would be all noise after its norm
CELLS = 3  # an image has so many by so many places for a shape


@dataclass(frozen=True)
class Shapes(Source):
    """`images` of one to `most` shapes each, of `size` pixels, with a question of one of QUESTIONS; a share `heldout`
    of different ones is held out. Captions(Shapes()) trains on them. What is `shown` is a question's own image, or to
    see what that is good for, that of another one, or none, empty paper."""

    question: str = "count"
    images: Annotated[int, whole(100, 10_000_000)] = 20_000
    size: Annotated[int, whole(8, 4096)] = 32
    heldout: Share = 0.05
    most: Annotated[int, whole(2, CELLS * CELLS)] = 6
    shown: str = "own"

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"question": QUESTIONS, "shown": SHOWN}

    def __post_init__(self) -> None:
        check(self)
        for name, known in self.choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r}: {suggest(value, known)}")

    def documents(self, split: str) -> Documents:
        limit = round(self.heldout * 2**64)
        every = _records(self.question, self.most, self.images)
        numbers = [i for i, record in enumerate(every) if (_hash(record) >= limit) == is_train(split)]
        return not_empty(Documents(len(numbers), lambda i: self._shown(every, numbers[i])), self, split)

    def comparable(self) -> Source:
        return replace(self, shown="own")

    def fingerprint(self) -> str:
        return digest(self, "shapes 1")

    def _shown(self, every: tuple[str, ...], index: int) -> str:
        """A record, with the image that is shown with it."""
        if self.shown == "own":
            return every[index]
        other = [] if self.shown == "none" else json.loads(every[(index + 1) % len(every)])["image"]
        return json.dumps({**json.loads(every[index]), "image": other})

    def draw_image(self, shapes: Any) -> np.ndarray:
        """The drawing of a record's shapes, uint8 [size, size, 3]."""
        return draw(shapes, self.size)


def draw(shapes: Any, size: int) -> np.ndarray:
    """uint8 [size, size, 3] of [shape, colour, column, row] each, on white paper."""
    out = np.full((size, size, 3), PAPER, np.uint8)
    cell = size / CELLS
    y, x = np.mgrid[:size, :size] + 0.5
    for shape, colour, column, row in shapes:
        dx, dy = (x - (column + 0.5) * cell) / cell, (y - (row + 0.5) * cell) / cell
        inside = {
            "circle": dx**2 + dy**2 < 0.16,
            "square": np.maximum(abs(dx), abs(dy)) < 0.36,
            "triangle": (abs(dx) < 0.42 * (dy + 0.42)) & (dy < 0.42) & (dy > -0.42),
        }[shape]
        out[inside] = COLOURS[colour]
    return out


@functools.lru_cache(maxsize=8)
def _records(question: str, most: int, images: int) -> tuple[str, ...]:
    return tuple(_record(question, most, i) for i in range(images))


def _hash(record: str) -> int:
    """Of a record's image: equal ones are all held out, or none."""
    return int(text_hash(json.dumps(json.loads(record)["image"])))


def _record(question: str, most: int, index: int) -> str:
    """Record number `index` of a question, drawn until it has one answer."""
    for attempt in range(1000):
        random = generator(0, "shapes", question, most, index, attempt)
        places = random.permutation(CELLS * CELLS)[: random.integers(1, most + 1)]
        kinds, colours = (random.choice(list(names), len(places)).tolist() for names in (SHAPES, COLOURS))
        rows, columns = np.divmod(places, CELLS)
        shapes = [list(one) for one in zip(kinds, colours, columns.tolist(), rows.tolist(), strict=True)]
        asked = _ask(question, shapes, random)
        if asked:
            prompt, answer = asked
            return json.dumps({"image": shapes, "prompt": prompt, "completion": answer})
    raise AssertionError("no image has one answer")


def _ask(question: str, shapes: list[list[Any]], random: np.random.Generator) -> tuple[str, str] | None:
    """(question, answer), where the shapes have one."""
    kinds, colours = [s[0] for s in shapes], [s[1] for s in shapes]
    if question == "count":
        colour = list(COLOURS)[random.integers(len(COLOURS))]
        return f"how many {colour}?", str(colours.count(colour))
    if question in ("colour", "shape"):
        by, other = (kinds, colours) if question == "colour" else (colours, kinds)
        single = [i for i, one in enumerate(by) if by.count(one) == 1]
        if not single:
            return None
        i = single[random.integers(len(single))]
        return (f"what colour is the {by[i]}?" if question == "colour" else f"what is {by[i]}?"), other[i]
    single = [i for i, one in enumerate(colours) if colours.count(one) == 1]
    if len(single) < 2:
        return None
    i, j = random.permutation(single)[:2]
    if shapes[i][2] == shapes[j][2]:
        return None
    return f"is {colours[i]} left of {colours[j]}?", "yes" if shapes[i][2] < shapes[j][2] else "no"
