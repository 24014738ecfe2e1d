"""The text of new tokens, up to before a stop string."""

from collections.abc import Sequence

from lm.text.protocol import IncrementalDecoder
from lm.text.tokenizer import Tokenizer

LAST = 64  # tokens of a prompt on which the text after it may depend


def decoder_after(tokenizer: Tokenizer, before: Sequence[int]) -> IncrementalDecoder:
    """A decoder of the tokens after others: some decoders leave out the space that begins a text, and a character may
    begin in one token and end in another."""
    decoder = tokenizer.incremental_decoder()
    for id in before[-LAST:]:
        decoder.push(id)
    return decoder


class StoppedText:
    """Tokens in, text out: what may be the beginning of a stop string is held back until that is certain.

    A stop string may begin in one token and end in another; of several the one counts that is complete first, however
    the text is cut into tokens. It continues the text of the tokens `before`."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], before: Sequence[int] = ()):
        self.decoder, self.stops = decoder_after(tokenizer, before), stops
        self.held, self.stopped = "", False

    def push(self, id: int) -> str:
        """The text that is certain with one more token."""
        return self._add(self.decoder.push(id))

    def close(self) -> str:
        """The rest, at the end of the tokens."""
        text = self._add(self.decoder.close()) + self.held
        self.held = ""
        return text

    def _add(self, new: str) -> str:
        if self.stopped:
            return ""
        self.held += new
        found = [(at + len(stop), at) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped, cut, rest = True, min(found)[1], ""
        else:
            begun = (k for stop in self.stops for k in range(1, len(stop)) if self.held.endswith(stop[:k]))
            cut = len(self.held) - max(begun, default=0)
            rest = self.held[cut:]
        text, self.held = self.held[:cut], rest
        return text
