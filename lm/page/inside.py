"""The page of `lm inspect`: one HTML file with its data and the script that draws them, inside.js.

The data travel as deflated bytes in base64, so that no text of theirs is ever HTML, and the script shows them as text.
"""

import base64
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.page.markup import Markup, document, header, section, tag

HERE = Path(__file__).parent
SCRIPT = (HERE / "inside.js").read_text(encoding="utf-8")
KEYS = "← → token, ↑ ↓ layer, Shift with them head (click here first, or Tab to it)"


def inside_page(title: str, lead: str, facts: list[tuple[str, str, str]], data: Mapping[str, Any], more: bytes) -> str:
    """The whole page.

    Args:
      title: the model's name.
      lead: what was looked at, in a sentence.
      facts: the tiles: (what, value, remark).
      data: what the page shows, as plain data.
      more: the bytes that follow, of attention's patterns (lm/inspect/patterns.py).
    """
    own = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
    packed = base64.b64encode(zlib.compress(struct.pack(">I", len(own)) + own + more, 9)).decode()
    return document(
        f"Inside {title}",
        tag("style", Markup((HERE / "inside.css").read_text(encoding="utf-8"))),
        header(title, "inside", False, lead, facts),
        *_sections(data),
        tag("div", id="tip", hidden="", class_="tile"),
        tag("noscript", tag("p", "This page draws by a script of its own; it asks for nothing from elsewhere.")),
        tag("script", packed, id="data", type="text/plain"),
        tag("script", Markup(SCRIPT)),
    )


def _sections(data: Mapping[str, Any]) -> list[Markup]:
    output, causal = data["output"], data["model"]["causal"]
    parts = [
        section("1 · Tokens", _box("tokens"), note="The text in pieces, each with its id. Click one, here or below."),
        section("2 · Embedding", _box("near"), note="The tokens whose vectors point the same way, by cosine."),
        section("3 · Positions", _box("orders"), _box("order-lines"), note=_order_note(data)),
    ]
    added = tag("p", MOVED, class_="head"), _box("moved")
    looks = _layers() if data["attention"] else []
    parts.append(section("4 · Layers", *looks, *added, note=_layers_note(data) * bool(looks)))
    if output["places"]:
        note = NEXT if causal else "What it predicts in place of each mask, from what stands on both sides."
        beside = tag("div", _box("next"), _box("lens"), class_="two")
        parts.append(section("5 · Output", _box("spoken"), beside, note=note))
    else:
        parts.append(section("5 · Output", tag("p", NO_OUTPUT if causal else NO_MASK)))
    changes = (_box("changes"), CHANGED) if data["what_if"] else (tag("p", UNCHANGED, class_="note"), "")
    parts.append(section("6 · What if", changes[0], note=changes[1]))
    return parts


def _box(name: str, **more: str) -> Markup:
    return tag("div", id=name, **more)


def _layers() -> list[Markup]:
    """The controls and the pictures of attention."""

    def step(what: str, name: str, sign: str, by: int, where: str) -> Markup:
        return tag("button", sign, **{"data-step": f"{what} {by}", "aria-label": f"{name} {where}"})

    steps = [
        tag(
            "span",
            step(what, name, "‹", -1, "before"),
            tag("b", id=f"at-{what}"),
            step(what, name, "›", 1, "after"),
            class_="step",
        )
        for what, name in (("t", "token"), ("l", "layer"), ("h", "head"))
    ]
    apart = tag("label", tag("input", type="checkbox", id="apart", checked=""), " without the sinks, renormalised")
    controls = [tag("select", id="which", **{"aria-label": "attention"}), *steps, apart]
    pictures = [
        tag("div", *controls, class_="controls"),
        tag("p", id="said"),
        _box("photos"),
        _box("look"),
        tag("div", _box("strongest"), _box("matrix"), class_="two uneven"),
        tag("p", "All heads: a column for each layer, a row for each head.", class_="head"),
        _box("grid", class_="scroll"),
    ]
    return [tag("div", *pictures, id="layers", tabindex="0", **{"aria-label": KEYS})]


def _layers_note(data: Mapping[str, Any]) -> str:
    kept = data["kept_keys"]
    cut = f" Of each query the {kept} likeliest keys are kept." if kept else ""
    return (
        f"Where each head of each layer looks. {KEYS}. A head that looks for nothing looks at the first token: a sink, "
        f"told apart.{cut} Probabilities are in steps of 1/255."
    )


def _order_note(data: Mapping[str, Any]) -> str:
    how = "a random order" if data["order"]["own"] else "the order asked for"
    labels = " ".join(line["label"] for line in data["order"]["lines"])
    seen = "Without positions, order is not seen at all."
    if "mask alone" in labels:
        seen = (
            "With the mask alone a token knows which words came before it, and no more of their order; with neither, "
            "order is not seen at all."
        )
    if "states" in labels:
        seen = "Layers with a state read the tokens one after the other, with positions or without."
    return (
        f"The same tokens in {how}. Drawn is how far apart the residual streams of the same token are in the two, "
        f"|a - b| over the mean of |a| and |b|, the mean over tokens. {seen}"
    )


MOVED = "How far each sublayer moved the residual stream of the chosen token, as a share of its norm before."
NEXT = (
    "Each token in the colour of the probability that the model gave it, from red (1 in 10,000 and less) to green; the "
    "alternatives under the pointer. Below what follows the chosen token, and what the output would read behind each "
    "layer."
)
CHANGED = "Probabilities of the next token; in brackets those of the same token on the other side."
UNCHANGED = (
    "Nothing was changed: heads can be zeroed (LAYER.HEAD), or values of another text of as many tokens patched in."
)
NO_OUTPUT = "This model predicts no next token: it has no output over the vocabulary."
NO_MASK = "An encoder predicts no next token. With a mask in the text ([MASK]), what it would put there is here."
