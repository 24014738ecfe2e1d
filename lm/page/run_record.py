"""A run's folder as data: its experiment, what about.json says of it, its metrics and its samples.

A run that is under way, or was never evaluated, has less of them: what is missing is empty."""

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

Metrics = Sequence[Mapping[str, Any]]


PRETRAINING = (  # what a folder may have whose about.json does not say what is measured
    Measure("loss", "loss", "nats a token"),
    Measure("perplexity", "perplexity"),
    Measure("accuracy", "accuracy", percent=True),
    Measure("next_sentence", "next sentence", percent=True),
    Measure("bits_per_byte", "bits per byte"),
)


class RunRecord:
    """The files of `folder`. Raises ValueError where it is no run's, or a file cannot be read."""

    def __init__(self, folder: Path):
        self.folder = folder
        declared = read_json(folder / "experiment.json", None)
        if declared is None:
            raise ValueError(f"{folder} is not a run: it has no experiment.json; `lm train` makes one")
        if not isinstance(declared, dict) or not isinstance(declared.get("value"), dict):
            raise ValueError(f"{folder / 'experiment.json'} cannot be read: it has no experiment in it")
        self.reference, self.experiment = declared.get("experiment", ""), declared["value"]
        self.about: dict[str, Any] = read_json(folder / "about.json", {})
        if not isinstance(self.about, dict):
            raise ValueError(f"{folder / 'about.json'} cannot be read: expected an object")
        lines, self.unreadable = read_metrics(folder), unreadable_lines(folder)
        self.evaluations = [line for line in lines if any(key.startswith("eval/") for key in line)]
        self.final = self.evaluations[-1] if self.evaluations else {}
        self.steps = max((line["step"] for line in lines), default=0)
        self.sources = list(self.experiment.get("data", {}).get("mixture", {}).get("sources", {}))
        method = self.about.get("method", {})
        self.measures = [Measure(**measure) for measure in method.get("measures", [])] or self._measures_before()
        self.loss, self.headline = self.measures[0], self._headline(method.get("headline", ""))
        self.training = [line for line in lines if line.get(self.loss.name) is not None]
        self.evaluated = [s for s in self.sources if f"eval/{s}/{self.headline.name}" in self.final]

    @cached_property
    def samples(self) -> list[tuple[str, str]]:
        """(prompt, prompt and continuation) of each; without samples.json the text as it stands, and no prompt."""
        if listed := read_json(self.folder / "samples.json", []):
            return [(sample["prompt"], sample["text"]) for sample in listed]
        file = self.folder / "samples.txt"
        texts = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        return [("", text.strip("\n")) for text in texts.split("\n" + "=" * 80 + "\n") if texts]

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
        return next(measure for measure in self.measures if measure.name == name)

    def value(self, source: str, measure: str = "") -> float:
        """At the last evaluation; nan where it was not finite."""
        return float(self.final[f"eval/{source}/{measure or self.headline.name}"] or math.nan)

    def baselines(self, source: str) -> dict[str, float]:
        """What others reach in the headline measure, by their names."""
        return self.about.get("baselines", {}).get(source, {})

    @property
    def extra_measures(self) -> list[Measure]:
        """Those that extra evaluations may have: the method's, and pretraining's under another objective."""
        own = {measure.name for measure in self.measures}
        return [*self.measures, *(measure for measure in PRETRAINING if measure.name not in own)]

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


def read_json(file: Path, otherwise: Any) -> Any:
    """The data in a JSON file; `otherwise`, where there is none. Raises ValueError where it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
