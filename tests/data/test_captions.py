"""Captions: which tokens a record becomes, which images a row has, and what a record may not be."""

import base64
import io
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lm.data.captions import Captions
from lm.data.encoded import BadDocument
from lm.data.loader import Batches, prepare
from lm.data.mixture import Data, Mixture
from lm.data.objective import Replies
from lm.data.pack import Pack
from lm.data.records import Jsonl
from lm.data.shapes import COLOURS, QUESTIONS, Shapes, draw
from lm.data.source import Source
from lm.text.image_tokens import ImageTokens
from lm.text.tokenizer import Bytes, ByteTokenizer

IMAGE, BOS, EOS = 255, 256, 257
TOKENS = ImageTokens(IMAGE, 4)
OF_SHAPES: list[dict[str, Any]] = [
    *(dict(question="side"), dict(images=120), dict(size=24), dict(heldout=0.5), dict(most=3), dict(shown="none"))
]


def batches(source: Source, seq_len: int = 40, rows: int = 2) -> Batches:
    data = Data(mixture=Mixture({"a": source}, {"a": 1.0}), tokenizer=Bytes(), packing=Pack())
    return prepare(data, seq_len, rows, objective=Replies())


def encoded(record: dict[str, Any], tokens: ImageTokens = TOKENS) -> tuple[list[int], list[bool]]:
    (one,) = Captions(Shapes(), image_tokens=tokens, size=8).encode([json.dumps(record)], ByteTokenizer())
    assert one.loss is not None
    return one.ids.tolist(), one.loss.tolist()


def test_the_answer_carries_loss() -> None:
    soft = [IMAGE] * 4
    ids, loss = encoded({"image": [], "prompt": "ab?", "completion": "c"})
    assert ids == [BOS, *soft, *b"ab?", *b"c", EOS] and loss == [False] * 8 + [True] * 2
    ids, _ = encoded({"images": [[], []], "prompt": "a<image>b<image>", "completion": "c"})
    assert ids == [BOS, *b"a", *soft, *b"b", *soft, *b"c", EOS]
    ids, _ = encoded({"image": [], "prompt": "ab", "completion": "c"}, ImageTokens(IMAGE, 2, prefix=True))
    assert ids == [IMAGE, IMAGE, BOS, *b"ab\n", *b"c", EOS]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(prompt=3), "prompt is '3': expected a text"),
        (dict(image=None), "expected an image, or a list of images"),
        (dict(images=[1]), "expected an image, or a list of images"),
        (dict(image=None, images=1), "images is '1': expected a list"),
        (dict(other=1), "unknown field 'other' beside prompt/completion"),
        (dict(prompt="<image><image>"), "1 images and 2 marks <image>"),
    ],
)
def test_what_a_record_may_not_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadDocument, match=message):
        encoded({"image": [], "prompt": "a", "completion": "b"} | change)


def test_every_row_has_the_images_of_its_documents() -> None:
    """In their order, wherever packing has put them, in training and held out."""
    source = Captions(Shapes("count", images=100, size=8, heldout=0.2), image_tokens=TOKENS, size=8)
    made = batches(source, seq_len=70, rows=3)
    drawn = {
        split: [draw(json.loads(d)["image"], 8) for d in source.documents(split)] for split in ("train", "heldout")
    }
    for step in range(6):
        batch, rows = made.batch(step), made.rows(step)
        assert batch["images"].shape[2:] == (8, 8, 3) and batch["images"].dtype == np.uint8
        for row in range(3):
            at = np.flatnonzero(rows.tokens[row] == IMAGE)[:: TOKENS.count]
            origins = [made.origin(step, row, int(token)).number for token in at]
            assert len(origins) >= 2
            for i, number in enumerate(origins):
                np.testing.assert_array_equal(batch["images"][row, i], drawn["train"][number])
            assert not batch["images"][row, len(origins) :].any()
    seen = [image for batch in made.heldout("a", 3) for row in batch["images"] for image in row if image.any()]
    assert {image.tobytes() for image in seen} == {image.tobytes() for image in drawn["heldout"]}


def test_a_batch_is_the_same_again_and_of_its_rows_alone() -> None:
    made = batches(Captions(Shapes(images=100, size=8), image_tokens=TOKENS, size=8), rows=4)
    whole, part = made.batch(3), made.batch(3, np.array([2, 3]))
    np.testing.assert_array_equal(whole["images"][2:], part["images"])
    np.testing.assert_array_equal(whole["images"], made.batch(3)["images"])


def test_files_and_bytes(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    out = io.BytesIO()
    Image.fromarray(255 - image).save(out, "PNG")
    images = ["a.png", {"bytes": base64.b64encode(out.getvalue()).decode()}] * 20
    records = [{"image": image, "prompt": f"{i}?", "completion": "x"} for i, image in enumerate(images)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    source = Captions(Jsonl(str(tmp_path / "r.jsonl"), heldout=0.2), image_tokens=TOKENS, size=8, folder=str(tmp_path))
    found = {image.tobytes() for image in batches(source, rows=8).batch(0)["images"].reshape(-1, 8, 8, 3)}
    assert {image.tobytes(), (255 - image).tobytes()} <= found
    for image, message in (
        (3, "an image is '3': expected a path"),
        ({"bytes": "*"}, "no base64"),
        ("b.png", "no such"),
    ):
        with pytest.raises(ValueError, match=message):
            source.read(json.dumps({"image": image, "prompt": "", "completion": ""}))


def test_every_field_does_something(tmp_path: Path) -> None:
    """Of Captions and of Shapes: it changes the tokens, the images or the documents."""

    def seen(source: Captions) -> tuple[Any, ...]:
        documents = list(source.documents("train"))
        tokens = [one.ids.tolist() for one in source.encode(documents[:20], ByteTokenizer())]
        return documents, tokens, [source.read(document).tolist() for document in documents[:5]]

    base = Captions(Shapes(images=100, size=16), image_tokens=TOKENS, size=8)
    changes = [
        *(dict(records=replace(Shapes(images=100, size=16), **one)) for one in OF_SHAPES),
        dict(image_tokens=ImageTokens(IMAGE, 5)),
        dict(size=4),
        dict(resample="bicubic"),
    ]
    for change in changes:
        assert seen(replace(base, **change)) != seen(base), change
    assert {name for change in changes for name in change} | {"folder", "other_fields"} == {
        field.name for field in fields(Captions)
    }
    assert {name for one in OF_SHAPES for name in one} == {field.name for field in fields(Shapes)}
    record = {"image": [], "prompt": "a", "completion": "b", "more": 1}
    assert "more" not in replace(base, other_fields=("more",)).parse(json.dumps(record))


def test_sources_with_images_are_of_one_kind() -> None:
    a, b = (Captions(Shapes(images=100, size=8), image_tokens=TOKENS, size=size) for size in (8, 16))
    data = Data(mixture=Mixture({"a": a, "b": b}, {"a": 0.5, "b": 0.5}), tokenizer=Bytes(), packing=Pack())
    with pytest.raises(ValueError, match="images of 2 kinds: expected one size, and the same tokens, in all"):
        prepare(data, 40, 2, objective=Replies())


# ---------------------------------------------------------------- shapes


def answer(question: str, prompt: str, shapes: list[list[Any]]) -> str:
    """What is true of the shapes."""
    by_colour = {colour: [s for s in shapes if s[1] == colour] for colour in COLOURS}
    if question == "count":
        return str(len(by_colour[prompt.split()[-1][:-1]]))
    if question == "side":
        _, a, _, _, b = prompt[:-1].split()
        return "yes" if by_colour[a][0][2] < by_colour[b][0][2] else "no"
    asked = prompt.split()[-1][:-1]
    (one,) = [s for s in shapes if asked in s[:2]]
    return str(one[1] if question == "colour" else one[0])


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_has_its_true_answer(question: str) -> None:
    source = Shapes(question, images=200, most=4)
    train, held = (list(source.documents(split)) for split in ("train", "heldout"))
    assert len(train) + len(held) == 200 and 3 <= len(held) <= 25
    images = [{json.dumps(json.loads(d)["image"]) for d in each} for each in (train, held)]
    assert not images[0] & images[1]
    answers = []
    for document in train:
        record = json.loads(document)
        assert 1 <= len(record["image"]) <= 4
        assert len({tuple(s[2:]) for s in record["image"]}) == len(record["image"])  # none hides another
        assert record["completion"] == answer(question, record["prompt"], record["image"])
        answers.append(record["completion"])
    assert max(answers.count(a) for a in set(answers)) < 0.7 * len(answers)


def test_what_is_shown_in_its_place() -> None:
    own, another, none = (Shapes(images=100, shown=shown) for shown in ("own", "another", "none"))
    records = [[json.loads(d) for d in source.documents("train")] for source in (own, another, none)]
    drawn = [record["image"] for record in records[0]]
    for a, b, c in zip(*records, strict=True):
        assert {k: v for k, v in a.items() if k != "image"} == {k: v for k, v in b.items() if k != "image"}
        assert c["image"] == []
    assert sum(b["image"] in drawn and b["image"] != a["image"] for a, b in zip(*records[:2], strict=True)) > 80
    assert (draw([], 8) == draw([], 8)[0, 0]).all()


def test_drawings_are_of_their_colour_in_their_place() -> None:
    for shape in ("circle", "square", "triangle"):
        found = draw([[shape, "red", 2, 0]], 30)
        inside = (found == COLOURS["red"]).all(-1)
        assert inside[5, 25] and 0.2 < inside[:10, 20:].mean() < 0.9 and inside.sum() == inside[:10, 20:].sum()
