"""The loop, with steps that only count: metrics come late but all, in order, and before a pause; rollouts come before
the step that trains on them, from the state that it starts from."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.train import loop
from lm.train.loop import AHEAD, NotFinite, as_batches, train

STEPS_AHEAD = loop.steps_ahead  # of this machine, a CPU


@pytest.fixture(autouse=True, scope="module")
def accelerator() -> Iterator[None]:
    """Steps are dispatched ahead, as on a TPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "steps_ahead", lambda: AHEAD)
        yield


class Trace:
    """What happened, in order: ("rollout", n), ("step", n), ("seen", n), ("visit", n)."""

    def __init__(self, pauses: Any = (), stop_at: int = 0, losses: Any = None, norms: Any = None):
        self.events: list[tuple[str, int]] = []
        self.pauses, self.stop_at, self.losses, self.norms = pauses, stop_at, losses or {}, norms or {}

    def step(self, state: Any, batch: int) -> Any:
        n = state.step + 1
        assert batch == -n
        self.events.append(("step", n))
        metrics = {"total": self.losses.get(n, 1.0 / n), "grad_norm": self.norms.get(n, 2.0)}
        return SimpleNamespace(step=n), metrics

    def rollout(self, done: int, state: Any, batch: int) -> int:
        assert state.step == done == batch - 1
        self.events.append(("rollout", done + 1))
        return -batch

    def observe(self, n: int, metrics: dict[str, float]) -> None:
        assert metrics == {"total": 1.0 / n, "grad_norm": 2.0}
        self.events.append(("seen", n))

    def visit(self, n: int, state: Any) -> bool:
        assert state.step == n
        self.events.append(("visit", n))
        return n == self.stop_at

    def run(self, steps: int, start: int = 0) -> Any:
        batches = iter(range(start + 1, 10**9))
        begin = SimpleNamespace(step=start)
        pauses = lambda n: n in self.pauses  # noqa: E731
        states = train(begin, self.step, batches, self.rollout, steps, self.observe, pauses, self.visit)
        return ([begin, *states])[-1]

    def of(self, kind: str) -> list[int]:
        return [n for what, n in self.events if what == kind]


@given(
    start=st.integers(0, 5),
    steps=st.integers(0, 20),
    pauses=st.sets(st.integers(1, 20)),
    stop_at=st.integers(0, 20),
)
def test_every_step_is_seen_once_in_order_and_before_a_visit(start: int, steps: int, pauses: set, stop_at: int) -> None:
    trace = Trace(pauses, stop_at)
    state = trace.run(steps, start)
    stopped = stop_at in pauses and start < stop_at <= steps
    last = stop_at if stopped else max(steps, start)
    assert state.step == last
    assert trace.of("rollout") == trace.of("step") == trace.of("seen") == list(range(start + 1, last + 1))
    assert trace.of("visit") == sorted(n for n in pauses if start < n <= last)
    done = seen = start
    for what, n in trace.events:
        done, seen = (n if what == "step" else done), (n if what == "seen" else seen)
        assert what != "visit" or seen == done == n
        assert done - seen <= AHEAD + 1


def test_metrics_are_not_waited_for() -> None:
    """Step 3 is on its way before the metrics of step 1 are asked for."""
    trace = Trace()
    trace.run(5)
    late = [trace.events.index(("seen", n)) - trace.events.index(("step", n + AHEAD)) for n in range(1, 6 - AHEAD)]
    assert late == [1] * len(late)


def test_on_cpus_metrics_of_a_step_are_read_before_the_next_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "steps_ahead", STEPS_AHEAD)
    trace = Trace()
    trace.run(3)
    assert [event for event in trace.events if event[0] != "rollout"] == [
        (what, n) for n in (1, 2, 3) for what in ("step", "seen")
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["losses", "norms"])
def test_what_is_not_finite_stops_the_run_before_it_is_kept(bad: float, where: str) -> None:
    trace = Trace(pauses={5, 6}, **{where: {6: bad}})
    with pytest.raises(NotFinite, match=f"^step 6: the loss is .*gradient's norm.*{'' if where == 'losses' else bad}"):
        trace.run(20)
    assert trace.of("seen") == [1, 2, 3, 4, 5] and trace.of("visit") == [5]


def test_it_is_found_late_where_nothing_pauses_but_found() -> None:
    trace = Trace(losses={19: float("nan")})
    with pytest.raises(NotFinite, match="step 19"):
        trace.run(20)
    assert trace.of("seen")[-1] == 18


def test_batches_are_placed_one_by_one() -> None:
    placed = as_batches(itertools.count(), lambda b: b * 10)
    assert [next(placed) for _ in range(3)] == [0, 10, 20]
