"""Images in the messages of a body, as OpenAI's API has them: parts of a content, each an image in a data: URL."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from lm.model.config import ModelConfig
from lm.serve.fields import Fields, bad

Content = str | list[dict[str, Any]]


def content_of(where: str, parts: Sequence[Any], cfg: ModelConfig, files: list[bytes]) -> Content:
    """The content of a message as templates read it: a text, or with images a list of {"type": "text", ..} and {"type":
    "image"}; the images' files are added to `files`.

    Args:
      where: the content stands, as in messages[0].content.
      parts: its list.
      cfg: of the model that reads it.
      files: of images, to be added to.

    Raises ApiError for a part that is neither, and for an image where the model has no vision."""
    own, before = [], len(files)
    for i, part in enumerate(parts):
        own.append(_part(f"{where}[{i}]", part, cfg, files))
    if len(files) > before:
        return own
    return "".join(part["text"] for part in own)


def _part(where: str, part: Any, cfg: ModelConfig, files: list[bytes]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if cfg.vision is None:
        bad("messages", f"{where} is a part that is no text: this model reads text alone")
    if kind != "image_url":
        bad("messages", f"{where} is a part of another kind: expected a text, or an image_url")
    fields = Fields(part, f"{where}.")
    image = fields.part("image_url")
    fields.text("type")
    fields.finish()
    url, detail = image.text("url"), image.text("detail", "auto")
    image.finish()
    if detail != "auto":
        bad("messages", f"{where}.image_url.detail={detail[:20]}: images have one size here, leave it out")
    files.append(read_data_url(f"{where}.image_url.url", url))
    return {"type": "image"}


def read_data_url(where: str, url: str) -> bytes:
    """The file in a data: URL (RFC 2397), in base64. Raises ApiError for another one: nothing is fetched."""
    head, comma, data = url.partition(",")
    scheme, _, about = head.partition(":")
    if scheme.lower() != "data" or not comma or not about.lower().endswith(";base64"):
        expected = "expected the image itself, as data:image/png;base64,..."
        bad("messages", f"{where} begins with {url[:20]!r}: this server fetches nothing, {expected}")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        bad("messages", f"{where} is no base64: {error}")
