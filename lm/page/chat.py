"""The page of `lm serve`: a chat, and beside it what the model has inside for a text. Its script, chat.js, asks the
server's own API, and nothing else.

The page of an inspection stands in a frame without this one's rights: no script of its own reads the key. No script
runs but these two, whatever a text holds (Content-Security-Policy)."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache

from lm.page.inside import HERE, SCRIPT
from lm.page.markup import Markup, document, tag

WHAT = "Its tokens, where each head of each layer looks, and what each layer would say next."
CHAT = (HERE / "chat.js").read_text(encoding="utf-8")


@cache
def page_headers() -> Mapping[str, str]:
    """What a browser is told of this page and of an inspection's: who may run, be asked, and frame it."""
    scripts = " ".join(f"'sha256-{_digest(script)}'" for script in (CHAT, SCRIPT))
    policy = {
        "default-src": "'none'",
        "script-src": scripts,
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "connect-src": "'self'",
        "frame-src": "'self'",
        "frame-ancestors": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    told = "; ".join(f"{name} {value}" for name, value in policy.items())
    return {"Content-Security-Policy": told, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def chat_page() -> str:
    """The whole page, the same for every model."""
    return document(
        "lm serve",
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup((HERE / "chat.css").read_text(encoding="utf-8"))),
        tag(
            "div", tag("h1", "lm serve", id="name"), tag("span", "connecting", id="about", class_="state"), class_="top"
        ),
        _key(),
        tag("p", id="note", class_="note", hidden=""),
        tag("div", _chat(), _inside(), class_="beside"),
        tag("noscript", tag("p", "This page talks with the server by a script of its own.")),
        tag("script", Markup(CHAT)),
    )


def _key() -> Markup:
    """What asks for a key where the server wants one."""
    given = tag("input", type="password", id="key", autocomplete="off", required="")
    return tag(
        "form",
        tag("label", "This server wants a key: ", given),
        tag("button", "Use it"),
        id="ask-key",
        class_="controls",
        hidden="",
    )


def _chat() -> Markup:
    words = {"rows": "3", "placeholder": "Enter sends, Shift+Enter is a new line, Esc stops", "aria-label": "Message"}
    buttons = [
        tag("button", "Send", id="send", class_="main"),
        tag("button", "Stop", id="stop", type="button", disabled=""),
        tag("button", "Clear", id="clear", type="button"),
        tag("button", "Add an image", id="image", type="button", hidden=""),
        tag("input", type="file", id="file", accept="image/*", multiple="", hidden=""),
        tag("span", id="images"),
    ]
    return tag(
        "section",
        tag("div", id="log", role="log", tabindex="0", **{"aria-label": "Conversation"}),
        tag("p", id="fault", class_="fault", role="alert", hidden=""),
        tag("form", tag("textarea", id="words", **words), tag("div", *buttons, class_="controls"), id="say"),
        tag("div", *_settings(), class_="controls", id="settings"),
        id="chat",
        **{"aria-label": "Chat"},
    )


def _settings() -> list[Markup]:
    numbers = (
        ("temperature", "temperature", "0.8", dict(min="0", step="0.05")),
        ("top_p", "top-p", "0.95", dict(min="0", max="1", step="0.01")),
        ("max_tokens", "max tokens", "512", dict(min="1", step="1")),
    )
    shown = [
        tag("label", f"{label} ", tag("input", type="number", id=name, value=value, **limits))
        for name, label, value, limits in numbers
    ]
    system = tag("input", type="text", id="system", placeholder="of the template")
    return [*shown, tag("label", "system message ", system, class_="long")]


def _inside() -> Markup:
    empty = "A text, or the last answer with its prompt; Ctrl+Enter looks inside"
    text = {"rows": "3", "aria-label": "Text to look into", "placeholder": empty}
    heads = tag("input", type="text", id="zero", placeholder="3.5 7.1")
    patched = tag("input", type="text", id="patch_from", placeholder="a text of as many tokens")
    return tag(
        "section",
        tag(
            "form",
            tag("textarea", id="text", **text),
            tag(
                "div",
                tag("button", "Look inside", id="look", class_="main"),
                tag("label", "without heads ", heads),
                tag("label", "patched from ", patched, class_="long"),
                class_="controls",
            ),
            id="inspect",
        ),
        tag("p", WHAT, id="looking", class_="muted", role="status"),
        tag("p", id="amiss", class_="fault", role="alert", hidden=""),
        tag("iframe", id="inside", title="Inside", sandbox="allow-scripts", hidden=""),
        id="looks",
        **{"aria-label": "Inside"},
    )
