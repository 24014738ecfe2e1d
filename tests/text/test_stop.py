"""Stop strings end a text, wherever it is cut into pieces."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.text.stop import StopStrings

TEXTS = st.text(alphabet="ab\n", max_size=12)


def whole(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text up to a stop string, and which: by looking for the shortest beginning that ends with one."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(TEXTS, max_size=6), st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(pieces: list[str], stops: list[str]) -> None:
    text, shown = StopStrings(stops), ""
    wanted, found = whole("".join(pieces), stops)
    for i, piece in enumerate(pieces):
        shown += text.push(piece)
        assert wanted.startswith(shown)
        # all is shown but what may still become a stop string
        seen = whole("".join(pieces[: i + 1]), stops)[0]
        assert text.found or any(stop.startswith(seen[len(shown) :]) for stop in [*stops, ""])
    assert (shown + text.close(), text.found) == (wanted, found)


def test_a_beginning_that_comes_to_nothing_is_shown() -> None:
    text = StopStrings("\n\nQ")
    assert [text.push(piece) for piece in ("a\n", "\n", "b\n\n\n", "Q", "more")] == ["a", "", "\n\nb\n", "", ""]
    assert (text.found, text.close()) == ("\n\nQ", "")


@pytest.mark.parametrize("stops", ["", ["a", ""], [3], [None], [b"x"], 3, None, {"a": 1}])
def test_what_is_no_text_is_refused(stops: Any) -> None:
    with pytest.raises(ValueError, match="^stop string.*: expected a text"):
        StopStrings(stops)
