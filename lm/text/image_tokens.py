"""How images stand in a text's ids, and in a rendered chat."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from lm.bounds import Count, Natural, Sentinel, check, whole
from lm.text.chat import apply_chat_template, chat_template_of, missing_bos
from lm.text.protocol import Tokenizer

MARK = "<image>"  # where a prompt has an image
KNOWS_IMAGES = re.compile(r"""["']image["']""")  # a template that tells parts of a content apart


@dataclass(frozen=True)
class ImageTokens:
    """An image is `count` tokens `image`, whose places its soft tokens take, between `begin` and `end` (-1: none),
    with `separator` around them in the text; with `prefix` images come before the text, which ends its line."""

    image: Natural
    count: Count
    begin: Annotated[int, whole(-1), Sentinel(-1, "none")] = -1
    end: Annotated[int, whole(-1), Sentinel(-1, "none")] = -1
    separator: str = ""
    prefix: bool = False

    def __post_init__(self) -> None:
        check(self, "images")

    @property
    def around(self) -> list[int]:
        """The ids before and after an image's soft tokens, where it has them."""
        return [id for id in (self.begin, self.end) if id >= 0]

    def mark(self, tokenizer: Tokenizer) -> str:
        """What stands for an image in a rendered chat: the name of `begin`, as templates write it, or <image>."""
        return tokenizer.controls.get(self.begin, MARK)

    def encode(self, prompt: str, images: int, tokenizer: Tokenizer) -> list[int]:
        """The ids of a prompt with so many images, each where it has the mark <image> or the name of `begin`; without
        marks they come first.

        Args:
          prompt: text.
          images: how many.
          tokenizer: of the text.

        Raises ValueError where there are other marks than images."""
        text = prompt.replace(self.mark(tokenizer), MARK)
        marks = text.count(MARK)
        if marks not in (0, images):
            raise ValueError(
                f"{images} images and {marks} marks {MARK} in the prompt: expected as many, or none: images then "
                "come first"
            )
        if self.prefix:
            soft = [self.image] * self.count
            return soft * images + tokenizer.encode_prompt(text.replace(MARK, "") + "\n")
        parts = (text if marks else MARK * images + text).split(MARK)
        return self._joined(parts, tokenizer.encode_prompt, tokenizer.encode_after)

    def encode_rendered(self, text: str, images: int, tokenizer: Tokenizer) -> list[int]:
        """The ids of a chat as its template rendered it, with so many images: each where its mark is.

        Raises ValueError where there are other marks than images."""
        parts = text.split(mark := self.mark(tokenizer))
        if (marks := len(parts) - 1) != images:
            raise ValueError(f"{images} images, and {marks} times {mark} in the conversation: expected as many")
        ids = self._joined(
            parts,
            lambda text: tokenizer.encode(text, parse_special=True),
            lambda text: tokenizer.encode_after(text, parse_special=True),
        )
        return [*missing_bos(tokenizer, ids), *ids]

    def _joined(
        self, parts: Sequence[str], first: Callable[[str], list[int]], after: Callable[[str], list[int]]
    ) -> list[int]:
        """The ids of texts with an image between each and the next; `first` and `after` encode a text."""
        one = [id for id in (self.begin, *[self.image] * self.count, self.end) if id >= 0]
        ids = first(parts[0] + self.separator * (len(parts) > 1))
        for i, part in enumerate(parts[1:], 2):
            ids += one + after(self.separator + part + self.separator * (i < len(parts)))
        return ids


def render_chat(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], mark: str, header: bool = True, **variables: Any
) -> str:
    """Messages by the template of `tokenizer`, those with images too: their content is a list of parts, {"type":
    "image"} and {"type": "text", "text": ..}. A template that knows no images gets their `mark` in the text.

    Args:
      tokenizer: it has a template.
      messages: of the conversation.
      mark: what stands for an image.
      header: whether that of the assistant's next message follows.
      variables: others of the template.

    Raises ValueError where there is no template, or it refuses these messages."""
    if not KNOWS_IMAGES.search(chat_template_of(tokenizer)):
        messages = [{**message, "content": as_text(message.get("content"), mark)} for message in messages]
    return apply_chat_template(tokenizer, messages, header, **variables)


def as_text(content: Any, mark: str) -> Any:
    """The content of a message as one text, with `mark` for each image; a text as it is."""
    if not isinstance(content, list):
        return content
    return "".join(mark if part.get("type") == "image" else str(part.get("text", "")) for part in content)
