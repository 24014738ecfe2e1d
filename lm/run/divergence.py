"""Where two runs part, found by computing their steps again: the step, and what of it is the first to differ.

Both begin with a checkpoint that is the same in both, or with the state before the first step; batches and states are
compared by their checksums, so that one state is in memory at a time.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lm.inspect.summary import first_difference
from lm.page.words import join_and, plural
from lm.run.examine import examine
from lm.run.replay import Replay, named, span
from lm.train.checkpoint import checksums, flatten

SHOWN = 6  # arrays

Sums = dict[str, int]
Shown = tuple[tuple[str, str, str], ...]  # (what, in A, in B)


class Divergence(NamedTuple):
    """What differs first, in words; in `step` (0: before the first; -1: nothing does). `rows`: (what, in A, in B).
    `unlike`: for each run that has one, the first step that is not as the run has logged and kept it."""

    step: int
    what: str
    rows: Shown
    unlike: tuple[int | None, int | None]


class Trace(NamedTuple):
    """A step as checksums, and its metrics; `kept`: whether these, and its state where there is a checkpoint, are what
    the run has."""

    n: int
    batch: Sums
    metrics: dict[str, float]
    state: Sums
    kept: bool


def common_start(a: Replay, b: Replay, step: int) -> int:
    """The newest step before `step` at which both have the same checkpoint; 0 where there is none."""
    both = set(a.checkpoints.steps()) & set(b.checkpoints.steps())
    same = (s for s in both if s < step and a.checkpoints.checksums(s) == b.checkpoints.checksums(s))
    return max(same, default=0)


def divergence(a: Replay, b: Replay, last: int) -> Divergence:
    """Where the two runs part in the steps up to `last`, computed again."""
    if shapes := _shapes_apart(a, b):
        return Divergence(0, f"they learn other arrays: {shapes[0][0]}", shapes, (None, None))
    start = common_start(a, b, last)
    print(f"computing {span(start + 1, last)} of both again")
    traces = [list(_trace(replay, start, last)) for replay in (a, b)]
    first, second = (next((t.n for t in trace if not t.kept), None) for trace in traces)
    for x, y in zip(*traces, strict=True):
        apart = differing(x.state, y.state)
        if apart or x.metrics != y.metrics:
            return Divergence(x.n, *_parting(a, b, x, y, apart), (first, second))
    return Divergence(-1, "", (), (first, second))


def _shapes_apart(a: Replay, b: Replay) -> Shown:
    """(array, its shape in A, in B) of the states' arrays that are not in both, or not of one shape."""
    x, y = ({name: f"{s.dtype}{list(s.shape)}" for name, s in flatten(r.run.state_shapes()).items()} for r in (a, b))
    names = [name for name in {**x, **y} if x.get(name) != y.get(name)]
    return tuple((name, x.get(name, ""), y.get(name, "")) for name in names[:SHOWN])


def differing(a: Mapping[str, int], b: Mapping[str, int]) -> list[str]:
    """The names whose checksums differ, parameters first."""
    apart = [name for name in {**a, **b} if a.get(name) != b.get(name)]
    return sorted(apart, key=lambda name: not name.startswith("params"))


def _trace(replay: Replay, start: int, last: int) -> Iterator[Trace]:
    """The state after the step `start`, as a step without a batch; then the steps up to `last`."""
    state = replay.after(start)
    sums = checksums(state)
    yield Trace(start, {}, {}, sums, replay.has_kept(start, sums))
    for step in replay.steps(state, last):
        sums = checksums(step.state)
        kept = not replay.unlike(step) and replay.has_kept(step.n, sums)
        yield Trace(step.n, checksums(step.batch), step.metrics, sums, kept)


def _parting(a: Replay, b: Replay, x: Trace, y: Trace, apart: list[str]) -> tuple[str, Shown]:
    """What of the step whose states differ is the first to differ, and the rows that show it."""
    if not x.batch:
        rows = _values(a, b, x.n, apart)
        return f"{'the initial values' if x.n == 0 else f'the state after step {x.n}'}: {rows[0][0]}", rows
    if x.batch != y.batch:
        names = [name for name in x.batch if x.batch[name] != y.batch.get(name)]
        return f"the rows of step {x.n} ({join_and(names)})", ()
    if x.metrics != y.metrics:
        rows = _metrics(x.metrics, y.metrics)
        found = _inside(a, b, x.n)
        return (f"{found} in step {x.n}" if found else f"the {rows[0][0]} of step {x.n}"), rows
    rows = tuple((name, f"{x.state[name]:08x}", f"{y.state[name]:08x}") for name in apart[:SHOWN])
    more = f" and {plural(len(apart) - 1, 'other array')}" if len(apart) > 1 else ""
    arrays = f"{apart[0]}{more}"
    return f"the update of step {x.n} ({arrays}), of the same batch, loss and gradient's norm", rows


def _inside(a: Replay, b: Replay, step: int) -> str:
    """What of the forward and backward pass of a step, of the same state and batch, is the first to differ in bits; ""
    where nothing does that both have in one shape."""
    x, y = (examine(replay, *replay.before(step)) for replay in (a, b))
    if spot := first_difference(x.places, y.places, x.order):
        return str(spot)
    for name in x.targets.keys() & y.targets.keys():
        if x.targets[name].shape == y.targets[name].shape and (x.targets[name] != y.targets[name]).any():
            row, *token = np.argwhere(x.targets[name] != y.targets[name])[0].tolist()
            return f"the loss in row {row}{f' at token {token[0]}' if token else ''}"
    both = {name: one.bits != y.gradients[name].bits for name, one in x.gradients.items() if name in y.gradients}
    model = a.experiment.model
    return next((f"the gradient of {named(model, name, other)}" for name, other in both.items() if other.any()), "")


def _metrics(x: Mapping[str, float], y: Mapping[str, float]) -> Shown:
    """The metrics that differ: the loss first, the gradient's norm last."""
    order = [*(name for name in x if name != "grad_norm"), "grad_norm"]
    return tuple((name, repr(x[name]), repr(y.get(name))) for name in order if x[name] != y.get(name))


def _values(a: Replay, b: Replay, step: int, names: list[str]) -> Shown:
    """(array and layers, its range of values in A and in B) of arrays that differ before a step."""
    found = [{n: np.asarray(flatten(r.after(step))[n]) for n in names[:SHOWN]} for r in (a, b)]
    apart = {name: _apart(x, found[1][name]) for name, x in found[0].items()}
    both = ((named(a.experiment.model, name, apart[name]), x, found[1][name]) for name, x in found[0].items())
    return tuple((name, _range(x), _range(y)) for name, x, y in both)


def _apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether the bits differ, [the first axis]."""
    return np.array([p.tobytes() != q.tobytes() for p, q in zip(np.atleast_1d(x), np.atleast_1d(y), strict=True)])


def _range(x: np.ndarray) -> str:
    return f"from {x.min():.6g} to {x.max():.6g}" if x.size and x.dtype.kind == "f" else str(x.ravel()[:4])
