"""How images stand in a text's ids."""

from dataclasses import dataclass
from typing import Annotated

from lm.bounds import Count, Natural, Sentinel, check, whole
from lm.text.protocol import Tokenizer

MARK = "<image>"  # where a prompt has an image


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

    def encode(self, prompt: str, images: int, tokenizer: Tokenizer, special: bool = False) -> list[int]:
        """The ids of a prompt with so many images, each where it has the mark <image> or the name of `begin`; without
        marks they come first.

        Args:
          prompt: text.
          images: how many.
          tokenizer: of the text.
          special: whether names of control ids in the prompt are those ids, as in a rendered chat.

        Raises ValueError where there are other marks than images."""
        own = tokenizer.controls.get(self.begin)
        text = prompt.replace(own, MARK) if own else prompt
        marks = text.count(MARK)
        if marks not in (0, images):
            raise ValueError(
                f"{images} images and {marks} marks {MARK} in the prompt: expected as many, or none: images then "
                "come first"
            )
        soft = [self.image] * self.count
        if self.prefix:
            return soft * images + tokenizer.encode_prompt(text.replace(MARK, "") + "\n", special)
        first, *rest = (text if marks else MARK * images + text).split(MARK)
        one = [id for id in (self.begin, *soft, self.end) if id >= 0]
        ids = tokenizer.encode_prompt(first + self.separator * bool(rest), special)
        for i, part in enumerate(rest, 1):
            after = self.separator + part + self.separator * (i < len(rest))
            ids += one + tokenizer.encode_after(after, special)
        return ids
