"""The report of a run: one page, made from the files in its folder, that one would show to a colleague.

It reads experiment.json, about.json, metrics.jsonl and samples.json (or samples.txt), takes what is there, and leaves
out the sections of what is not: a run that is under way, or that was never evaluated, has a report too."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.machine.monitor import duration, human, read_metrics
from lm.page import plots
from lm.page.markup import Markup, document, figure, joined, section, table, tag, tiles
from lm.page.plots import WIDE, Line

BINARY = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
ANSWERED = {"loss": "loss", "perplexity": "perplexity", "accuracy": "accuracy", "next_sentence": "next sentence"}
COMPRESSORS = {"gzip": "gzip −9", "xz": "xz −9e"}


def write_report(workdir: str | Path) -> Path:
    """Write `workdir`/report.html and return its path. Raises ValueError where `workdir` is not a run's folder, or
    cannot be written."""
    folder = Path(workdir)
    path = folder / "report.html"
    page = Story(folder).page()
    try:
        part = folder / ".report.html.part"
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _read_json(file: Path, otherwise: Any) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


class Story:
    """What a run's folder tells, section by section."""

    def __init__(self, folder: Path):
        declared = _read_json(folder / "experiment.json", None)
        if declared is None:
            raise ValueError(f"{folder} is not a run: it has no experiment.json; `lm train` makes one")
        self.reference, self.experiment = declared.get("experiment", ""), declared["value"]
        self.about: dict[str, Any] = _read_json(folder / "about.json", {})
        lines = read_metrics(folder)
        self.training = [x for x in lines if x.get("loss") is not None]
        self.evaluations = [x for x in lines if "eval/loss" in x]
        self.samples = list(_samples(folder))
        self.sources = list(self.experiment.get("data", {}).get("mixture", {}).get("sources", {}))
        self.steps = max((x["step"] for x in lines), default=0)
        self.finished = bool(self.about.get("finished"))
        self.asked = self.about.get("objective", {}).get("asked", "token")
        self.codes_text = any(f"eval/{s}/bits_per_byte" in x for s in self.sources for x in self.evaluations)

    def page(self) -> str:
        """The page's HTML."""
        name = str(self.experiment.get("name", "run"))
        state = "finished" if self.finished else f"at step {self.steps:,} of {self.experiment.get('steps', 0):,}"
        badge = tag("span", state, class_="state done" if self.finished else "state")
        top = tag("div", tag("h1", name), badge, class_="top")
        header = tag("header", top, tag("p", self._lead(), class_="lead"), tiles(self._tiles()))
        parts = [
            self._result(),
            self._further(),
            self._curves(),
            self._samples(),
            self._model(),
            self._data(),
            self._declared(),
            self._machine(),
        ]
        started = str(self.about.get("started", ""))[:16].replace("T", " ")
        return document(
            f"{name} – a training run",
            header,
            *parts,
            tag(
                "footer",
                f"Started {started}. " if started else "",
                "Made by lm report from the files in the run's folder.",
            ),
        )

    # ------------------------------------------------------------ the first screen

    def _lead(self) -> str:
        """One or two sentences: what was trained, on what, how long, with what result."""
        model, last = self.about.get("model", {}), self.training[-1] if self.training else {}
        size = f"A transformer of {human(model['parameters'])} parameters" if model else "A transformer"
        trained = f"{size}, trained on {_and(self.sources) or 'text'} for {self.steps:,} steps"
        trained += f" ({human(last['tokens'])} tokens)" if "tokens" in last else ""
        seconds = self.about.get("seconds") or 0
        trained += f" in {_in_words(seconds)}" if seconds else ""
        trained += f" on {where}" if (where := self._where()) else ""
        return f"{trained}. {self._against_compressors() if self.codes_text else self._answers()}".strip()

    def _where(self) -> str:
        environment = self.about.get("environment", {})
        if not environment:
            return ""
        if environment.get("backend", environment.get("device")) == "cpu":
            return f"{environment.get('cores')} CPU cores"
        return f"{environment.get('devices')} × {environment.get('device')}"

    def _against_compressors(self) -> str:
        parts = []
        for source in self._evaluated():
            others = [f"{COMPRESSORS.get(k, k)} {v:.2f}" for k, v in self._baselines(source).items()]
            parts.append(
                f"{self._bits(source):.2f} bits per byte on {source}" + (f" ({', '.join(others)})" if others else "")
            )
        return f"It codes held-out text in {_and(parts)}." if parts else ""

    def _answers(self) -> str:
        """How well it does what it was asked, where that is not to code the text."""
        parts = [
            f"{self._last(s, 'accuracy'):.1%} on {s} (loss {self._last(s, 'loss'):.2f} nats each)"
            for s in self._evaluated()
        ]
        return f"Of every {self.asked} of held-out text it gets right {_and(parts)}." if parts else ""

    def _tiles(self) -> Iterator[tuple[str, str, str]]:
        model, last = self.about.get("model", {}), self.training[-1] if self.training else {}
        for source in self._evaluated()[: 0 if self.codes_text else 3]:
            yield f"right, {source}", f"{self._last(source, 'accuracy'):.1%}", f"of each held-out {self.asked}"
        for source in self._evaluated()[: 3 if self.codes_text else 0]:
            gzip = self._baselines(source).get("gzip")
            remark = f"{1 - self._bits(source) / gzip:+.0%} smaller than gzip".replace("+", "") if gzip else "held out"
            if gzip and self._bits(source) > gzip:
                remark = f"{self._bits(source) / gzip - 1:.0%} larger than gzip"
            yield f"bits per byte, {source}", f"{self._bits(source):.3f}", remark
        if last:
            yield "training loss", f"{_recent(self.training, 'loss'):.3f}", f"nats a {self.asked}, at the end"
            yield (
                "tokens",
                human(last.get("tokens", math.nan)),
                f"{self.steps:,} steps of {human(self.experiment.get('batch_tokens', 0))}",
            )
        if model:
            yield "parameters", human(model["parameters"]), f"{human(model['flops_per_token'])} FLOPs a token"
        if last:
            mfu = _recent(self.training, "mfu")
            yield (
                "tokens per second",
                human(_median(self.training, "tokens_per_second")),
                f"{mfu:.0%} of the device's peak" if mfu == mfu else "",
            )
        if self.about.get("seconds"):
            compiling = self.about.get("compile_seconds") or 0
            yield "time", duration(self.about["seconds"]), f"first step {compiling:.1f} s" if compiling else "in all"

    # ------------------------------------------------------------ results

    def _evaluated(self) -> list[str]:
        measure = "bits_per_byte" if self.codes_text else "accuracy"
        return [s for s in self.sources if self.evaluations and f"eval/{s}/{measure}" in self.evaluations[-1]]

    def _last(self, source: str, measure: str) -> float:
        return float(self.evaluations[-1][f"eval/{source}/{measure}"] or math.nan)

    def _bits(self, source: str) -> float:
        return self._last(source, "bits_per_byte")

    def _baselines(self, source: str) -> dict[str, float]:
        return self.about.get("baselines", {}).get(source, {})

    def _result(self) -> Markup:
        """The measures of every source."""
        return self._coded() if self.codes_text else self._answered()

    def _answered(self) -> Markup:
        """What is right of what was asked."""
        charts = [
            figure(
                source,
                plots.chart(
                    f"right{i}",
                    [Line(*_column(self.evaluations, f"eval/{source}/accuracy"), colour=i, dots=True)],
                    percent=True,
                ),
                f"share of each held-out {self.asked} that is right",
            )
            for i, source in enumerate(self._evaluated())
        ]
        measures = [k for k in ANSWERED if any(f"eval/{s}/{k}" in self.evaluations[-1] for s in self._evaluated())]
        rows = [[source, *(self._cell(source, k) for k in measures)] for source in self._evaluated()]
        head = ["source", *(ANSWERED[k] for k in measures)]
        note = (
            f"Loss in nats a {self.asked}; the others of the text are not asked for, so that no bits per byte follow."
        )
        return (
            section("Held-out text", tag("div", *charts, class_="charts"), table(head, rows), note=note)
            if rows
            else Markup("")
        )

    def _coded(self) -> Markup:
        """Bits per byte of every source, against gzip and xz."""
        charts, rows = [], []
        for i, source in enumerate(self._evaluated()):
            x, y = _column(self.evaluations, f"eval/{source}/bits_per_byte")
            levels = {COMPRESSORS.get(k, k): v for k, v in self._baselines(source).items()}
            ceiling = 1.25 * max(levels.values()) if levels and max(y) > 1.6 * max(levels.values()) else None
            charts.append(
                figure(
                    source,
                    plots.chart(f"bits{i}", [Line(x, y, colour=i, dots=True)], levels, top=ceiling),
                    "held-out bits per byte",
                )
            )
            rows.append([source, *(self._cell(source, k) for k in ("loss", "perplexity")), *self._against(source)])
        head = ["source", "loss", "perplexity", "bits per byte", *COMPRESSORS.values()]
        note = (
            "Bits per byte: what an ideal coder would need with the model's probabilities. "
            "The compressors got the same held-out files, one by one."
        )
        return section(
            "Held-out text", tag("div", *charts, class_="charts") if charts else "", table(head, rows), note=note
        )

    def _further(self) -> Markup:
        """What the experiment's further evaluations found in the end, and why some were not made."""
        found: dict[tuple[str, str], dict[str, float]] = {}
        for key, value in (self.evaluations[-1] if self.evaluations else {}).items():
            kind, _, rest = key.partition("/")
            at, _, measure = rest.rpartition("/")
            name, _, source = at.partition("/")
            if kind == "evaluations" and source and value is not None:
                found.setdefault((name, source), {})[measure] = value
        kinds = {**ANSWERED, "bits_per_byte": "bits per byte"}
        measures = [k for k in kinds if any(k in values for values in found.values())]
        rows = [[*at, *(_shown(values.get(k)) for k in measures)] for at, values in found.items()]
        head = ["evaluation", "source", *(kinds[k] for k in measures)]
        left_out = [
            tag("p", f"{name} was not made: {why}.") for name, why in self.about.get("not_evaluated", {}).items()
        ]
        return section("Further evaluations", table(head, rows, 2) if rows else "", *left_out)

    def _cell(self, source: str, key: str) -> str:
        return _shown(self.evaluations[-1].get(f"eval/{source}/{key}"))

    def _against(self, source: str) -> list[Any]:
        bits, others = self._bits(source), self._baselines(source)
        best = bits <= min(others.values(), default=math.inf)
        shown = tag("span", f"{bits:.3f}", class_="win") if best and others else f"{bits:.3f}"
        return [shown, *(f"{others[k]:.3f}" if k in others else "" for k in COMPRESSORS)]

    def _curves(self) -> Markup:
        """How training went: loss, then what explains it."""
        charts = (
            [
                tag(
                    "div",
                    figure(
                        "Loss",
                        self._loss_chart(),
                        f"nats a {self.asked}; each step faint, smoothed on top, held-out with dots",
                    ),
                    class_="wide",
                )
            ]
            if self.training
            else []
        )
        for key, title, note, options in (
            ("learning_rate", "Learning rate", "", dict(from_zero=True)),
            ("grad_norm", "Gradient norm", "before clipping", dict(from_zero=True)),
            (
                "tokens_per_second",
                "Throughput",
                "tokens per second; right, model-FLOP utilisation",
                dict(from_zero=True, right=self._mfu_per_token()),
            ),
        ):
            x, y = _column(self.training, key)
            if x:
                cut = 1.15 * sorted(y)[int(0.98 * (len(y) - 1))] if key == "grad_norm" and max(y) > 0 else None
                charts.append(figure(title, plots.chart(key.replace("_", ""), [Line(x, y)], top=cut, **options), note))
        if shares := self.about.get("shares"):
            by_source = {s: [at.get(s, 0.0) for _, at in shares] for s in shares[0][1]}
            steps = [step for step, _ in shares]
            if len(steps) > 1 and len(by_source) > 1:
                charts.append(
                    figure("Mixture", plots.shares("mixture", steps, by_source), "share of the rows of a batch")
                )
        return section("Training", tag("div", *charts, class_="charts") if charts else "")

    def _loss_chart(self) -> str:
        x, y = _column(self.training, "loss")
        lines = [Line(x, y, colour=-1, faint=True)] if len(x) > 20 else []
        lines.append(Line(x, plots.smoothed(y, len(y) / 40), label="training", colour=-1))
        for i, source in enumerate(self.sources):
            xs, ys = _column(self.evaluations, f"eval/{source}/loss")
            if xs:
                lines.append(Line(xs, ys, label=f"{source}, held-out", colour=i, dots=True))
        return plots.chart("loss", lines, size=WIDE)

    def _mfu_per_token(self) -> float | None:
        """MFU over tokens per second: one factor for the whole run."""
        pairs = [
            (x["mfu"], x["tokens_per_second"]) for x in self.training if x.get("mfu") and x.get("tokens_per_second")
        ]
        return sum(m for m, _ in pairs) / sum(t for _, t in pairs) if pairs else None

    def _samples(self) -> Markup:
        each = [
            tag("div", tag("pre", tag("em", prompt), text.removeprefix(prompt)), class_="sample")
            for prompt, text in self.samples
        ]
        how = f"Drawn with {_code(self.experiment['sampling'])}." if "sampling" in self.experiment else ""
        note = f"The prompt is in colour. {how}" if how else ""
        if self.about.get("objective", {}).get("asked", "token") != "token":
            note = "What the model got is in colour, its answer, always the likeliest token, below."
        return section("Samples", tag("div", *each, class_="samples") if each else "", note=note)

    # ------------------------------------------------------------ what it was

    def _model(self) -> Markup:
        model = self.about.get("model", {})
        if not model:
            return Markup("")
        most = max(model["by_part"].values(), default=1)
        rows = [
            [tag("code", p), _bar(n / most), f"{n:,}", f"{n / max(model['parameters'], 1):.1%}"]
            for p, n in model["by_part"].items()
        ]
        rows.append([tag("b", "all"), "", tag("b", f"{model['parameters']:,}"), "100%"])
        facts = [
            ["FLOPs per token, forward and backward", f"{model['flops_per_token']:,}"],
            ["training state (parameters, optimizer, averages)", _size(model["state_bytes"])],
            ["peak of all devices", f"{human(self.about.get('peak_flops', math.nan))}FLOP/s"],
            ["the peak is from", self.about.get("peak_source", "")],
            ["mesh", ", ".join(f"{k} {v}" for k, v in self.about.get("mesh", {}).items())],
        ]
        return section(
            "Model", table(["part", "", "parameters", "share"], rows, 2), tag("p"), table(["", ""], facts, 2)
        )

    def _data(self) -> Markup:
        rows = [
            [
                source,
                split,
                f"{a['documents']:,}",
                f"{a['tokens']:,}",
                _size(a["bytes"]),
                f"{a['bytes'] / max(a['tokens'], 1):.2f}",
            ]
            for source, splits in self.about.get("data", {}).items()
            for split, a in splits.items()
        ]
        return section(
            "Data", table(["source", "split", "documents", "tokens", "text", "bytes a token"], rows, text_columns=2)
        )

    def _declared(self) -> Markup:
        where = f"The whole value, as {self.reference} and the command line made it." if self.reference else ""
        return section("Experiment", tag("pre", _coloured(self.experiment), class_="code"), note=where)

    def _machine(self) -> Markup:
        command = tag("pre", f"$ {self.about['command']}", class_="command") if self.about.get("command") else ""
        environment = {
            k: _size(v) if k == "memory_bytes" else str(v)
            for k, v in self.about.get("environment", {}).items()
            if v not in ("", None)
        }
        facts = [[k.removesuffix("_bytes"), v] for k, v in environment.items()]
        compute = [[k, str(v)] for k, v in self.about.get("compute", {}).items() if k != "type"]
        both = tag("div", table(["environment", ""], facts, 2), table(["computed with", ""], compute, 2), class_="two")
        return section("Run it again", command, tag("p"), both if facts or compute else "")


# ---------------------------------------------------------------- reading and writing values


def _samples(folder: Path) -> Iterator[tuple[str, str]]:
    """(prompt, prompt and continuation) of each sample; without samples.json the text as it stands, and no prompt."""
    if listed := _read_json(folder / "samples.json", []):
        yield from ((s["prompt"], s["text"]) for s in listed)
    elif (file := folder / "samples.txt").is_file():
        yield from (
            ("", text.strip("\n"))
            for text in file.read_text(encoding="utf-8", errors="replace").split("\n" + "=" * 80 + "\n")
        )


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 1000 else human(value)


def _column(lines: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """The steps and values of the lines that have `key`."""
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [x for x, _ in found], [y for _, y in found]


def _recent(lines: list[dict[str, Any]], key: str) -> float:
    """The mean over the last tenth of the run."""
    values = _column(lines[-max(1, len(lines) // 10) :], key)[1]
    return sum(values) / len(values) if values else math.nan


def _median(lines: list[dict[str, Any]], key: str) -> float:
    values = sorted(_column(lines, key)[1])
    return values[len(values) // 2] if values else math.nan


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _in_words(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _size(count: int) -> str:
    for unit, size in BINARY:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _bar(share: float) -> Markup:
    return tag("span", class_="bar", style=f"width: {max(140 * share, 1):.0f}px")


def _code(data: Any) -> str:
    """Plain data of a value as Python would write it."""
    if isinstance(data, dict):
        inner = ", ".join(
            f"{k}={_code(v)}" if "type" in data else f"{k!r}: {_code(v)}" for k, v in data.items() if k != "type"
        )
        return f"{data['type'].rpartition(':')[2]}({inner})" if "type" in data else f"{{{inner}}}"
    return f"[{', '.join(map(_code, data))}]" if isinstance(data, list) else repr(data)


def _coloured(data: Any, indent: int = 0, width: int = 96) -> Markup:
    """`_code` over several lines where it is long, field names grey, the names of classes in colour."""
    if not isinstance(data, dict) or not data:
        return joined([_code(data)])
    typed = "type" in data
    fields = {k: v for k, v in data.items() if k != "type"}
    inside = [
        joined([tag("i", f"{k}=" if typed else f"{k!r}: "), _coloured(v, indent + 4, width)]) for k, v in fields.items()
    ]
    name = tag("em", data["type"].rpartition(":")[2]) if typed else Markup("")
    start, end = ("(", ")") if typed else ("{", "}")
    if indent and indent + len(_code(data)) <= width:
        return joined([name, start, Markup(", ".join(inside)), end])
    pad = " " * (indent + 4)
    return joined([name, start, "\n", *(joined([pad, one, ",\n"]) for one in inside), " " * indent, end])
