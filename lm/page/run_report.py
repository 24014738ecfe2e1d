"""The report of a run: one page, made from the files in its folder, that one would show to a colleague.

It takes what is there (run_record.py), and leaves out the sections of what is not: a run that is under way, or that was
never evaluated, has a report too."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.machine.monitor import duration, human
from lm.page import plots
from lm.page.markup import Markup, charts, document, figure, header, section, table, tag, wide, write
from lm.page.measure import Measure
from lm.page.plots import HALF, WIDE, Line
from lm.page.run_record import INSIDE_PAGE, Metrics, RunRecord, recent, series
from lm.page.source import as_python, coloured
from lm.page.words import in_words, join_and, median, size

COMPRESSORS = {"gzip": "gzip −9", "xz": "xz −9e"}
INSIDE = {  # what a run notes of its model's inside (lm/inspect/watching.py): title, meaning
    "attention_entropy": ("Entropy of attention", "nats, the mean over queries"),
    "sink_mass": ("Attention to the first token", "its share, over the queries behind it"),
    "previous_token": ("Attention to the token before", "its share, over the queries that have one"),
    "induction": ("Induction", "attention to what stood behind the same token, of random tokens that come twice"),
    "largest_logit": ("Largest attention logit", "of all queries and keys"),
    "residual_norm": ("Residual stream", "root mean square behind the layer"),
    "dead_units": ("Dead hidden units", "share that never exceeds a hundredth of the layer's largest"),
    "router_load": ("Router", "share of the tokens whose first choice an expert is"),
}
INSIDE_LINK = ": where each head of the model looked in one of them, and what each layer had to say."
NOTES = {  # under the table of results, by the headline measure
    "bits_per_byte": "Bits per byte: what an ideal coder would need with the model's probabilities. "
    "The compressors got the same held-out files, one by one.",
    "accuracy": "Loss in nats a {target}; the others of the text are not asked for, so that no bits per byte follow.",
}


def write_report(workdir: str | Path) -> Path:
    """Write `workdir`/report.html and return its path. Raises ValueError where `workdir` is not a run's folder, or
    cannot be written."""
    path = Path(workdir) / "report.html"
    write(path, RunReport(RunRecord(Path(workdir))).page())
    return path


class RunReport:
    """The page of `record`, section by section."""

    def __init__(self, record: RunRecord):
        self.record, self.about, self.experiment = record, record.about, record.experiment

    def page(self) -> str:
        """The page's HTML."""
        record, name = self.record, str(self.experiment.get("name", "run"))
        state = "finished" if record.finished else f"at step {record.steps:,} of {self.experiment.get('steps', 0):,}"
        started = str(self.about.get("started", ""))[:16].replace("T", " ")
        return document(
            f"{name} – a training run",
            header(name, state, record.finished, self._lead(), self._tiles()),
            self._results(),
            self._extra_evaluations(),
            section("Training", charts(self._training())),
            section("Inside", charts(self._inside()), note="By layer, from below, and within a layer by head."),
            self._samples(),
            self._model(),
            self._data(),
            self._examples(),
            self._declared(),
            self._machine(),
            tag(
                "footer",
                f"Started {started}. " if started else "",
                "Made by lm report from the files in the run's folder.",
            ),
        )

    # ------------------------------------------------------------ the first screen

    def _lead(self) -> str:
        """One or two sentences: what was trained, on what, how long, with what result."""
        model, last = self.about.get("model", {}), self.record.training[-1] if self.record.training else {}
        size = f"A transformer of {human(model['parameters'])} parameters" if model else "A transformer"
        trained = f"{size}, trained on {join_and(self.record.sources) or 'text'} for {self.record.steps:,} steps"
        trained += f" ({human(last['tokens'])} tokens)" if "tokens" in last else ""
        seconds = self.about.get("seconds") or 0
        trained += f" in {in_words(seconds)}" if seconds else ""
        trained += f" on {where}" if (where := _device(self.about.get("environment", {}))) else ""
        return f"{self.record.damage} {trained}. {self._reached()}".strip()

    def _reached(self) -> str:
        """The headline measure of each source, in a sentence."""
        record, measure = self.record, self.record.headline
        parts = []
        for source in record.evaluated:
            value = record.value(source)
            others = [f"{COMPRESSORS.get(k, k)} {v:.2f}" for k, v in record.baselines(source).items()]
            if measure.percent:
                others = [f"{record.loss.title} {record.value(source, record.loss.name):.2f}"]
            shown = measure.format(value) if measure.percent else f"{value:.2f} {measure.title}"
            parts.append(f"{shown} on {source}" + (f" ({', '.join(others)})" if others else ""))
        sentences = {
            "bits_per_byte": "It codes held-out text in {}.",
            "accuracy": f"Of every {record.target} of held-out text it gets right {{}}.",
        }
        return sentences.get(measure.name, "On held-out text: {}.").format(join_and(parts)) if parts else ""

    def _tiles(self) -> Iterator[tuple[str, str, str]]:
        record, model = self.record, self.about.get("model", {})
        for source in record.evaluated[:3]:
            yield self._result_tile(source)
        if record.training:
            last, batch = record.training[-1], human(self.experiment.get("batch_tokens", 0))
            loss, remark = record.loss, f"{record.loss.unit}, at the end".removeprefix(", ")
            yield f"training {loss.title}", loss.format(recent(record.training, loss.name)), remark
            yield "tokens", human(last.get("tokens", math.nan)), f"{record.steps:,} steps of {batch}"
        if model:
            yield "parameters", human(model["parameters"]), f"{human(model['flops_per_token'])} FLOPs a token"
        if record.training:
            mfu, speed = (median(series(record.training, key)[1]) for key in ("mfu", "tokens_per_second"))
            remark = f"{mfu:.0%} of the device's peak" if mfu == mfu else ""
            yield "tokens per second", human(speed), remark
        if self.about.get("seconds"):
            compiling = self.about.get("compile_seconds") or 0
            yield "time", duration(self.about["seconds"]), f"first step {compiling:.1f} s" if compiling else "in all"

    def _result_tile(self, source: str) -> tuple[str, str, str]:
        record, measure = self.record, self.record.headline
        value, gzip = record.value(source), record.baselines(source).get("gzip")
        if measure.name == "accuracy":
            return f"right, {source}", measure.format(value), f"of each held-out {record.target}"
        remark = measure.unit or "held out"
        if gzip:
            remark = f"{abs(1 - value / gzip):.0%} {'larger' if value > gzip else 'smaller'} than gzip"
        return f"{measure.title}, {source}", measure.format(value), remark

    # ------------------------------------------------------------ results

    def _results(self) -> Markup:
        """The measures of every source, and what others reach in the headline measure."""
        record = self.record
        if not record.evaluated:
            return Markup("")
        measures = [m for m in record.measures if any(f"eval/{s}/{m.name}" in record.final for s in record.evaluated)]
        others = list(dict.fromkeys(name for source in record.evaluated for name in record.baselines(source)))
        drawn = [self._result_chart(i, source) for i, source in enumerate(record.evaluated)]
        rows = [
            [source, *(self._result_cell(source, m) for m in measures), *self._baseline_cells(source, others)]
            for source in record.evaluated
        ]
        head = ["source", *(m.title for m in measures), *(COMPRESSORS.get(name, name) for name in others)]
        note = NOTES.get(record.headline.name, "").format(target=record.target)
        return section("Held-out text", charts(drawn), table(head, rows), note=note)

    def _result_chart(self, i: int, source: str) -> Markup:
        record, measure = self.record, self.record.headline
        x, y = series(record.evaluations, f"eval/{source}/{measure.name}")
        levels = {COMPRESSORS.get(name, name): value for name, value in record.baselines(source).items()}
        most = max(levels.values(), default=math.inf)
        top = 1.25 * most if max(y) > 1.6 * most else None
        line = Line(x, y, colour=i, dots=True)
        right = f"share of each held-out {record.target} that is right"
        note = right if measure.name == "accuracy" else f"held-out {measure.title} {measure.unit}".strip()
        drawn = plots.chart(f"heldout{i}", [line], levels=levels, top=top, percent=measure.percent)
        return figure(source, drawn, note)

    def _result_cell(self, source: str, measure: Measure) -> Any:
        shown, others = (
            measure.format(self.record.final.get(f"eval/{source}/{measure.name}")),
            self.record.baselines(source),
        )
        sign = -1 if measure.higher_is_better else 1
        levels = [sign * level for level in others.values()]
        best = measure == self.record.headline and levels and sign * self.record.value(source) <= min(levels)
        return tag("span", shown, class_="win") if best else shown

    def _baseline_cells(self, source: str, names: Sequence[str]) -> list[str]:
        known = self.record.baselines(source)
        return [self.record.headline.format(known.get(name)) for name in names]

    def _extra_evaluations(self) -> Markup:
        """What the experiment's extra evaluations measured in the end, and why some were not made."""
        measured = self.record.extra_evaluations()
        measures = [m for m in self.record.extra_measures if any(m.name in values for values in measured.values())]
        rows = [[*at, *(m.format(values.get(m.name)) for m in measures)] for at, values in measured.items()]
        head = ["evaluation", "source", *(m.title for m in measures)]
        left_out = self.about.get("not_evaluated", {}).items()
        return section(
            "Extra evaluations",
            table(head, rows, 2),
            *(tag("p", f"{name} was not made: {why}.") for name, why in left_out),
        )

    # ------------------------------------------------------------ training

    def _training(self) -> Iterator[Markup]:
        """How training went: loss, then what explains it."""
        training = self.record.training
        if training:
            loss, note = self.record.loss, "each step faint, smoothed on top, held-out with dots"
            note = f"{loss.unit}; {note}".removeprefix("; ")
            yield wide(figure(loss.title.capitalize(), self._loss_chart(), note, self._loss_chart("lossnarrow", HALF)))
        norms = series(training, "grad_norm")[1]
        cut = 1.15 * sorted(norms)[int(0.98 * (len(norms) - 1))] if norms and max(norms) > 0 else None
        for key, title, note, top, right in (
            ("learning_rate", "Learning rate", "", None, None),
            ("grad_norm", "Gradient norm", "before clipping", cut, None),
            (
                "tokens_per_second",
                "Throughput",
                "tokens per second; right, model-FLOP utilisation",
                None,
                _mfu_per_token(training),
            ),
        ):
            x, y = series(training, key)
            if x:
                drawn = plots.chart(key.replace("_", ""), [Line(x, y)], from_zero=True, top=top, right=right)
                yield figure(title, drawn, note)
        shares = self.about.get("shares") or []
        by_source = {source: [at.get(source, 0.0) for _, at in shares] for source in (shares[0][1] if shares else ())}
        if len(shares) > 1 and len(by_source) > 1:
            drawn = plots.shares("mixture", [step for step, _ in shares], by_source)
            yield figure("Mixture", drawn, "share of the rows of a batch")

    def _inside(self) -> Iterator[Markup]:
        """What was noted of the model's inside, over the steps."""
        lines = self.record.inside
        for name, (title, note) in INSIDE.items():
            noted = [(line["step"], line[name]) for line in lines if line.get(name)]
            if len(noted) > 1:
                columns = [
                    [x for layer in values for x in (layer if isinstance(layer, list) else [layer])]
                    for _, values in noted
                ]
                rows = list(zip(*columns, strict=True))
                drawn = plots.heat(name.replace("_", ""), [step for step, _ in noted], rows, len(noted[0][1]))
                yield figure(title, drawn, note)

    def _loss_chart(self, drawing: str = "loss", size: tuple[float, float] = WIDE) -> str:
        name = self.record.loss.name
        x, y = series(self.record.training, name)
        lines = [Line(x, y, colour=-1, faint=True)] if len(x) > 20 else []
        lines.append(Line(x, plots.smoothed(y, len(y) / 40), label="training", colour=-1))
        for i, source in enumerate(self.record.sources):
            xs, ys = series(self.record.evaluations, f"eval/{source}/{name}")
            if xs:
                lines.append(Line(xs, ys, label=f"{source}, held-out", colour=i, dots=True))
        return plots.chart(drawing, lines, size=size)

    def _samples(self) -> Markup:
        each = [
            tag("div", tag("pre", tag("em", prompt), text.removeprefix(prompt)), class_="sample")
            for prompt, text in self.record.samples
        ]
        sampling = self.experiment.get("sampling")
        note = f"The prompt is in colour. Drawn with {as_python(sampling)}." if sampling is not None else ""
        if self.record.greedy_samples:
            note = "What the model got is in colour, its answer, always the likeliest token, below."
        inside = tag("p", tag("a", "Inside", href=INSIDE_PAGE), INSIDE_LINK) if self.record.has_inside else ""
        return section("Samples", tag("div", *each, class_="samples") if each else "", inside, note=note)

    # ------------------------------------------------------------ what it was

    def _model(self) -> Markup:
        model = self.about.get("model", {})
        if not model:
            return Markup("")
        total, most = model["parameters"], max(model["by_part"].values(), default=1)
        rows: list[list[Any]] = [
            [tag("code", part), _bar(n / most), f"{n:,}", f"{n / max(total, 1):.1%}"]
            for part, n in model["by_part"].items()
        ]
        rows.append([tag("b", "all"), "", tag("b", f"{total:,}"), "100%"])
        facts = [
            ["FLOPs per token, forward and backward", f"{model['flops_per_token']:,.0f}"],
            ["training state (parameters, optimizer, averages)", size(model["state_bytes"])],
            ["peak of all devices", f"{human(self.about.get('peak_flops', math.nan))}FLOP/s"],
            ["the peak is from", self.about.get("peak_source", "")],
            ["mesh", ", ".join(f"{k} {v}" for k, v in self.about.get("mesh", {}).items())],
        ]
        parts = table(["part", "", "parameters", "share"], rows, 2)
        return section("Model", parts, tag("p"), table(["", ""], facts, 2))

    def _data(self) -> Markup:
        head = ["source", "split", "documents", "tokens", "text", "bytes a token"]
        rows = [
            [
                *(source, split, f"{amount['documents']:,.0f}", f"{amount['tokens']:,.0f}", size(amount["bytes"])),
                f"{amount['bytes'] / max(amount['tokens'], 1):.2f}",
            ]
            for source, splits in self.about.get("data", {}).items()
            for split, amount in splits.items()
        ]
        remarks = [tag("p", f"{remark}.") for remark in self.about.get("remarks", [])]
        return section("Data", table(head, rows, text_columns=2), *remarks)

    def _examples(self) -> Markup:
        """Documents of the first batches, and what of them is learned."""
        each = [
            tag("div", tag("pre", *(tag("em", text) if loss else text for text, loss in example)), class_="sample")
            for example in self.about.get("examples", [])
        ]
        note = f"Of the first batches. In colour, what carries loss: each {self.record.target}."
        return section("Examples", tag("div", *each, class_="samples") if each else "", note=note)

    def _declared(self) -> Markup:
        made_by = self.record.reference
        where = f"The whole value, as {made_by} and the command line made it." if made_by else ""
        return section("Experiment", tag("pre", coloured(self.experiment), class_="code"), note=where)

    def _machine(self) -> Markup:
        command = tag("pre", f"$ {self.about['command']}", class_="command") if self.about.get("command") else ""
        known = {k: v for k, v in self.about.get("environment", {}).items() if v not in ("", None)}
        facts = [[k.removesuffix("_bytes"), size(v) if k == "memory_bytes" else str(v)] for k, v in known.items()]
        compute = [[k, str(v)] for k, v in self.about.get("compute", {}).items() if k != "type"]
        both = tag("div", table(["environment", ""], facts, 2), table(["computed with", ""], compute, 2), class_="two")
        return section("Run it again", command, tag("p"), both if facts or compute else "")


def _device(environment: Mapping[str, Any]) -> str:
    """What the run was trained on."""
    if not environment:
        return ""
    if environment.get("backend", environment.get("device")) == "cpu":
        return f"{environment.get('cores')} CPU cores"
    return f"{environment.get('devices')} × {environment.get('device')}"


def _mfu_per_token(training: Metrics) -> float | None:
    """MFU over tokens per second: one factor for the whole run."""
    pairs = [(x["mfu"], x["tokens_per_second"]) for x in training if x.get("mfu") and x.get("tokens_per_second")]
    return sum(mfu for mfu, _ in pairs) / sum(speed for _, speed in pairs) if pairs else None


def _bar(share: float) -> Markup:
    return tag("span", class_="bar", style=f"width: calc({share:.3f} * var(--bar))")
