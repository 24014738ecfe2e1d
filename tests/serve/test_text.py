"""Text up to before a stop string, however it is cut into tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.serve.text import StoppedText
from lm.text.protocol import Tokenizer
from lm.text.tokenizer import ByteTokenizer

PIECES = Tokenizer([b"ab", b"c", b"bc", b"a", b"\xc3", b"\xa9", b"d", b"abcd"])


def streamed(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[list[str], bool]:
    text, parts = StoppedText(tokenizer, stops), []
    for id in ids:
        parts.append(text.push(id))
        if text.stopped:
            return parts, True
    return [*parts, text.close()], text.stopped


@pytest.mark.parametrize(
    ("ids", "stops", "parts", "stopped"),
    [
        ([0, 1, 6], ["bc"], ["a", ""], True),  # ab c d
        ([0, 6], ["bc"], ["a", "bd", ""], False),  # what was held back comes
        ([0], ["bc"], ["a", "b"], False),
        ([0, 1], ["abcd", "bc"], ["", "a"], True),
        ([7], ["abcd", "bc"], ["a"], True),  # that which is complete first
        ([4, 5, 6], ["é"], ["", ""], True),
        ([3, 4, 6], ["\ufffd"], ["a", "", ""], True),
        ([3, 4], ["\ufffd"], ["a", "", ""], True),  # half a character, at the end
        ([6, 6], [], ["d", "d", ""], False),
    ],
)
def test_it_ends_before_the_stop(ids: list[int], stops: list[str], parts: list[str], stopped: bool) -> None:
    assert streamed(PIECES, ids, stops) == (parts, stopped)


@given(st.lists(st.sampled_from([0, 1, 2, 3, 6, 7])), st.lists(st.text("abcd", min_size=1, max_size=4), max_size=3))
def test_it_does_not_depend_on_the_tokens(ids: list[int], stops: list[str]) -> None:
    text = PIECES.decode(ids)
    parts, stopped = streamed(PIECES, ids, stops)
    whole, same = streamed(ByteTokenizer(), list(text.encode()), stops)
    assert ("".join(parts), stopped) == ("".join(whole), same)
    assert not any(stop in "".join(parts) for stop in stops)
    assert stopped == any(stop in text for stop in stops)
