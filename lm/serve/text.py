"""The text of new tokens, up to before a stop string."""

from collections.abc import Sequence

from lm.text.stop import StopStrings
from lm.text.tokenizer import Tokenizer


class StoppedText:
    """Tokens in, text out, to before one of `stops`, which may begin in one token and end in another. The text
    continues that of the tokens `before`."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], before: Sequence[int] = ()):
        self.decoder, self.end = tokenizer.decoder_after(before), StopStrings(stops)

    @property
    def stopped(self) -> bool:
        return self.end.found is not None

    def push(self, id: int) -> str:
        """The text that is certain with one more token."""
        return self.end.push(self.decoder.push(id))

    def close(self) -> str:
        """The rest, at the end of the tokens."""
        return self.end.push(self.decoder.close()) + self.end.close()
