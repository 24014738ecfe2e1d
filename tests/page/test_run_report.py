"""The report is one whole page, of what is there, with everything escaped and nothing fetched."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main
from lm.page import plots
from lm.page.run_record import RunRecord
from lm.page.run_report import write_report

HOSTILE = '<script>alert("x")</script> & <b>'
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Checked(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(path: Path) -> Checked:
    page = Checked()
    page.feed(path.read_text())
    page.close()
    assert page.open == []
    return page


def fill(folder: Path, steps: int = 40, evaluated: bool = True, about: bool = True) -> Path:
    source = {"type": "TextFolder", "path": HOSTILE}
    value = {
        "type": "Experiment",
        "name": "little",
        "steps": 40,
        "batch_tokens": 512,
        "prompts": [HOSTILE],
        "data": {
            "type": "Data",
            "mixture": {
                "type": "Mixture",
                "sources": {"code": source, "prose": source},
                "weights": {"code": 0.5, "prose": 0.5},
            },
        },
    }
    (folder / "experiment.json").write_text(json.dumps({"experiment": "experiments.little:experiment", "value": value}))
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "loss": 5 - step / 40,
                "learning_rate": 1e-3,
                "grad_norm": 1.0,
                "tokens": 512 * step,
                "tokens_per_second": 9000.0,
                "mfu": 0.3,
            }
        )
        if evaluated and step % 20 == 0:
            each = {f"eval/{s}/{k}": 2.0 for s in ("code", "prose") for k in ("loss", "perplexity", "bits_per_byte")}
            lines.append({"step": step, **each, "eval/loss": 2.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if about:
        amount = {"documents": 3, "tokens": 1000, "bytes": 3500}
        (folder / "about.json").write_text(
            json.dumps(
                {
                    "command": "lm train experiments.little --set 'name=<i>'",
                    "started": "2026-01-02T03:04:05+00:00",
                    "finished": "2026-01-02T03:05:05+00:00",
                    "seconds": 60.0,
                    "compile_seconds": 2.0,
                    "environment": {
                        "python": "3.11.9",
                        "device": "cpu",
                        "backend": "cpu",
                        "cores": 2,
                        "memory_bytes": 2**33,
                    },
                    "model": {
                        "parameters": 1200,
                        "by_part": {"stem/tokens": 1000, "head/kernel": 200},
                        "flops_per_token": 7200,
                        "state_bytes": 14400,
                    },
                    "peak_flops": 1e11,
                    "peak_source": "measured",
                    "compute": {"dtype": "float32"},
                    "mesh": {"data": 1},
                    "data": {s: {"train": amount, "heldout": amount} for s in ("code", "prose")},
                    "shares": [[0, {"code": 0.5, "prose": 0.5}], [39, {"code": 0.2, "prose": 0.8}]],
                    "baselines": {s: {"gzip": 2.5, "xz": 2.4} for s in ("code", "prose")},
                }
            )
        )
        (folder / "samples.json").write_text(json.dumps([{"prompt": HOSTILE, "text": HOSTILE + " and on"}]))
    return folder


def test_a_run_that_is_under_way_and_one_without_counts_of_duplicates_have_a_page(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    about = json.loads((folder / "about.json").read_text())
    for splits in about["data"].values():
        splits["train"]["duplicates"] = None
    (folder / "about.json").write_text(json.dumps({**about, "finished": None}))
    assert not RunRecord(folder).finished and "bytes a token" in parsed(write_report(folder)).text


def test_what_one_should_know_of_the_documents_stands_beside_their_sizes(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps({**about, "remarks": [f"source {HOSTILE!r}: 2 of 3"]}))
    assert f"source {HOSTILE!r}: 2 of 3." in parsed(write_report(folder)).text


def test_throughput_and_mfu_are_of_one_span(tmp_path: Path) -> None:
    """The median row of the run, also where the last ones were slow."""
    fill(tmp_path)
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    slow = [
        line | {"tokens_per_second": 1500.0, "mfu": 0.05} if line["step"] > 36 and "mfu" in line else line
        for line in found
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in slow))
    page = parsed(write_report(tmp_path))
    assert "tokens per second9k30% of the device's peak" in page.text


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: "", "Damaged: the run has ended, but its metrics.jsonl stops at step 0 of 40."),
        (lambda text: text[: len(text) // 2], "metrics.jsonl stops at step 20 of 40"),
        (lambda text: "{}\n" + text, "Damaged: 1 line of metrics"),
        (
            lambda text: text.replace('"loss": 4.5,', '"loss": "low",'),
            "Damaged: 1 line of metrics.jsonl cannot be read",
        ),
        (lambda text: text.replace("}", "", 2), "Damaged: 2 lines of metrics.jsonl cannot be read"),
    ],
)
def test_damaged_metrics_are_told(damage: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = fill(tmp_path) / "metrics.jsonl"
    file.write_text(damage(file.read_text()))
    assert main(["report", str(tmp_path)]) == 0
    assert told in parsed(tmp_path / "report.html").text and told in capsys.readouterr().err
    fill(tmp_path)
    assert main(["report", str(tmp_path)]) == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["experiment.json", "about.json"])
@pytest.mark.parametrize("text", ["[]", "{", "null"])
def test_what_is_no_run_s_file_is_one_line(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fill(tmp_path) / name).write_text(text)
    assert main(["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_is_whole_and_says_what_happened(tmp_path: Path) -> None:
    page = parsed(write_report(fill(tmp_path)))
    for words in (
        "A transformer of 1.2k parameters, trained on code and prose for 40 steps",
        "20% smaller than gzip",
        "Loss",
        "Gradient norm",
        "Mixture",
        "stem/tokens",
        "7,200",
        "lm train experiments.little --set 'name=<i>'",
        "8.0 GiB",
        "and on",
        "finished",
    ):
        assert words in page.text, words
    assert sum(tag == "svg" for tag, _ in page.tags) == 8  # the loss twice, for wide and narrow windows
    assert {"broad", "narrow", "scroll"} <= {attrs.get("class") for tag, attrs in page.tags if tag == "div"}


def test_everything_is_escaped(tmp_path: Path) -> None:
    path = write_report(fill(tmp_path))
    page = parsed(path)
    assert not {"script", "iframe"} & {tag for tag, _ in page.tags}
    assert HOSTILE + " and on" in page.text
    assert "<script" not in path.read_text()


def test_nothing_is_fetched(tmp_path: Path) -> None:
    path = write_report(fill(tmp_path))
    text = path.read_text()
    assert "http:" not in text and "https:" not in text and "@import" not in text
    references = [
        v or ""
        for _, attributes in parsed(path).tags
        for k, v in attributes.items()
        if k in ("src", "href", "xlink:href")
    ]
    assert references and all(r.startswith("#") for r in references)
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))


def test_every_id_is_there_once_and_every_reference_leads_somewhere(tmp_path: Path) -> None:
    tags = parsed(write_report(fill(tmp_path))).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    assert {(a["href"] or "")[1:] for _, a in tags if "href" in a} <= set(ids)


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(fill(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


@pytest.mark.parametrize(
    ("steps", "evaluated", "about"), [(0, False, False), (1, False, True), (10, False, True), (25, True, False)]
)
def test_a_run_under_way_has_a_report(tmp_path: Path, steps: int, evaluated: bool, about: bool) -> None:
    fill(tmp_path, steps, evaluated, about)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 26, "lo')
    page = parsed(write_report(tmp_path))
    assert "little" in page.text and ("Held-out text" in page.text) == evaluated
    assert about or f"at step {steps} of 40" in page.text


def test_samples_without_json_are_read_from_the_text(tmp_path: Path) -> None:
    (fill(tmp_path, about=False) / "samples.txt").write_text("one\n" + "=" * 80 + "\ntwo\n")
    assert "onetwo" in parsed(write_report(tmp_path)).text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run"):
        write_report(tmp_path)


def test_smoothing_keeps_a_constant_and_the_first_value() -> None:
    assert plots.smoothed([3.0] * 50, 10) == pytest.approx([3.0] * 50)
    assert plots.smoothed([7.0, 1.0, 1.0], 10)[0] == 7.0
