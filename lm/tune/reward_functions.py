"""Reward functions: what a completion is worth, in Python, as values of the experiment.

A page declares its own as a frozen dataclass that is called with prompts, completions and their records, and gives a
number for each, or None where it has nothing to say. They are called on the host, within a limit of time.
"""

import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm.bounds import Count, Finite

STOP, SKIP = "stop", "skip"
SHOWN = 60  # characters of a completion in a message
Record = Mapping[str, Any]


class Completion(str):
    """The text of a completion; `tokens` is its length, its stop token included, and `stopped` whether it has one."""

    tokens: int
    stopped: bool

    @classmethod
    def of(cls, text: str, tokens: int, stopped: bool) -> "Completion":
        completion = cls(text)
        completion.tokens, completion.stopped = tokens, stopped
        return completion


@dataclass(frozen=True)
class RewardFunction:
    """What completions are worth. The total of a completion is the sum of its rewards times their `weight`."""

    weight: Finite = field(default=1.0, kw_only=True)

    @property
    def name(self) -> str:
        """By which its mean is logged."""
        return type(self).__name__

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields that it reads of each record."""
        return ()

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Completion], records: Sequence[Record]
    ) -> Sequence[float | None]:
        """A number for each of `completions`, which continue `prompts`, of `records`; None: it has nothing to say."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExactAnswer(RewardFunction):
    """1 where the last group that the regular expression `pattern` finds in the completion is the text of the record's
    `field`, spaces around it aside; else 0."""

    pattern: str = r"(?s)(.*)"
    field: str = "answer"

    def __post_init__(self) -> None:
        if _compiled("pattern", self.pattern).groups != 1:
            raise ValueError(f"pattern={self.pattern!r}: expected one group, which is the answer")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.field,)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Completion], records: Sequence[Record]
    ) -> list[float | None]:
        return [float(self._right(text, record)) for text, record in zip(completions, records, strict=True)]

    def _right(self, text: str, record: Record) -> bool:
        found = [match for match in re.findall(self.pattern, text) if match.strip()]
        return bool(found) and found[-1].strip() == str(record[self.field]).strip()


@dataclass(frozen=True)
class Format(RewardFunction):
    """1 where the regular expression `pattern` matches the whole completion, else 0."""

    pattern: str

    def __post_init__(self) -> None:
        _compiled("pattern", self.pattern)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Completion], records: Sequence[Record]
    ) -> list[float | None]:
        return [float(re.fullmatch(self.pattern, text) is not None) for text in completions]


@dataclass(frozen=True)
class SoftLength(RewardFunction):
    """0 for completions of up to `free` tokens, from there down to -1 at `most` (soft overlong punishment, DAPO,
    2503.14476, equation 13)."""

    free: Count
    most: Count

    def __post_init__(self) -> None:
        if self.most <= self.free:
            raise ValueError(f"most={self.most}: expected more than free={self.free} tokens")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Completion], records: Sequence[Record]
    ) -> list[float | None]:
        over = [(one.tokens - self.free) / (self.most - self.free) for one in completions]
        return [-min(max(share, 0.0), 1.0) for share in over]


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}={pattern!r} is no regular expression: {error}") from None


def names(functions: Sequence[RewardFunction]) -> tuple[str, ...]:
    """The names of `functions`, of which those that several have are numbered."""
    every = [function.name for function in functions]
    return tuple(
        name if every.count(name) == 1 else f"{name}{every[: i + 1].count(name)}" for i, name in enumerate(every)
    )


class RewardError(ValueError):
    """A reward function has failed. It ends a run in all its processes."""


class Rewards:
    """Calls `functions`, each for at most `seconds`. What fails raises a RewardError where `on_error` is STOP; where it
    is SKIP, the completions have no reward of that function, and `failed` has the reason."""

    def __init__(self, functions: Sequence[RewardFunction], seconds: float, on_error: str):
        self.functions, self.names, self.seconds, self.on_error = functions, names(functions), seconds, on_error
        self.weights = np.array([function.weight for function in functions])
        self.failed: dict[str, str] = {}
        self._late: dict[int, threading.Thread] = {}

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Completion], records: Sequence[Record]
    ) -> np.ndarray:
        """float64 [n, K] of K functions; NaN where one has nothing to say."""
        table = np.full((len(completions), len(self.functions)), math.nan)
        for k, name in enumerate(self.names):
            try:
                table[:, k] = self._call(k, prompts, completions, records) if completions else []
            except RewardError as error:
                if self.on_error == STOP:
                    raise
                if name not in self.failed:
                    print(f"{error}: the run goes on without it (on_reward_error={SKIP!r})")
                self.failed[name] = str(error)
        return table

    def total(self, table: np.ndarray) -> np.ndarray:
        """The weighted sum [n] of each row; NaN where no function has anything to say."""
        silent = np.isnan(table).all(1)
        return np.where(silent, math.nan, np.nansum(table * self.weights, axis=1))

    def _call(self, k: int, *arguments: Any) -> np.ndarray:
        """In a thread of its own, which a function that takes for ever keeps: it is not called again."""
        name, found = self.names[k], list[Any]()
        if k in self._late and self._late[k].is_alive():
            raise RewardError(f"reward {name}: an earlier call has still not ended")

        def run() -> None:
            try:
                found.append(self.functions[k](*arguments))
            except Exception as error:  # it is the user's code
                found.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self.seconds)
        if not found:
            self._late[k] = thread
            raise RewardError(f"reward {name}: no answer within reward_seconds={self.seconds:g}")
        if isinstance(found[0], Exception):
            error = found[0]
            raise RewardError(f"reward {name} raised {type(error).__name__}: {error}") from error
        return _checked(name, found[0], arguments[1])


def _checked(name: str, values: Any, completions: Sequence[Completion]) -> np.ndarray:
    """What a function gave, float64 [n]. Raises RewardError for anything but a finite number or None for each."""
    try:
        given = list(values)
    except TypeError:
        raise RewardError(f"reward {name} gave {values!r}: expected {len(completions)} numbers") from None
    if len(given) != len(completions):
        raise RewardError(f"reward {name} gave {len(given)} numbers for {len(completions)} completions")
    numbers = [_number(value) for value in given]
    for value, number, completion in zip(given, numbers, completions, strict=True):
        if number is None:
            shown = str(completion) if len(completion) <= SHOWN else f"{completion[:SHOWN]}…"
            raise RewardError(f"reward {name} gave {value!r} for {shown!r}: expected a finite number or None")
    return np.array(numbers, float)


def _number(value: Any) -> float | None:
    """`value` as a number, NaN where it is None; None where it is no finite number."""
    if value is None:
        return math.nan
    try:
        number = math.nan if isinstance(value, str | bytes) or np.ndim(value) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
