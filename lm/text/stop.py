"""Stop strings: a generated text ends before the first of them, also where it goes over the borders of tokens."""

from collections.abc import Sequence


class StopStrings:
    """One text that ends before the first of `stops` in it: `push` its pieces as they come, and show what is returned.

    `found` is the stop string that ended the text, or None: that which is complete first, and of several with the same
    end the longest. The result does not depend on how the text is cut into pieces. No part of a stop string is shown:
    a piece that may be the beginning of one is held back until it is decided.

        text = StopStrings(["\\n\\n", "Q:"])
        while text.found is None:
            show(text.push(decoder.push(next_id)))

    Raises ValueError for a stop string that is empty or no text, and what is no list of them."""

    def __init__(self, stops: str | Sequence[str] = ()):
        if not isinstance(stops, Sequence):
            raise ValueError(f"stop strings {stops!r}: expected a text, or a list of texts")
        self.stops = (stops,) if isinstance(stops, str) else tuple(stops)
        for stop in self.stops:
            if not isinstance(stop, str) or not stop:
                raise ValueError(f"stop string {stop!r}: expected a text of at least one character")
        self.found: str | None = None
        self._held = ""

    def push(self, text: str) -> str:
        """What can be shown now that `text` has followed; nothing once the text has ended."""
        if self.found is not None:
            return ""
        self._held += text
        ends = [(at + len(stop), at, stop) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            return self._show(at, rest="")
        return self._show(len(self._held) - self._undecided())

    def close(self) -> str:
        """What was held back, where the text ended otherwise."""
        return self._show(len(self._held))

    def _show(self, count: int, rest: str | None = None) -> str:
        shown, held = self._held[:count], self._held[count:]
        self._held = held if rest is None else rest
        return shown

    def _undecided(self) -> int:
        """The characters at the end of what is held with which a stop string begins."""
        most = min(max(map(len, self.stops), default=1) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if any(s.startswith(self._held[-n:]) for s in self.stops)), 0)
