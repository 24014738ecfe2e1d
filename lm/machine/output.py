"""Standard output of a command that goes on when nobody reads it any more (`lm train … | head`)."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Outliving:
    """A text stream that writes to nowhere once its reader has gone, and says so where it can, once."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As TextIO's."""
        with self._detached_where_broken():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As TextIO's."""
        with self._detached_where_broken():
            self._stream.flush()

    @contextlib.contextmanager
    def _detached_where_broken(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if self is not sys.stderr:
                print(
                    "lm: nobody reads this command's output any more: it goes on without", file=sys.stderr, flush=True
                )


@contextlib.contextmanager
def outlive_readers() -> Iterator[None]:
    """Inside it, a reader of standard output or standard error that goes away does not end the process."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Outliving(before[0]), Outliving(before[1])
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before
