"""Runs side by side, from their folders: where their experiments differ, their curves, and what they reached.

A run of a study, or any that stands beside runs of its own experiment with other seeds, brings the noise of its
numbers: the standard deviation over these seeds.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lm import value
from lm.machine import buckets
from lm.page import plots
from lm.page.markup import Markup, charts, document, figure, header, section, tag, wide
from lm.page.measure import Measure
from lm.page.plots import HALF, WIDE, Line
from lm.page.run_record import RunRecord, recent, series
from lm.page.source import as_python
from lm.page.tables import Table, html
from lm.page.words import NONE, join_and, plural

SEEDED = {"seed", "name"}  # fields in which the runs of one experiment may differ
READ = {"data.tokenizer": "tokenizers", "method.objective": "objectives", "data.mixture.sources": "sources"}
LONGEST = 60  # characters of a value
Points = tuple[Sequence[float], Sequence[float]]  # steps and values
CLEAR = 2.0  # a difference of so many of its standard deviations is more than noise


@dataclass(frozen=True)
class Compared:
    """A run by the `path` that the user gave and the `name` that tables have, its files, and those of its experiment's
    other seeds."""

    path: str
    name: str
    record: RunRecord
    seeds: tuple[RunRecord, ...]

    @cached_property
    def values(self) -> dict[str, float]:
        """Key of metrics.jsonl -> the last value; the training loss over the last tenth of the run."""
        return last_values(self.record)

    def deviation(self, key: str) -> float:
        """Of the last values over the seeds; nan where there are fewer than two."""
        known = [number for one in self.seeds if math.isfinite(number := last_values(one).get(key, math.nan))]
        return statistics.stdev(known) if len(known) > 1 else math.nan


def last_values(record: RunRecord) -> dict[str, float]:
    """See `Compared.values`."""
    measured = {key: float(x) for key, x in record.final.items() if "/" in key and x is not None}
    trained = {record.loss.name: recent(record.training, record.loss.name)} if record.training else {}
    return trained | measured


def open_runs(folders: Sequence[str]) -> list[Compared]:
    """The runs in `folders`. Raises ValueError for fewer than two, the same twice, or a folder that is no run."""
    if len(folders) < 2:
        raise ValueError("one run has nothing to be compared with: name two or more folders")
    records = [RunRecord(buckets.local_mirror(folder)) for folder in folders]
    if twice := {str(r.folder.resolve()) for r in records if sum(r.folder.samefile(s.folder) for s in records) > 1}:
        raise ValueError(f"{min(twice)} is named twice: expected different runs")
    paths = [folder.rstrip("/") for folder in folders]
    named = zip(paths, short_names(paths), records, strict=True)
    return [Compared(path, name, record, (record, *siblings(record))) for path, name, record in named]


def short_names(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that all have in common."""
    parts = [path.split("/") for path in paths]
    most = min(map(len, parts)) - 1
    common = next((i for i in range(most) if len({one[i] for one in parts}) > 1), most)
    return ["/".join(one[common:]) for one in parts]


def siblings(record: RunRecord) -> list[RunRecord]:
    """The finished runs beside it of the same experiment and other seeds."""
    found = []
    for file in sorted(record.folder.resolve().parent.glob("*/experiment.json")):
        if not file.parent.samefile(record.folder):
            try:
                other = RunRecord(file.parent)
            except ValueError:  # what is damaged there is not asked for
                continue
            differ = {path.split(".")[0] for path, _, _ in value.differences(record.experiment, other.experiment)}
            found += [other] if other.finished and "seed" in differ and differ <= SEEDED else []
    return found


# ---------------------------------------------------------------- the experiments


def fields(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """Dotted path -> its value in each run, of the fields that are not the same in all."""
    first, *others = (run.record.experiment for run in runs)
    paths = dict.fromkeys(path for other in others for path, _, _ in value.differences(first, other))
    inner = {path for path in paths if any(path.startswith(f"{above}.") for above in paths)}
    return {path: [_at(run.record.experiment, path) for run in runs] for path in paths if path not in inner}


def _at(data: Any, path: str) -> Any:
    for name in path.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def fields_table(runs: Sequence[Compared]) -> Table:
    """The fields that differ."""
    rows = tuple((path, *map(_short, values)) for path, values in fields(runs).items())
    head = "field", *(run.name for run in runs)
    return Table("Experiments", head, rows, "" if rows else "The same.", len(runs) + 1)


def _short(data: Any) -> str:
    text = as_python(data)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


# ---------------------------------------------------------------- what they reached


def measures(runs: Sequence[Compared]) -> dict[str, tuple[str, Measure]]:
    """Key -> (title, measure) of every number that a run reached, in the order of their tables."""
    found: dict[str, tuple[str, Measure]] = {}
    for record in (run.record for run in runs):
        named = {measure.name: measure for measure in record.extra_measures}
        found.setdefault(record.loss.name, (f"training {record.loss.title}", record.loss))
        for key in last_values(record):
            kind, *where, name = key.split("/") if "/" in key else ("", key)
            if where and name in named:
                title = f"{named[name].title}, {' '.join(where)}"
                found.setdefault(key, (f"held-out {title}" if kind == "eval" else title, named[name]))
    return found


def values_table(runs: Sequence[Compared]) -> Table:
    """The last values, with their deviation over seeds."""
    rows = [
        ("steps", *(f"{run.record.steps:,} of {run.record.experiment.get('steps', 0):,}" for run in runs)),
        ("parameters", *(f"{run.record.about.get('model', {}).get('parameters', 0):,}" for run in runs)),
    ]
    for key, (title, measure) in measures(runs).items():
        rows.append((title, *(_cell(run, key, measure) for run in runs)))
    seeds = [f"{run.name} of {plural(len(run.seeds), 'seed')}" for run in runs if len(run.seeds) > 1]
    note = f"± is the standard deviation over seeds: {join_and(seeds)}." if seeds else ""
    return Table("Last values", ("", *(run.name for run in runs)), tuple(rows), note)


def _cell(run: Compared, key: str, measure: Measure) -> str:
    number = run.values.get(key, math.nan)
    spread = run.deviation(key)
    shown = measure.format(number) if math.isfinite(number) else NONE
    return f"{shown} ± {measure.format(spread)}" if math.isfinite(spread) else shown


def verdict(runs: Sequence[Compared]) -> str:
    """Which run is best in the headline measure of each source, by how much, and whether that is more than noise; and
    what of it does not compare."""
    first, said = runs[0].record, []
    measure = first.headline
    for source in first.evaluated:
        key = f"eval/{source}/{measure.name}"
        known = [run for run in runs if math.isfinite(run.values.get(key, math.nan))]
        if len(known) > 1:
            said.append(f"{source}: {_order(known, key, measure)}")
    sentence = f"Held-out {measure.title}, {'; '.join(said)}." if said else "No held-out measure is in all of them."
    return f"{sentence} {_warning(runs)}".strip()


def _order(runs: Sequence[Compared], key: str, measure: Measure) -> str:
    sign = -1 if measure.higher_is_better else 1
    best, second = sorted(runs, key=lambda run: sign * run.values[key])[:2]
    apart = abs(best.values[key] - second.values[key])
    spread = math.hypot(best.deviation(key), second.deviation(key))
    what = f"{best.name} {measure.format(best.values[key])}, then {second.name} {measure.format(second.values[key])}"
    if not math.isfinite(spread):
        return what
    sure = "more than" if apart > CLEAR * spread else "within"
    return f"{what} ({sure} the noise of seeds, ± {measure.format(spread)} of their difference)"


def _warning(runs: Sequence[Compared]) -> str:
    """What the runs read or are asked that is not the same, so that their losses are of different things."""
    declared = [run.record.experiment for run in runs]
    others = [name for path, name in READ.items() if any(_at(e, path) != _at(declared[0], path) for e in declared)]
    return f"Their {join_and(others)} differ, so that not every measure compares." if others else ""


# ---------------------------------------------------------------- curves and page


def curves(runs: Sequence[Compared]) -> list[Markup]:
    """The training loss and each measure of held-out text on the way, all runs in one chart."""
    loss = runs[0].record.loss
    trained = [series(run.record.training, run.record.loss.name) for run in runs]
    smooth = [(x, plots.smoothed(y, len(y) / 40)) for x, y in trained]
    broad = overlaid("training", runs, smooth, size=WIDE)
    narrow = overlaid("trainingnarrow", runs, smooth, size=HALF)
    drawn = [wide(figure(f"Training {loss.title}", broad, "smoothed", narrow))]
    for i, (key, (title, _)) in enumerate(measures(runs).items()):
        points = [series(run.record.evaluations, key) for run in runs]
        if "/" in key and not key.endswith("/perplexity") and any(x for x, _ in points):  # which is exp(loss)
            drawn.append(figure(title, overlaid(f"heldout{i}", runs, points)))
    return drawn


def overlaid(name: str, runs: Sequence[Compared], points: Sequence[Points], **options: Any) -> str:
    """A chart of the `points` of each run, over steps, or where batches are not as large in all, over tokens."""
    batches = [run.record.experiment.get("batch_tokens", 1) for run in runs]
    by_step = len(set(batches)) == 1
    lines = [
        Line([step * (1 if by_step else batch) for step in x], y, run.name, i, dots=not options)
        for i, (run, batch, (x, y)) in enumerate(zip(runs, batches, points, strict=True))
        if x
    ]
    return plots.chart(name, lines, across="step" if by_step else "tokens", **options)


def page(runs: Sequence[Compared]) -> str:
    """The comparison as a web page."""
    title = join_and([run.name for run in runs])
    tables = [
        html(replace(one, figure=tag("p", one.note), note="") if not one.rows else one)
        for one in (values_table(runs), fields_table(runs))
    ]
    top = header(title, plural(len(runs), "run"), False, verdict(runs), ())
    return document(f"{title} – compared", top, section("Curves", charts(curves(runs))), *tables)


def as_data(runs: Sequence[Compared]) -> dict[str, Any]:
    """The comparison as JSON data."""
    paths = [run.path for run in runs]
    return {
        "verdict": verdict(runs),
        "fields": {field: dict(zip(paths, values, strict=True)) for field, values in fields(runs).items()},
        "values": {run.path: run.values for run in runs},
        "deviation": {
            run.path: {key: x for key in run.values if math.isfinite(x := run.deviation(key))} for run in runs
        },
    }


def write_page(runs: Sequence[Compared], file: Path) -> None:
    """Write the page. Raises ValueError where it cannot be written."""
    from lm.page.markup import write

    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, page(runs))
