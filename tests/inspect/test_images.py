"""Looking inside a model with images: where its heads look in them, and its tower's among their patches."""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from launch.__main__ import main
from lm.inspect import page
from lm.inspect.patterns import STEPS, Attention
from lm.pretrained import inside as insides
from lm.pretrained.inside import WhatIf, html, inside
from tests.browser import browser, needs_chromium
from tests.serve import small
from tests.serve.test_images import IMAGE, SIZE, ids_of, model, picture

PICTURES = picture(1), picture(2)


def found(text: str = "a<image>b<image>c", **options: Any) -> tuple[dict[str, Any], list[Attention]]:
    return inside(model(), text, images=PICTURES, **options)


def test_the_text_is_looked_into_with_its_images() -> None:
    data, attentions = found()
    (ids, first, second), own = data["texts"].values(), model()
    assert ids == ids_of("a\n\n", "\n\nb\n\n", "\n\nc") and first == second == [-1 - i for i in range(16)]
    assert [one.title for one in attentions] == ["tower, image 1", "tower, image 2", "attention"]
    assert data["pieces"][IMAGE] == insides.SOFT and data["pieces"][-1 - 6] == "1,2"
    for shown, wanted, at in zip(data["images"], PICTURES, (5, 16), strict=True):
        file = base64.b64decode(shown["src"].partition(",")[2])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), wanted)
        assert (shown["start"], shown["side"], shown["patches"]) == (at, 2, 4) and ids[at : at + 4] == [IMAGE] * 4
    logits = own.logits([ids], images=np.stack(PICTURES)[None])[0]
    chances, places = np.asarray(jax.nn.softmax(logits)), data["output"]["places"]
    assert places == [i for i in range(len(ids)) if ids[i + 1 : i + 2] != [IMAGE]]
    best = [rows[0] for rows in data["output"]["best"]]
    assert [id for id, _ in best] == np.argmax(chances, -1)[places].tolist()
    still = [i for i, id in enumerate(ids) if id > 255]
    assert [data["order"]["moved_to"][i] for i in still] == still
    assert data["order"]["lines"][0]["apart"][0] != data["order"]["lines"][0]["apart"][1]


def test_each_image_has_the_tower_s_attention_of_its_own() -> None:
    own = model()
    both = page.towers(own.model, own.params, np.stack(PICTURES))
    for i, (attention, moved) in enumerate(both):
        ((alone, apart),) = page.towers(own.model, own.params, PICTURES[i][None])
        for a, b in zip(attention.kept, alone.kept, strict=True):
            np.testing.assert_array_equal(a, b)
        assert moved == apart and len(moved[0]["share"][0]) == 16
        sums = attention.kept.weights.astype(int).sum(-1)
        np.testing.assert_allclose(sums, STEPS, atol=8)  # of 16 rounded ones; in both directions, so of all patches
    assert not np.array_equal(both[0][0].kept.weights, both[1][0].kept.weights)


def test_a_tower_of_too_many_patches_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insides, "TOWER_PATCHES", 15)
    data, attentions = found()
    assert [one.title for one in attentions] == ["attention"] and list(data["texts"]) == ["text"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(what_if=WhatIf(other="abc")), "--patch-from is for text alone: leave out either it or --image"),
        (dict(text="<image>a"), "2 images and 1 marks <image> in the prompt"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(**options)


def test_a_model_without_vision_refuses() -> None:
    with pytest.raises(ValueError, match="this model reads text alone"):
        inside(small.model(), "a", images=PICTURES)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import launch.serve

    monkeypatch.setattr(launch.serve, "load", lambda *args: model())
    Image.fromarray(PICTURES[0]).save(tmp_path / "1.png")
    monkeypatch.setattr(
        sys, "argv", ["lm", "inspect", "m", "--text", "a", "--image", str(tmp_path / "1.png"), "--json"]
    )
    assert not main()
    shown = json.loads(capsys.readouterr().out)
    assert shown["texts"]["text"] == ids_of("\n\n", "\n\na") and len(shown["images"]) == 1


ALPHA = """
    const canvas = document.querySelectorAll('#photos canvas')[IMAGE], side = canvas.width;
    const pixels = canvas.getContext('2d').getImageData(0, 0, side, side).data;
    return [side, Array.from({ length: side * side }, (_, i) => pixels[4 * i + 3])];
"""


@needs_chromium
def test_the_page_shows_where_heads_look_in_an_image(tmp_path: Path) -> None:
    """For a token the shares of each image's soft tokens, for a patch those of the others, as the pattern has them."""
    data, attentions = found()
    (tmp_path / "page.html").write_text(html("tiny", data, attentions))
    with browser(tmp_path / "browser") as shown:
        for width in (400, 1280):
            shown.open(f"file://{tmp_path / 'page.html'}#a=2&t={len(data['texts']['text']) - 1}&l=1&h=2", width)
            shown.until("document.documentElement.dataset.ready")
            assert shown.overflow() <= 0
        for i in (0, 1):
            side, alphas = shown.run(ALPHA.replace("IMAGE", str(i)))
            start, pattern = data["images"][i]["start"], dict(attentions[2].plain()[1][2][-1])
            shares = np.array([pattern.get(start + cell, 0.0) for cell in range(4)])
            assert side == 2 and np.abs(np.array(alphas) / 255 - (shares / shares.max()) ** 0.65).max() < 0.02
        shown.run("document.querySelectorAll('#photos canvas')[1].click()")
        shown.run(
            "const c = document.querySelectorAll('#photos canvas')[1], r = c.getBoundingClientRect();"
            "c.dispatchEvent(new MouseEvent('click', { bubbles: true, clientX: r.right - 3, clientY: r.bottom - 3 }))"
        )
        assert shown.text("#at-t") == f"token {data['images'][1]['start'] + 3}"
        shown.run("const w = document.getElementById('which'); w.value = 1; w.dispatchEvent(new Event('change'))")
        assert shown.run("return document.getElementById('look').hidden") and "," in shown.text("#said code")
        shown.press("ArrowLeft")
        t = int(shown.text("#at-t").removeprefix("patch "))
        side, alphas = shown.run(ALPHA.replace("IMAGE", "0"))
        layer, head = (int(shown.text(f"#at-{what}").split()[-1]) for what in "lh")
        pattern = dict(attentions[1].plain()[layer][head][t])
        shares = np.array([pattern.get(cell, 0.0) for cell in range(16)])
        assert side == 4 and np.abs(np.array(alphas) / 255 - (shares / shares.max()) ** 0.65).max() < 0.02
        assert shown.overflow() <= 0 and SIZE == 8
