"""A run's folder as data: its experiment, what about.json says of it, its metrics and its samples.

A run that is under way, or was never evaluated, has less of them: what is missing is empty."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lm.machine.monitor import read_metrics, unreadable_lines
from lm.page.measure import Measure
from lm.page.words import plural
from lm.value import fit

Metrics = Sequence[Mapping[str, Any]]
Object = dict[str, Any]
Numbers = dict[str, float]
# name -> type, of what is read of each file; a file may have more, and of an optional name less
EXPERIMENT: Object = {"name": str, "steps": int, "batch_tokens": int, "data": Object, "sampling": Object}
MODEL: Object = {"parameters": int, "by_part": dict[str, int], "flops_per_token": float, "state_bytes": int}
ABOUT: Object = {
    **dict.fromkeys(("command", "started", "peak_source"), str),
    "finished": str | None,  # None: it is under way
    **dict.fromkeys(("seconds", "compile_seconds", "peak_flops"), float | None),
    "environment": dict[str, str | float | None],
    "model": Object,
    "compute": Object,
    "mesh": dict[str, int],
    "data": dict[str, dict[str, dict[str, float | None]]],
    "shares": tuple[tuple[float, Numbers], ...],
    "baselines": dict[str, Numbers],
    "not_evaluated": dict[str, str],
    "remarks": tuple[str, ...],
    "examples": tuple[tuple[tuple[str, bool], ...], ...],
    "method": Object,
    "objective": Object,
}
METHOD: Object = {
    "measures": tuple[Measure, ...],
    **dict.fromkeys(("headline", "target_name"), str),
    "greedy_samples": bool,
}
SAMPLE: Object = {"prompt": str, "text": str}
TITLED: Object = {"title": str, **SAMPLE}


MOST_RUNS = 8  # that an error names
INSIDE_PAGE = "inside.html"  # beside the report: what the model has inside for a sample
PRETRAINING = (  # what a folder may have whose about.json does not say what is measured
    Measure("loss", "loss", "nats a token"),
    Measure("perplexity", "perplexity"),
    Measure("accuracy", "accuracy", percent=True),
    Measure("next_sentence", "next sentence", percent=True),
    Measure("bits_per_byte", "bits per byte"),
)


def not_a_run(path: str | Path) -> str:
    """That there is no run at `path`, and why: nothing is there, or no experiment.json; with the runs that may be
    meant."""
    folder = Path(path).expanduser()
    inside = runs_in(folder)[:MOST_RUNS]
    if folder.exists():
        return f"{path} is not a run: it has no experiment.json, which `lm train` makes" + (
            f"; runs in it: {', '.join(inside)}" if inside else ""
        )
    near = [str(folder.with_name(name)) for name in difflib.get_close_matches(folder.name, runs_in(folder.parent))]
    meant = f": did you mean {' or '.join(near)}?" if near else "; `lm train` makes one"
    return f"{path} is not a run: there is no such file or folder{meant}"


def runs_in(folder: Path) -> list[str]:
    """The names of the runs in a folder."""
    return sorted(file.parent.name for file in folder.glob("*/experiment.json"))


class RunRecord:
    """The files of `folder`. Raises ValueError where it is no run's, or a file cannot be read."""

    def __init__(self, folder: Path):
        self.folder = folder
        declared = read_json(folder / "experiment.json", None)
        if declared is None:
            raise ValueError(not_a_run(folder))
        if not isinstance(declared, dict) or not isinstance(declared.get("value"), dict):
            raise ValueError(f"{folder / 'experiment.json'} cannot be read: it has no experiment in it")
        file = folder / "experiment.json"
        self.reference = check({"experiment": str}, declared, file).get("experiment", "")
        self.experiment = check(EXPERIMENT, declared["value"], file)
        file = folder / "about.json"
        self.about = check(ABOUT, read_json(file, {}), file)
        if self.about.get("model"):
            self.about["model"] = check(MODEL, self.about["model"], file, every=True)
        method = check(METHOD, self.about.get("method", {}), file)
        lines, self.unreadable = read_metrics(folder), unreadable_lines(folder)
        self.evaluations = [line for line in lines if any(key.startswith("eval/") for key in line)]
        self.final = self.evaluations[-1] if self.evaluations else {}
        self.steps = max((line["step"] for line in lines), default=0)
        mixture = check({"mixture": Object}, self.experiment.get("data", {}), folder / "experiment.json").get(
            "mixture", {}
        )
        self.sources = list(check({"sources": Object}, mixture, folder / "experiment.json").get("sources", {}))
        self.measures = list(method.get("measures", ())) or self._measures_before()
        self.greedy_samples = bool(method.get("greedy_samples", self.target != "token"))
        self.loss, self.headline = self.measures[0], self._headline(method.get("headline", ""))
        self.training = [line for line in lines if line.get(self.loss.name) is not None]
        self.evaluated = [s for s in self.sources if f"eval/{s}/{self.headline.name}" in self.final]

    @cached_property
    def inside(self) -> list[Object]:
        """The lines of inside.jsonl: a step, and what was noted of the model's inside, [layers] or [layers, heads]."""
        return read_metrics(self.folder, "inside.jsonl", axes=2)

    @cached_property
    def samples(self) -> list[tuple[str, str]]:
        """(prompt, prompt and continuation) of each; without samples.json the text as it stands, and no prompt."""
        file = self.folder / "samples.json"
        if listed := fitted(tuple[Object, ...], read_json(file, []), f"{file} cannot be read"):
            return [(s["prompt"], s["text"]) for s in (check(SAMPLE, sample, file, every=True) for sample in listed)]
        file = self.folder / "samples.txt"
        texts = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        return [("", text.strip("\n")) for text in texts.split("\n" + "=" * 80 + "\n") if texts]

    @cached_property
    def titled_samples(self) -> list[tuple[str, str, str]]:
        """(title, prompt, prompt and continuation) of each that has a title: samples.json of November 2026 has none."""
        file = self.folder / "samples.json"
        listed = fitted(tuple[Object, ...], read_json(file, []), f"{file} cannot be read")
        titled = [check(TITLED, sample, file) for sample in listed if "title" in sample]
        return [(s["title"], s["prompt"], s["text"]) for s in titled if s.keys() >= TITLED.keys()]

    @property
    def has_inside(self) -> bool:
        """Whether there is a page of what the model has inside for a sample."""
        return (self.folder / INSIDE_PAGE).is_file()

    @property
    def finished(self) -> bool:
        return bool(self.about.get("finished"))

    @property
    def damage(self) -> str:
        """What metrics.jsonl lacks, in a sentence; empty where it lacks nothing."""
        steps = self.experiment.get("steps", 0)
        if self.unreadable:
            return f"Damaged: {plural(self.unreadable, 'line')} of metrics.jsonl cannot be read, and left out."
        if self.finished and self.steps < steps:
            return f"Damaged: the run has ended, but its metrics.jsonl stops at step {self.steps:,} of {steps:,}."
        return ""

    @property
    def target(self) -> str:
        """What one loss is of: a token, or what else the run learns to predict."""
        learned = self.about.get("method") or self.about.get("objective", {})
        return str(learned.get("target_name") or learned.get("asked") or "token")

    def _measures_before(self) -> list[Measure]:
        """Those of a run whose about.json does not list them."""
        loss, *others = PRETRAINING
        return [replace(loss, unit=f"nats a {self.target}"), *others]

    def _headline(self, name: str) -> Measure:
        """The measure to show where there is room for one: that of `name`, or as the evaluations have it."""
        codes_text = any(key.startswith("eval/") and key.endswith("/bits_per_byte") for key in self.final)
        name = name or ("bits_per_byte" if codes_text else "accuracy")
        return next((measure for measure in self.measures if measure.name == name), self.measures[0])

    def value(self, source: str, measure: str = "") -> float:
        """At the last evaluation; nan where it was not finite."""
        return float(self.final.get(f"eval/{source}/{measure or self.headline.name}") or math.nan)

    def baselines(self, source: str) -> dict[str, float]:
        """What others reach in the headline measure, by their names."""
        return self.about.get("baselines", {}).get(source, {})

    @property
    def extra_measures(self) -> list[Measure]:
        """Those that extra evaluations may have: the method's, pretraining's under another objective, and those of
        other methods."""
        others = (Measure(**measure) for measure in self.about.get("extra_measures", ()))
        named: dict[str, Measure] = {}
        for measure in (*self.measures, *PRETRAINING, *others):
            named.setdefault(measure.name, measure)
        return list(named.values())

    def extra_evaluations(self) -> dict[tuple[str, str], dict[str, float]]:
        """(evaluation, source) -> measure -> value, of the last ones."""
        values: dict[tuple[str, str], dict[str, float]] = {}
        for key, value in self.final.items():
            kind, *names = key.split("/")
            if kind == "evaluations" and len(names) > 2 and value is not None:
                values.setdefault((names[0], "/".join(names[1:-1])), {})[names[-1]] = value
        return values


def series(lines: Metrics, key: str) -> tuple[list[float], list[float]]:
    """The steps and values of the lines that have `key`."""
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]


def recent(lines: Metrics, key: str) -> float:
    """The mean over the last tenth of a run; nan where there is none."""
    values = series(lines[-max(1, len(lines) // 10) :], key)[1]
    return sum(values) / len(values) if values else math.nan


def check(shape: Mapping[str, Any], data: Any, file: Path, every: bool = False) -> dict[str, Any]:
    """`data`, an object of `file`, with the values that `shape` names converted to their types.

    Args:
      shape: name -> type.
      data: as JSON has it.
      file: for messages.
      every: whether all of `shape` is to be there.

    Raises ValueError for a value of another type, and for a missing one."""
    found = fitted(Object, data, f"{file} cannot be read")
    if missing := [name for name in shape if every and name not in found]:
        raise ValueError(f"{file} cannot be read: {missing[0]} is missing")
    known = {name: fitted(kind, found[name], f"{file}: {name}") for name, kind in shape.items() if name in found}
    return {**found, **known}


def fitted(kind: Any, data: Any, what: str) -> Any:
    """`data` as a `kind`. Raises ValueError, which begins with `what`, where it is none."""
    try:
        return fit(kind, data)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what}: {error}") from None


def read_json(file: Path, otherwise: Any) -> Any:
    """The data in a JSON file; `otherwise`, where there is none. Raises ValueError where it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
