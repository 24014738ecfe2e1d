"""One step computed again and proven by the log, and where in it a loss began that spiked or was not finite."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.inspect.summary import OUTPUT, Spot, by_layer
from lm.machine import buckets, hardware
from lm.model.taps import ENCODER
from lm.page.markup import document as html_document
from lm.page.markup import header, write
from lm.page.tables import Table, html
from lm.page.words import join_and, median, plural
from lm.run.batch_diff import document
from lm.run.examine import Examination, Sizes, examine, not_finite
from lm.run.history import at_step, changes, read_history
from lm.run.log import NOT_LOGGED
from lm.run.replay import Replay, Step, span

SHOWN = 8  # targets, rows or arrays in a table
BEFORE = 20  # logged steps, to whose median a loss is compared
SPIKE = 1.5  # times that median
OUTLYING = 10.0  # times what other rows have at a place


class Target(NamedTuple):
    """A target of the batch: its `row`, its place in it, its `loss`, and what part of the step's it is."""

    row: int
    token: int
    loss: float
    share: float


@dataclass(frozen=True)
class Report:
    """What is said of a step: the `verdict` and the `proof` in sentences, the figures of the page's first screen, and
    the tables."""

    step: int
    verdict: str
    proof: str
    tiles: tuple[tuple[str, str, str], ...]
    tables: tuple[Table, ...]

    def page(self, run: str) -> str:
        """The web page, of the run that the user calls so."""
        title = f"Step {self.step:,} of {run}"
        top = header(title, "computed again", True, f"{self.verdict} {self.proof}", self.tiles)
        return html_document(title, top, *map(html, self.tables))


def replay(run: str | Path, step: int) -> tuple[Report, Path]:
    """Compute `step` of a run again, look into it, and write the page `replay-STEP.html` into the run's folder.

    Raises ValueError for a folder that is no run, a step that it has not taken, and where the steps before it cannot be
    computed here."""
    folder = buckets.local_mirror(run)
    opened = Replay(folder)
    _check(opened, step)
    state = opened.start(step)
    begun, unlike = int(state.step), list[int]()
    if begun < step - 1:
        print(f"computing {span(begun + 1, step - 1)} again, to reach step {step:,}")
    for computed in opened.steps(state, step - 1):
        state = computed.state
        unlike += [computed.n] if opened.unlike(computed) else []
        if not _finite(computed):
            raise ValueError(f"step {computed.n} is not finite already: lm replay {run} --step {computed.n}")
    batch = opened.batch(state, step)
    found = examine(opened, state, batch)
    rows = jax.device_get(batch)
    (taken,) = opened.steps(state, step)
    report = _report(opened, taken, found, rows, begun, unlike)
    path = folder / f"replay-{step}.html"
    write(path, report.page(buckets.display_path(folder)))
    buckets.upload(folder)
    return report, path


def _check(opened: Replay, step: int) -> None:
    """Raises ValueError for a step that the run has not begun."""
    taken = max([0, *opened.logged, *opened.checkpoints.steps()])
    most = min(taken + opened.experiment.log_every_steps, opened.experiment.steps)
    if not 1 <= step <= most:
        raise ValueError(
            f"--step {step}: {buckets.display_path(opened.folder)} has taken {plural(taken, 'step')}: expected a step "
            f"from 1 to {most}"
        )


def _finite(step: Step) -> bool:
    return math.isfinite(step.metrics["total"]) and math.isfinite(step.metrics["grad_norm"])


# ---------------------------------------------------------------- what is said


def _report(
    opened: Replay, step: Step, found: Examination, rows: Mapping[str, np.ndarray], begun: int, unlike: list[int]
) -> Report:
    """The report of a step.

    Args:
      opened: the run.
      step: as computed again.
      found: what was found in it.
      rows: its batch, on the host.
      begun: the step of the state that it was reached from.
      unlike: the steps before it whose logs are others."""
    loss = opened.record.loss.name
    targets = sorted(_targets(found, rows), key=lambda t: (-_magnitude(t.loss), t.row, t.token))
    usual = median(
        float(line[loss]) for n, line in opened.logged.items() if step.n - BEFORE <= n < step.n and line[loss]
    )
    before = step.metrics.get(loss, step.metrics["total"])
    cause = _not_finite(opened, step, found, rows, targets) or _largest(opened, step, found, rows, targets, usual)
    tiles = (
        ("step", f"{step.n:,}", f"from {f'checkpoint {begun:,}' if begun else 'the start'}"),
        (opened.record.loss.title, f"{before:.6g}", f"{usual:.6g} in the steps before" if usual == usual else ""),
        ("gradient's norm", f"{step.metrics['grad_norm']:.4g}", "before clipping"),
    )
    tables = (
        _metrics_table(opened, step),
        _targets_table(opened, step, rows, targets),
        _rows_table(opened, step, rows, targets),
        _places_table(found),
        _arrays_table("Gradients", found.gradients),
        _arrays_table("Parameters before the step", found.params),
    )
    return Report(step.n, cause, _proof(opened, step, begun, unlike), tiles, tables)


def _not_finite(
    opened: Replay, step: Step, found: Examination, rows: Mapping[str, np.ndarray], targets: list[Target]
) -> str:
    """Where the step stopped being finite, in a sentence; "" where it did not."""
    model = opened.experiment.model
    said = (
        f"Step {step.n}: the loss is {step.metrics['total']:.6g}, the gradient's norm {step.metrics['grad_norm']:.6g}"
    )
    if params := list(not_finite(model, found.params)):
        return f"{said}. Parameters were not finite before it: {join_and(params, 3)}."
    if spot := found.spot:
        return f"{said}. The first value that is not finite is {spot}{_of_document(opened, step, spot, rows)}."
    if lost := [target for target in targets if not math.isfinite(target.loss)]:
        where = Spot(OUTPUT, -1, lost[0].row, lost[0].token, -1)
        return f"{said}. The first loss that is not finite is of {where}{_of_document(opened, step, where, rows)}."
    if arrays := list(not_finite(model, found.gradients)):
        return f"{said}. All values going forward are finite; of the gradients {join_and(arrays, 3)} are not."
    return "" if _finite(step) else f"{said}, and no value that was looked at is the first."


def _largest(
    opened: Replay, step: Step, found: Examination, rows: Mapping[str, np.ndarray], targets: list[Target], usual: float
) -> str:
    """Of a step that is finite, where most of its loss is."""
    loss = step.metrics.get(opened.record.loss.name, step.metrics["total"])
    spiked = usual > 0 and loss > SPIKE * usual
    said = f"Step {step.n}: the loss is {loss:.6g}"
    said += f", {loss / usual:.2g} times that of the steps before it" if spiked else ""
    if not targets:
        return f"{said}."
    row, share = _by_row(targets)[0]
    most = _spot_of(next(target for target in targets if target.row == row))
    said += f". Row {row} of {len(rows['tokens'])} has {share:.0%} of it, the largest of a target there "
    said += f"{_loss(targets, row)} at token {most.token}{_of_document(opened, step, most, rows)}."
    outlier = _outlier(found, row)
    return said + (f" In row {row} the first value out of line is {outlier}." if outlier else "")


def _loss(targets: list[Target], row: int) -> str:
    """The largest loss of a row's targets."""
    return f"{next(target.loss for target in targets if target.row == row):.4g}"


def _outlier(found: Examination, row: int) -> Spot | None:
    """The first place at which a row has a value OUTLYING times as large as others have at most."""
    for place, layer, one in by_layer({name: s.largest for name, s in found.places.items()}, found.order):
        by_row = one.reshape(len(one), -1).max(1)
        if row < len(one) and len(one) > 1 and by_row[row] > OUTLYING * np.median(np.delete(by_row, row)) > 0:
            token, *head = (int(i) for i in np.unravel_index(int(one[row].argmax()), one[row].shape))
            return Spot(place, layer, row, token, head[0] if head else -1)
    return None


def _spot_of(target: Target) -> Spot:
    return Spot(OUTPUT, -1, target.row, target.token, -1)


def _of_document(opened: Replay, step: Step, spot: Spot, rows: Mapping[str, np.ndarray]) -> str:
    """The token at a spot, and the document that it is of."""
    tokens = rows["encoder_tokens" if spot.place.startswith(ENCODER) else "tokens"]
    text = _text(opened, int(tokens[spot.row, min(spot.token, tokens.shape[1] - 1)]))
    return f" ({text}), of {document(opened.run.prepared.data, step.n - 1, spot.row, spot.token, tokens[spot.row])}"


def _text(opened: Replay, token: int) -> str:
    """A token as text, or where it has none its number."""
    tokenizer = opened.run.prepared.data.tokenizer
    text = tokenizer.decode([token]) if 0 <= token < tokenizer.vocab_size else ""
    return repr(text) if text else f"id {token}"


def _proof(opened: Replay, step: Step, begun: int, unlike: list[int]) -> str:
    """Whether the step is the one that the run took."""
    where = f"checkpoint {begun}" if begun else "the state before the first step"
    others = opened.unlike(step)
    known = sorted(n for n in opened.logged if begun < n <= step.n)
    if not others and not unlike and step.n in known:
        return f"Computed from {where}: its metrics are those that the run logged, to the bit."
    if not others and not unlike and known:
        before = plural(len(known), "step")
        return f"Computed from {where}: the log does not have it, and has the {before} before it, to the bit."
    if not others and not unlike:
        return f"Computed from {where}: the log has no step since, so that nothing proves it."
    name, (logged, computed) = next(iter(others.items()), ("", (None, math.nan)))
    first = (
        f"step {unlike[0]} is not what the run logged"
        if unlike
        else f"{name} is {computed!r}, and the log has {logged!r}"
    )
    return f"Computed from {where}: {first}. {_elsewhere(opened, step.n)}"


def _elsewhere(opened: Replay, step: int) -> str:
    """In what this process differs from the one that took the step."""
    then = at_step(read_history(opened.folder), step).get("environment") or opened.record.about.get("environment", {})
    return (
        f"Since then other: {join_and(changed, 4)}."
        if (changed := changes(then, hardware.environment()))
        else "The environment is the same as far as it is recorded."
    )


# ---------------------------------------------------------------- the tables


def _targets(found: Examination, rows: Mapping[str, np.ndarray]) -> Iterator[Target]:
    """The targets that carry weight."""
    for name, losses in found.targets.items():
        weights = rows[name]
        total = float(np.nansum(np.abs(losses * weights))) or 1.0
        for index in np.argwhere(weights != 0):
            loss = float(losses[tuple(index)])
            share = abs(loss) * float(weights[tuple(index)]) / total
            yield Target(int(index[0]), int(index[1]) if len(index) > 1 else 0, loss, share)


def _magnitude(loss: float) -> float:
    return abs(loss) if math.isfinite(loss) else math.inf


def _by_row(targets: list[Target]) -> list[tuple[int, float]]:
    """(row, its part of the loss), the largest first."""
    shares: dict[int, float] = {}
    for target in targets:
        shares[target.row] = shares.get(target.row, 0.0) + (target.share if math.isfinite(target.share) else 0.0)
    return sorted(shares.items(), key=lambda pair: -pair[1])


def _metrics_table(opened: Replay, step: Step) -> Table:
    line = opened.logged.get(step.n, {})
    known = {name: x for name, x in step.metrics.items() if name not in NOT_LOGGED}
    rows = tuple((name, repr(x), repr(line[name]) if name in line else "") for name, x in known.items())
    return Table("Metrics", ("", "computed", "logged"), rows)


def _targets_table(opened: Replay, step: Step, rows: Mapping[str, np.ndarray], targets: list[Target]) -> Table:
    tokens, learned = rows["tokens"], rows.get("targets")
    listed = []
    for row, token, loss, share in targets[:SHOWN]:
        at = min(token, tokens.shape[1] - 1)
        target = _text(opened, int(learned[row, at])) if learned is not None and learned.ndim == 2 else ""
        where = document(opened.run.prepared.data, step.n - 1, row, token, tokens[row])
        text = _text(opened, int(tokens[row, at]))
        listed.append((where, text, target, str(row), str(token), f"{loss:.4g}", f"{share:.1%}"))
    head = ("document, from there on", "token", "target", "row", "at", "loss", "share")
    return Table("Targets with the largest losses", head, tuple(listed), text_columns=3)


def _rows_table(opened: Replay, step: Step, rows: Mapping[str, np.ndarray], targets: list[Target]) -> Table:
    listed = tuple(
        (document(opened.run.prepared.data, step.n - 1, row, 0, rows["tokens"][row]), str(row), f"{share:.1%}")
        for row, share in _by_row(targets)[:SHOWN]
    )
    return Table("Rows", ("begins with", "row", "share of the loss"), listed)


def _places_table(found: Examination) -> Table:
    """The largest size of a value in each place of each layer, in the order of computation."""
    cells = {
        (place, layer): one
        for place, layer, one in by_layer({n: s.largest for n, s in found.places.items()}, found.order)
    }
    names = list(dict.fromkeys(place for place, _ in cells))
    layers = sorted({layer for _, layer in cells if layer >= 0})
    rows = tuple((name, *(_size(cells.get((name, layer))) for layer in layers)) for name in names if name != OUTPUT)
    output = f"The output: {_size(cells[OUTPUT, -1])}. " if (OUTPUT, -1) in cells else ""
    missing = list(dict.fromkeys(place for place, _ in found.order if place not in found.places))
    left = f" Too large to be laid out: {join_and(missing)}." if missing else ""
    note = f"{output}The largest size of a number; what is not finite is marked.{left}"
    return Table("Values by place and layer", ("", *(f"layer {n}" for n in layers)), rows, note)


def _size(one: Any) -> str:
    if one is None:
        return ""
    largest = float(np.max(one))
    return f"{largest:.3g}" if math.isfinite(largest) else "not finite"


def _arrays_table(title: str, sizes: Mapping[str, Sizes]) -> Table:
    """The arrays with the largest numbers."""
    listed = sorted(sizes.items(), key=lambda pair: -float(np.max(pair[1].largest)))[:SHOWN]
    rows = tuple((name, ", ".join(_size(x) for x in np.ravel(one.largest)[:12])) for name, one in listed)
    return Table(title, ("array", "largest size by layer"), rows, "Those with the largest numbers.")
