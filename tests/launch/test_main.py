"""The command line: what it understands, how it fails, and how fast it answers."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import pytest

import lm.machine.hardware
from launch.__main__ import VERBS, main, parser
from launch.find import changed, find
from launch.train import check_start
from lm.machine.monitor import terminal


@pytest.fixture(autouse=True)
def machine_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own JAX has started: a command must not change what it runs on."""
    monkeypatch.setattr(lm.machine.hardware, "prepare", lambda devices="": None)


@pytest.mark.parametrize(
    "argv",
    [["train", "e", "--text"], ["train", "e", "--workdir"], ["show", "e", "--text"], ["study", "e", "--workdir"]]
    + [["study", "e", "--text"], ["evaluate", "e", "--text"], ["launch", "local", "e", "--workdir"]]
    + [["tokenizer", "train", "--output", "o", "--text"], ["tokenizer", "train", "--text", "t", "--output"]],
    ids=" ".join,
)
def test_an_empty_path_is_an_unset_variable(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, ""]) == 2
    assert f"argument {argv[-1]}: it is empty, as an unset shell variable is" in capsys.readouterr().err


def test_settings_add_up() -> None:
    args = parser().parse_args(["train", "e", "--set", "a=1", "b.c=2", "--workdir", "w", "--set", "d=3"])
    assert (args.experiment, args.workdir, args.set) == ("e", "w", ["a=1", "b.c=2", "d=3"])


@pytest.mark.parametrize(
    "argv", [[], *([verb] for verb in VERBS), ["tokenizer", "train"], ["tokenizer", "inspect"]], ids=" ".join
)
def test_help_teaches(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*argv, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "lm" in shown and ("example" in shown or argv == ["tokenizer"])


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["trian"], 2, "did you mean train"),
        (["train"], 2, "EXPERIMENT"),
        (["sample", "r", "--seed", "x"], 2, "invalid int"),
        (["train", "e", "--devices", "cup"], 2, "invalid choice"),
        (["sample", "r", "--temprature", "1"], 2, "--temprature 1, did you mean --temperature; see lm sample --help"),
        (["tokenizer", "inspect", "r", "--texts=x"], 2, "did you mean --text; see lm tokenizer inspect --help"),
        (["show", "e", "--qqq"], 2, "unrecognized arguments: --qqq; see lm show --help"),
        (["show", "experiments.quickstrat"], 1, "did you mean experiments.quickstart"),
        (["show", "experiments.quickstart", "--set", "model.layer=3"], 1, "did you mean layers"),
        (["show", "experiments.quickstart", "--set", "steps=many"], 1, "steps=many"),
        (["study", "experiments.ablations.heads", "--seeds", "0"], 1, "--seeds 0: expected 1 to 10,000"),
        (["study", "experiments.ablations.heads", "--seeds", "-2"], 1, "--seeds -2: expected 1 to"),
        (["sample", "nowhere", "-n", "0"], 1, "at least 1"),
        (["sample", "nowhere"], 1, "nowhere is not a run"),
        (["report", "nowhere"], 1, "nowhere is not a run"),
        (["tokenizer", "inspect", "nowhere"], 1, "no such file or folder: nowhere"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == code
    shown = capsys.readouterr().err
    assert shown.startswith("lm: ") and shown.count("\n") == 1 and said in shown


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    assert main([]) == 2
    assert warnings.formatwarning("told", UserWarning, "file.py", 3) == "lm: told\n"
    assert warnings.formatwarning("old", DeprecationWarning, "file.py", 3).startswith("file.py:3: Deprecat")


def raising(error: BaseException) -> Any:
    def run(folder: str) -> None:
        raise error

    return run


class Stopped(Exception):
    signal = 15


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("two\nlines"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
        (Stopped("after step 3"), 143),
        (MemoryError(), 1),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lm.page.run_report.write_report", raising(error))
    assert main(["report", "r"]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_too_little_memory_is_one_line_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What XLA says of it comes from XLA here; another of its errors is ours."""

    def allocate(folder: str) -> None:
        jax.numpy.zeros(10**15).block_until_ready()

    monkeypatch.setattr("lm.page.run_report.write_report", allocate)
    assert main(["report", "r"]) == 1
    said = capsys.readouterr().err
    assert "RESOURCE_EXHAUSTED: Out of memory allocating 4000000000000000 bytes: a step takes less with" in said
    assert said.count("\n") == 1
    monkeypatch.setattr("lm.page.run_report.write_report", raising(RuntimeError("RESOURCE_EXHAUSTED: a message")))
    with pytest.raises(RuntimeError, match="a message"):
        main(["report", "r"])


def test_a_report_imports_no_page_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sidepage.py").write_text("raise KeyError('imported')")
    (tmp_path / "study.json").write_text(json.dumps({"study": "sidepage:s", "set": [], "text": "", "seeds": 0}))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LM_TRUST", "0")
    assert main(["report", str(tmp_path)]) == 1
    assert "the module sidepage is named by a file of the run" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--trust"]) == 1
    assert "sidepage cannot be read: KeyError: 'imported'" in capsys.readouterr().err


def test_training_goes_on_without_its_reader(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`lm train … | head -1`"""
    steps: list[int] = []

    def train(*_: Any) -> None:
        for step in range(5):
            terminal().print("x" * 10_000)
            print("y" * 10_000, flush=True)
            steps.append(step)

    monkeypatch.setattr("lm.run.course.train", train)
    monkeypatch.setattr("lm.run.inside.look_inside", lambda workdir: None)
    reader, writer = os.pipe()
    os.close(reader)
    broken = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", broken)
    assert main(["train", "experiments.quickstart"]) == 0 and len(steps) == 5 and sys.stdout is broken
    assert capfd.readouterr().err == "lm: nobody reads this command's output any more: it goes on without\n"
    monkeypatch.setattr("lm.run.course.train", lambda *_: raising(ValueError("a mistake"))(None))
    assert main(["train", "experiments.quickstart"]) == 1
    assert capfd.readouterr().err == "lm: a mistake\n"


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not a run"):
        main(["report", "nowhere", "--debug"])
    monkeypatch.setenv("LM_DEBUG", "1")
    with pytest.raises(ValueError, match="is not a run"):
        main(["report", "nowhere"])


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.page.run_report.write_report", raising(RuntimeError("ours")))
    with pytest.raises(RuntimeError, match="ours"):
        main(["report", "r"])


def test_show_counts_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "experiments.quickstart", "--set", "model.layers=2", "steps=80"]) == 0
    shown = capsys.readouterr().out
    from lm.model import count

    model = find("experiments.quickstart")[0].replace(model=dict(layers=2)).model
    for words in (
        "ModelConfig",
        "layers 2",
        "steps 80",
        "FLOPs per token",
        "memory of state",
        f"{count.parameters(model):,}",
    ):
        assert words in shown


def test_evaluate_prints_a_table_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"code": {"loss": 2.0, "perplexity": 7.389, "bits_per_byte": 0.875, "gzip": 2.5, "xz": 2.25}}

    def evaluate(run: str, step: str) -> dict[str, dict[str, float]]:
        print("preparing")
        return found

    monkeypatch.setattr("lm.run.evaluate.evaluate", evaluate)
    assert main(["evaluate", "r", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["evaluate", "r"]) == 0
    assert "0.875" in capsys.readouterr().out


def test_a_batch_that_the_devices_say_is_not_set_besides() -> None:
    experiment, _ = find("experiments.gpt:gpt2")
    for settings in (["batch_tokens=2048"], ["steps=5000", "batch_tokens=2048", "rows_per_device=1"]):
        with pytest.raises(ValueError, match="batch_tokens has no effect where rows_per_device=1 says the batch"):
            changed(experiment, settings)
    assert changed(experiment, ["batch_tokens=2048", "rows_per_device=0"]).rows == 2
    assert changed(experiment, ["rows_per_device=2"]).rows_per_device == 2
    assert changed(find("experiments.quickstart")[0], ["batch_tokens=4096"]).batch_tokens == 4096


def test_training_ends_with_what_is_next(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lm.run.course.train", lambda *args: None)
    monkeypatch.setattr("lm.run.inside.look_inside", lambda workdir: print("inside"))
    assert main(["train", "experiments.quickstart"]) == 0
    assert capsys.readouterr().out.startswith("inside\nnext: lm sample runs/quickstart")


def test_a_start_that_is_not_there_is_told_with_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for page, made in {"grpo_arithmetic": "grpo_arithmetic:sft", "tune.dpo": "tune.sft_small"}.items():
        assert main(["train", f"experiments.{page}", "--smoke"]) == 1
        assert f"is not there: `lm train experiments.{made}` makes it\n" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the start runs/nobody is not there$"):
        check_start("runs/nobody")
    (tmp_path / "runs" / "nobody").mkdir(parents=True)
    check_start("runs/nobody")
    check_start("elsewhere/model.gguf")  # what reads it says what is wrong


def test_train_hands_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("lm.run.course.train", lambda *args: seen.extend(args))
    monkeypatch.setattr("lm.run.inside.look_inside", seen.append)
    assert main(["train", "experiments.quickstart", "--set", "steps=50", "prompts=('a b',)"]) == 0
    experiment, workdir, reference, command, stepping, looked_into = seen
    assert looked_into == workdir
    assert (experiment.steps, experiment.prompts, workdir, reference) == (
        50,
        ("a b",),
        "runs/quickstart",
        "experiments.quickstart:experiment",
    )
    assert stepping is contextlib.nullcontext
    assert command == """lm train experiments.quickstart --set steps=50 'prompts=('"'"'a b'"'"',)'"""


def test_help_does_not_wait_for_jax() -> None:
    code = (
        "import sys, launch.__main__ as m; m.main(['--help']); "
        "print([n for n in ('jax', 'numpy', 'matplotlib') if n in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60
    )
    assert run.stdout.endswith("[]\n"), run.stderr


@pytest.mark.parametrize("accumulate", [1, 2])
def test_balancing_over_micro_batches_is_said(accumulate: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "experiments.mixtral", "--set", f"accumulate={accumulate}"]) == 0
    assert ("over each of the 2 micro-batches" in capsys.readouterr().out) == (accumulate == 2)
