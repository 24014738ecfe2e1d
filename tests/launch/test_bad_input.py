"""Bad input, generated: whatever is wrong with it, one line says so, and nothing wrong is taken.

A few of each kind with the other tests; `make bad-input` draws 2,000.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import lm.machine.hardware
from launch.__main__ import VERBS, main
from lm.experiment import Experiment
from lm.model.families import llama
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained
from lm.run import course
from lm.text.tokenizer import ByteTokenizer
from tests.model.reference import SIMPLE, lively
from tests.tiny import experiment, write_texts

PAGE = "experiments.quickstart"
# `--hypothesis-profile=many` (conftest.py) draws 2,000 in all
examples = settings.default.max_examples if settings.get_current_profile_name() == "many" else 8
generated = settings(max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None)


@pytest.fixture(autouse=True, scope="module")
def machine_as_it_is() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm.machine.hardware, "prepare", lambda devices="": None)
        yield


def run(*argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command. Raises whatever a user would see as a traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    return code, out.getvalue(), err.getvalue()


def check_refused(*argv: str) -> str:
    code, out, err = run(*argv)
    assert code in (1, 2), f"{argv} was taken: {out}"
    return check_one_line(err)


def check_one_line(err: str) -> str:
    assert err.startswith("lm: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


# ---------------------------------------------------------------- fields of an experiment

WRONG: dict[Any, tuple[str, ...]] = {
    int: ("x", "1.5", "nan", "[]", "2**3", "1e400", "--", "{}", "9" * 400),
    float: ("x", "nan", "inf", "-inf", "1e400", "[]", "--", "0x10", "1,0"),
    bool: ("x", "2", "maybe", "[]", "-1", "0.5"),
}


def settable(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, type) of each field of a number or a switch."""
    hints = get_type_hints(type(value))
    for field in fields(value):
        held, name = getattr(value, field.name), f"{path}{field.name}"
        if is_dataclass(held):
            yield from settable(held, f"{name}.")
        elif hints[field.name] in WRONG:
            yield name, hints[field.name]


def page() -> Experiment:
    from experiments.quickstart import experiment

    return experiment


SETTABLE = dict(settable(page()))


@generated
@given(st.sampled_from(sorted(SETTABLE)), st.data())
def test_a_field_takes_no_value_of_another_kind(path: str, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(WRONG[SETTABLE[path]]))
    assert path.split(".")[-1] in check_refused("show", PAGE, "--set", f"{path}={text}")


@generated
@given(st.sampled_from(sorted(SETTABLE)), st.integers(0, 40), st.characters(categories=("Ll", "Lu", "Nd")))
def test_no_field_has_another_name(path: str, at: int, more: str) -> None:
    at %= len(path)
    wrong = path[:at] + more + path[at:]
    assume(wrong not in SETTABLE)
    check_refused("show", PAGE, "--set", f"{wrong}=1")


# ---------------------------------------------------------------- verbs and options

WORDS = st.sampled_from(
    [
        "",
        "-",
        "--",
        "nowhere",
        "../..",
        "a b",
        "$HOME",
        "%",
        "\t",
        "é",
        "-n",
        "--seed",
        "--set",
        "x=1",
        "=",
        "--nope",
        "\x00",
    ]
) | st.text(max_size=8)


@generated
@given(st.sampled_from(sorted(VERBS)), st.lists(WORDS, max_size=4))
def test_a_command_without_sense_is_refused(verb: str, words: list[str]) -> None:
    said = [word for word in words if word != "--"]  # `lm list`, and `lm list KIND`, have a sense
    assume(not {"-h", "--help"} & set(words) and (verb != "list" or len(said) > 1))
    check_refused(verb, *words)


# ---------------------------------------------------------------- files

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=6), SCALARS, max_size=3)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """A JSON text with a value replaced or removed, cut off, or with other characters in it."""
    kind = draw(st.sampled_from(["replace", "remove", "cut", "insert"]))
    if kind in ("cut", "insert"):
        at = draw(st.integers(0, len(text)))
        return text[:at] + ("" if kind == "cut" else draw(st.text(min_size=1, max_size=4)) + text[at:])
    root = [json.loads(text)]
    held, key = root, 0
    while isinstance(held[key], dict | list) and held[key] and draw(st.integers(0, 3)):
        held = held[key]
        key = draw(st.sampled_from(sorted(held) if isinstance(held, dict) else range(len(held))))
    if kind == "remove" and held is not root:
        del held[key]
    else:
        held[key] = draw(VALUES)
    return json.dumps(root[0])


def check_damage(folder: Path, name: str, text: str, *commands: list[str]) -> None:
    """With `text` in the file, each command does its work or says in one line what is wrong."""
    file = folder / name
    before = file.read_bytes()
    try:
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        for command in commands:
            code, _, err = run(*command)
            assert code == 0 or check_one_line(err)
    finally:
        file.write_bytes(before)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    course.train(experiment(write_texts(folder / "texts")), str(folder / "run"))
    return folder / "run"


@generated
@given(name=st.sampled_from(["experiment.json", "data.json", "about.json", "samples.json"]), data=st.data())
def test_a_damaged_run_is_reported_or_refused(run_folder: Path, name: str, data: st.DataObject) -> None:
    text = data.draw(damaged((run_folder / name).read_text()))
    check_damage(run_folder, name, text, ["report", str(run_folder)])


@pytest.fixture(scope="module")
def copied_run(run_folder: Path) -> Path:
    return Path(shutil.copytree(run_folder, run_folder.with_name("copy")))


@generated
@given(name=st.sampled_from(["history.json", "about.json", "data.json"]), data=st.data())
def test_a_damaged_run_is_compared_or_refused(
    run_folder: Path, copied_run: Path, name: str, data: st.DataObject
) -> None:
    text = data.draw(damaged((run_folder / name).read_text()))
    check_damage(run_folder, name, text, ["diff", str(run_folder), str(copied_run), "--no-replay"])


@generated
@given(data=st.data())
def test_damaged_metrics_are_reported_or_refused(run_folder: Path, copied_run: Path, data: st.DataObject) -> None:
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    text = "\n".join([*lines[:at], data.draw(damaged(lines[at])), *lines[at + 1 :]])
    compared = ["diff", str(copied_run), str(run_folder), "--no-replay"]
    check_damage(run_folder, "metrics.jsonl", text, ["report", str(run_folder)], compared)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "model"
    cfg = llama(vocab=258, layers=1, width=8, heads=2, mlp=8, context=16)
    Pretrained(cfg, lively(cfg), ByteTokenizer(), Transformer(cfg, SIMPLE)).save(folder)
    return folder


FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@generated
@given(name=st.sampled_from(FILES), data=st.data())
def test_a_damaged_model_is_exported_or_refused(model_folder: Path, name: str, data: st.DataObject) -> None:
    text = data.draw(damaged((model_folder / name).read_text()))
    copy = model_folder.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    check_damage(model_folder, name, text, ["convert", str(model_folder), str(copy)])


@generated
@given(data=st.data())
def test_a_damaged_header_is_refused_in_one_line(model_folder: Path, data: st.DataObject) -> None:
    """Of the weights: its JSON, or its length."""
    file = model_folder / "model.safetensors"
    before = file.read_bytes()
    length = int.from_bytes(before[:8], "little")
    text = data.draw(damaged(before[8 : 8 + length].decode())).encode("utf-8", "surrogatepass")
    size = data.draw(st.sampled_from([len(text), 0, length, 2**63]))
    copy = model_folder.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    try:
        file.write_bytes(size.to_bytes(8, "little") + text + before[8 + length :])
        code, _, err = run("convert", str(model_folder), str(copy))
        assert code == 0 or check_one_line(err)
    finally:
        file.write_bytes(before)


# ---------------------------------------------------------------- manifests

ENGINES = {
    "slurm": {"--nodes": "2", "--tasks-per-node": "1"},
    "gke": {"--tpu": "v5e:2x4", "--image": "IMAGE", "--workdir": "gs://bucket/run"},
    "tpu-vm": {"--type": "v5litepod-8", "--zone": "us-east5-b", "--workdir": "gs://bucket/run"},
}
NONSENSE = st.sampled_from(
    ["", "-1", "0", "x", "1.5", "v9:2x2", "2x", "v5e:0x4", "v6e-17", "a b", "1e3", "\n", "gs://"]
)


@generated
@given(st.sampled_from([(e, o) for e, options in ENGINES.items() for o in options]), NONSENSE)
def test_an_engine_refuses_what_it_cannot_ask_for(option: tuple[str, str], text: str) -> None:
    engine, name = option
    assume(name not in ("--image", "--zone") or not text.strip() or " " in text)
    options = ENGINES[engine] | {name: text}
    check_refused("launch", engine, *(f"{k}={v}" for k, v in options.items()), "--dry-run", PAGE)
