"""Runs from end to end: what a folder holds, what can be done with it, and what a mistake says."""

import contextlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.page.run_report import write_report
from lm.pretrained import Pretrained, load, read_experiment
from lm.run import course
from lm.run.evaluate import evaluate
from lm.run.folder import write_json
from lm.run.samples import write_samples
from lm.run.together import LinesOnly
from lm.sharding.rules import MESH_AXES
from lm.text.tokenizer import ByteTokenizer
from lm.train.checkpoint import Checkpoints
from lm.train.loop import NotFinite
from tests.run.programs import shared_programs
from tests.tiny import STEPS, experiment, lines, of, write_texts


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    with shared_programs():
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def trained(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """The folder of a whole run, on eight devices; and each program that it compiled, with the thread that did."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    compiled: list[tuple[str, str]] = []

    def listen(name: str, seconds: float, **more: Any) -> None:
        if name.endswith("backend_compile_duration"):
            compiled.append((more["fun_name"], threading.current_thread().name))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        report = course.train(experiment(texts), folder, "tests.tiny:experiment", "lm train tests.tiny")
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert report == folder / "report.html"
    return folder, compiled


@pytest.fixture(scope="module")
def finished(trained: tuple[Path, list[tuple[str, str]]]) -> Path:
    return trained[0]


# ---------------------------------------------------------------- what a run leaves


def test_the_folder_holds_what_it_should(finished: Path) -> None:
    there = {p.name for p in finished.iterdir()}
    files = {
        "experiment.json",
        "metrics.jsonl",
        "about.json",
        "history.json",
        "samples.txt",
        "samples.json",
        "report.html",
        "data.json",
    }
    assert files | {".lock", "tensorboard", "checkpoints", "tokenizer"} == there
    assert any(p.stat().st_size for p in (finished / "tensorboard").iterdir())
    assert Checkpoints(finished / "checkpoints").steps() == [8, 12]  # the best is among the last two


def test_the_step_is_compiled_once_beside_the_first_values(trained: tuple[Path, list[tuple[str, str]]]) -> None:
    threads = [thread for name, thread in trained[1] if name == "jit(step_function)"]
    assert threads == ["compile the step"]


def test_the_experiment_reads_back(finished: Path, texts: Path) -> None:
    assert read_experiment(finished) == experiment(texts)
    noted = json.loads((finished / "experiment.json").read_text())
    assert noted["experiment"] == "tests.tiny:experiment"
    assert noted["fingerprint"] == experiment(texts).fingerprint


def test_every_step_is_logged_and_every_source_evaluated(finished: Path) -> None:
    found = lines(finished)
    assert list(of(found, "loss")) == list(range(1, STEPS + 1))
    assert all({"loss", "learning_rate", "grad_norm", "tokens"} <= line.keys() for line in found if "loss" in line)
    raw = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert all(line["tokens_per_second"] >= 0 and 0 <= line["mfu"] < 1 for line in raw if "loss" in line)
    assert of(found, "tokens") == {n: n * 256 for n in range(1, STEPS + 1)}
    for source in ("sums", "words"):
        bits, loss = of(found, f"eval/{source}/bits_per_byte"), of(found, f"eval/{source}/loss")
        assert list(bits) == [4, 8, 12] and bits[12] < bits[4]
        perplexity = of(found, f"eval/{source}/perplexity")
        assert all(perplexity[n] == pytest.approx(math.exp(loss[n])) for n in loss)
    both = [of(found, f"eval/{source}/loss")[12] for source in ("sums", "words")]
    assert of(found, "eval/loss")[12] == pytest.approx(sum(both) / 2)


def test_it_learned(finished: Path) -> None:
    losses = of(lines(finished), "loss")
    assert losses[1] == pytest.approx(math.log(258), abs=1) and losses[STEPS] < losses[1] - 1


def test_the_samples_continue_the_prompts(finished: Path) -> None:
    first, second = (finished / "samples.txt").read_text().split("\n" + "=" * 80 + "\n")
    assert first.startswith("the ") and second.startswith("1 + ")
    assert [s["prompt"] for s in json.loads((finished / "samples.json").read_text())] == ["the ", "1 + "]


def test_the_report_and_its_facts(finished: Path) -> None:
    about = json.loads((finished / "about.json").read_text())
    assert about["model"]["parameters"] == sum(about["model"]["by_part"].values())
    assert about["mesh"] == dict.fromkeys(MESH_AXES, 1) | {"data": 8} and about["environment"]["devices"] == 8
    assert about["finished"] is not None and about["seconds"] > 0 and about["command"] == "lm train tests.tiny"
    assert set(about["baselines"]["words"]) == {"gzip", "xz"}
    assert about["data"]["sums"]["train"]["duplicates"] == 0 and about["remarks"] == []
    assert about["shares"][0] == [0, {"sums": pytest.approx(0.7), "words": pytest.approx(0.3)}]
    page = (finished / "report.html").read_text()
    assert "<html" in page and "words" in page and "http://" not in page.replace("http://www.w3.org", "")


# ---------------------------------------------------------------- what can be done with it


def test_evaluate_is_the_last_evaluation(finished: Path) -> None:
    found, logged = evaluate(finished), lines(finished)[-1]
    for source in ("sums", "words"):
        assert found[source]["loss"] == pytest.approx(logged[f"eval/{source}/loss"], rel=1e-5)
        assert found[source]["bits_per_byte"] == pytest.approx(logged[f"eval/{source}/bits_per_byte"], rel=1e-5)
        assert found[source]["gzip"] > 8 > 0 < found[source]["xz"]  # of texts this short


def test_the_held_out_loss_is_each_document_s(finished: Path, texts: Path) -> None:
    """Packed with others or alone: the mean over all tokens of the documents, bos apart, from the saved average."""
    model = load(finished)
    nll = targets = size = 0.0
    documents = experiment(texts).data.mixture.sources["words"].documents("heldout")
    for text in documents:
        ids = np.array([*model.encode(text), model.tokenizer.eos])
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(ids)] = ids
        logits = np.asarray(model.logits(padded), np.float64)[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll -= log_p[np.arange(len(ids) - 1), ids[1:]].sum()
        targets, size = targets + len(ids) - 1, size + len(text.encode())
    logged = lines(finished)[-1]
    assert nll / targets == pytest.approx(logged["eval/words/loss"], rel=0.01)  # run in bfloat16 where that is fast
    assert nll / size / math.log(2) == pytest.approx(logged["eval/words/bits_per_byte"], rel=0.01)


def test_a_loaded_model_writes(finished: Path) -> None:
    model = load(finished)
    assert isinstance(model, Pretrained) and model.step == STEPS
    text = model.generate("the ", 16)
    assert text == model.generate("the ", 16) and len(text) > 0
    streamed = list(model.stream("the ", 16, seed=1, n=2))
    assert len(streamed[0]) == 2
    sampled = model.generate("the ", 16, temperature=1.0, seed=1)
    assert "".join(part[0] for part in streamed) == sampled


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 258]], "token ids from 1 to 258: the vocabulary is 0 to 257"),
        ([[-1]], "token ids from -1 to -1"),
        ([[0] * 33], r"token ids of shape \(1, 33\): expected \[B, T\] with T from 1 to 32"),
        ([0, 1], r"token ids of shape \(2,\): expected \[B, T\]"),
    ],
)
def test_ids_that_the_model_cannot_read(finished: Path, ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(finished).logits(ids)


def test_a_prompt_longer_than_the_context(finished: Path) -> None:
    with pytest.raises(ValueError, match="a prompt of 41 tokens and 5 new ones do not fit the context of 32"):
        load(finished).generate("x" * 40, 5)


def test_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run: it has no experiment.json"):
        load(tmp_path)
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(ValueError, match="experiment.json cannot be read"):
        read_experiment(tmp_path)


def test_a_finished_run_is_left_as_it_is(finished: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, samples = lines(finished), (finished / "samples.json").read_text()
    course.train(experiment(texts), finished)
    assert lines(finished) == before and (finished / "samples.json").read_text() == samples
    assert "is finished: 12 steps are done" in capsys.readouterr().out


def test_on_a_cpu_no_step_is_dispatched_behind_another(
    finished: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where JAX's devices have not started yet: each would have temporaries of its own."""
    monkeypatch.setattr(course, "write_report", lambda folder: folder / "report.html")
    jax.config.update("jax_cpu_enable_async_dispatch", True)
    course.train(experiment(texts), finished)
    assert not jax.config.values["jax_cpu_enable_async_dispatch"]


def test_a_run_killed_after_its_last_step_is_brought_to_its_end(finished: Path, texts: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    for name in ("samples.txt", "samples.json", "report.html"):
        (folder / name).unlink()
    about = json.loads((folder / "about.json").read_text())
    write_json(folder / "about.json", {**about, "finished": None})
    course.train(experiment(texts), folder)
    assert json.loads((folder / "about.json").read_text())["finished"]
    assert (folder / "samples.txt").read_text() == (finished / "samples.txt").read_text()
    assert (folder / "report.html").exists()


# ---------------------------------------------------------------- mistakes


def test_another_experiment_s_folder_is_refused(finished: Path, texts: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    other = experiment(texts).replace(seed=3, model=dict(layers=1))
    with pytest.raises(ValueError, match="different experiment") as error:
        course.train(other, finished)
    message = str(error.value)
    assert "model.layers was 2, is 1" in message and "seed was 0, is 3" in message and "--workdir" in message
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_a_start_that_failed_is_corrected_in_its_folder(texts: Path, tmp_path: Path) -> None:
    """Whatever it has left there: an experiment, or the tokenizer of another one."""
    folder, right = tmp_path / "run", experiment(texts).replace(steps=2, prompts=())
    with pytest.raises(ValueError, match="raise model.vocab"):
        course.train(right.replace(model=dict(vocab=100)), folder)
    course.Run(right.replace(seed=7), course.claim(folder, right.replace(seed=7), ""))
    (folder / "tokenizer" / "bytes.json").write_text("another")
    assert (folder / "data.json").exists() and not (folder / "metrics.jsonl").exists()
    course.train(right, folder)
    assert (folder / "tokenizer" / "bytes.json").read_text() == "{}" and read_experiment(folder) == right
    with pytest.raises(ValueError, match="different experiment"):
        course.train(right.replace(seed=7), folder)


def test_changed_prompts_are_drawn_again(
    finished: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    metrics = lines(folder)
    course.train(experiment(texts).replace(prompts=("2 + ",), sampling=dict(temperature=0.0)), folder)
    (sample,) = json.loads((folder / "samples.json").read_text())
    assert sample["prompt"] == "2 + " and sample["text"] == "2 + " + load(folder).generate("2 + ", 16)
    page = re.sub("<[^>]*>", "", (folder / "report.html").read_text())
    assert "Drawn with Sampling(temperature=0.0" in page and lines(folder) == metrics
    monkeypatch.setattr(course, "write_report", lambda folder: folder / "report.html")
    course.train(experiment(texts).replace(prompts=()), folder)
    assert not (folder / "samples.json").exists() and not (folder / "samples.txt").exists()


def test_wall_time_is_of_all_processes(texts: Path, tmp_path: Path) -> None:
    declared, folder = experiment(texts).replace(prompts=()), tmp_path / "run"

    def seconds(stop: int = 0) -> tuple[float, float, str]:
        """(told, of this process, when the run began), of a process that a signal stops after the step `stop`."""
        began, signals = time.time(), list[int]()
        run = course.Run(declared, course.claim(folder, declared, ""))
        with contextlib.suppress(course.Interrupted):
            for n in run.steps(signals, partial(LinesOnly, "run")):
                signals += [15] if n == stop else []
                time.sleep(0.05)
        about = json.loads((folder / "about.json").read_text())
        return about["seconds"], time.time() - began, about["started"]

    first, own, started = seconds(stop=3)
    assert 0.1 < first <= own
    second, own, again = seconds(stop=6)
    assert first + 0.1 < second <= first + own + 0.1 and again == started
    third, own, again = seconds()
    assert second + 0.2 < third <= second + own + 0.1 and again == started
    assert f"in {third:.0f} seconds" in write_report(folder).read_text()


def test_what_changes_no_number_is_not_another_experiment(finished: Path, texts: Path) -> None:
    same = experiment(texts).replace(log_every_steps=5, keep_last=4, prompts=("a",), name="other")
    course.claim(finished, same, "")
    course.claim(finished, experiment(texts), "tests.tiny:experiment")


def test_a_workdir_that_cannot_be_written(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot use .* as a run's folder: .*choose another --workdir"):
        course.train(experiment(texts), tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_workdir_that_is_read_only(texts: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="Permission denied.*choose another --workdir"):
        course.train(experiment(texts), tmp_path / "run")


def test_rows_that_do_not_divide_over_the_mesh(texts: Path, tmp_path: Path) -> None:
    odd = experiment(texts).replace(batch_tokens=9 * 32)
    with pytest.raises(ValueError, match="9 rows a micro-batch .* over mesh data=8: try data=1 or batch_tokens=256 or"):
        course.train(odd, tmp_path / "run")
    with pytest.raises(ValueError, match="mesh data 3 needs 3 devices, 8 are here"):
        course.train(experiment(texts).replace(mesh={"data": 3}), tmp_path / "other")


def test_a_vocabulary_smaller_than_the_tokenizer(texts: Path, tmp_path: Path) -> None:
    small = experiment(texts).replace(model=dict(vocab=100))
    with pytest.raises(ValueError, match="the tokenizer has 258 pieces and model.vocab is 100: raise model.vocab"):
        course.train(small, tmp_path / "run")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("x" * 41, "prompts: 'x{40}…': a prompt of 42 tokens and 1 new ones do not fit the context of 32: shorten"),
        ("x" * 31, "a prompt of 32 tokens and 1 new ones do not fit the context of 32"),
        ("", "prompts: '': the prompt has no tokens.*give at least one character"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused_before_the_first_step(
    prompt: str, message: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = experiment(texts).replace(prompts=("the ", prompt))
    if not prompt:
        monkeypatch.setattr(ByteTokenizer, "encode_prompt", lambda self, text: self.encode(text))
    with pytest.raises(ValueError, match=message):
        course.train(declared, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_padded_vocabulary_draws_what_the_tokenizer_has(texts: Path, tmp_path: Path) -> None:
    """Of 4,096 ids that nothing has told apart, all but 258 mean nothing."""
    padded = experiment(texts).replace(
        model=dict(vocab=4096, layers=1), prompts=("the ",), sampling=dict(temperature=1.0, top_p=1.0)
    )
    run = course.Run(padded, course.claim(tmp_path / "run", padded, ""))
    params, prepared = run.initial_state().params, run.prepared
    write_samples(prepared, params, (), 0, print)
    assert len(json.loads((tmp_path / "run" / "samples.json").read_text())) == 1
    model = Pretrained(padded.model, params, prepared.data.tokenizer, prepared.model)
    assert len(model.generate("the ", 16, temperature=0.0)) > 0


def test_a_source_that_is_not_there(texts: Path, tmp_path: Path) -> None:
    missing = experiment(texts / "nowhere")
    with pytest.raises(ValueError, match="no such file or folder"):
        course.train(missing, tmp_path / "run")


def test_a_loss_that_is_not_a_number_keeps_the_last_checkpoint(texts: Path, tmp_path: Path) -> None:
    tiny = experiment(texts).replace(checkpoint_every_steps=1)
    wild = tiny.replace(optimizer=dict(learning_rate=1e38))
    with pytest.raises(
        NotFinite, match="step [2-9]: the loss is .*stopped; checkpoint [1-8] in .* is from before"
    ) as error:
        course.train(wild, tmp_path / "run")
    at = int(str(error.value).split(":")[0].removeprefix("step "))
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest == at - 1
    assert list(of(lines(tmp_path / "run"), "loss")) == list(range(1, at))
    assert f"`lm replay {tmp_path / 'run'} --step {at}` says" in str(error.value) and error.value.step == at


def test_killed_while_it_saves_its_tokenizer(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a file in it, or with half of one, is no tokenizer."""

    class Killed(BaseException):
        pass

    def half(self: Any, folder: Path) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "bytes.json").write_bytes(b"{")
        raise Killed

    declared = experiment(texts).replace(steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(ByteTokenizer, "save", half)
        with pytest.raises(Killed):
            course.Run(declared, course.claim(tmp_path / "run", declared, ""))
    assert course.Run(declared, course.claim(tmp_path / "run", declared, "")).prepared.data.tokenizer.vocab_size == 258
    assert (tmp_path / "run" / "tokenizer" / "bytes.json").read_text() == "{}"
