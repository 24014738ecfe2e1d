"""The files and commands of engines hold every word as it was given, whoever reads them: parsers of YAML 1.1 and 1.2,
Kubernetes' expansion of variables, sbatch, and a shell."""

import re
import shlex
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch import control, gke, launch, slurm, tpu_vm
from launch.__main__ import main
from launch.gke import as_yaml, literal
from tests.launch.commands import GKE, PAGE, said

README = Path(__file__).parents[2] / "README.md"
NUMBERS = ["1e3", "08", "0o14", "0x1f", "1_000", "12:30:00", "2001-01-01", ".5", "+1", "1.", ".inf", ".nan"]
SIGNS = [*"~-?='\"\\@`{[|>$", "<<", "&a", "*a", "!t", "%TAG", "$$", "$(VAR)", "$$(VAR)", "$VAR"]
NASTY = [*NUMBERS, *SIGNS, "no", "Y", "off", "null"]
NASTY += ["", " ", "# no comment", "a: b", "a #b", "\t", "é", "\x85", "\u2028", "\U0001f600"]
texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12))
lines = st.one_of(st.sampled_from([t for t in NASTY if t.isprintable()]), st.text(string.printable[:95], max_size=12))


class Core(yaml.SafeLoader):
    """YAML 1.2: of plain scalars, only what its core schema names is no text (10.3.2)."""


Core.yaml_implicit_resolvers = {}
for tag, pattern in {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    Core.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), None)


def expanded(text: str) -> str:
    """`text` as Kubernetes hands it to a container that has the variable VAR: $(VAR) is its value, and $$ is $."""
    return re.sub(r"\$(\$|\(VAR\))", lambda found: "$" if found[1] == "$" else "value", text)


@settings(max_examples=150, deadline=None)
@given(texts)
def test_yaml_of_both_versions_reads_every_text(text: str) -> None:
    data = {"metadata": {"name": text}, "list": [text, 1, True, {"value": text}], "empty": {}}
    for loader in (yaml.SafeLoader, Core):
        assert yaml.load(as_yaml(data), loader) == data


@pytest.mark.parametrize("text", NASTY)
def test_what_a_parser_could_take_for_something_else_is_quoted(text: str) -> None:
    assert as_yaml({"a": text}).startswith('a: "')


@settings(max_examples=100, deadline=None)
@given(texts)
def test_kubernetes_replaces_no_variable(text: str) -> None:
    assert expanded(literal(text)) == text


def test_words_and_variables_come_to_a_pod_as_they_were_given(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--set", "name=1e3", "prompts=('$(HOME) $$ 08',)", "--env", "A=$(B)", "--env", "C=0o14", "--name", "n1")
    for loader in (yaml.SafeLoader, Core):
        made = yaml.load(said(capsys, *GKE, "--tpu", "v6e:2x4", *given), loader)
        (container,) = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        assert [expanded(word) for word in container["command"]][-3:] == list(given[:3])
        assert {e["name"]: expanded(e["value"]) for e in container["env"][1:]} == {"A": "$(B)", "C": "0o14"}


# ---------------------------------------------------------------- sbatch


def read_by_sbatch(line: str) -> list[str]:
    """The arguments in a line of a script after #SBATCH, as sbatch takes it apart: quotes of both kinds, a backslash
    before any character even inside them, and a comment from # on."""
    found, word, quote, escaped = [], None, "", False
    for letter in line:
        if escaped or (quote and letter not in (quote, "\\")):
            word, escaped = (word or "") + letter, False
        elif letter == "\\":
            escaped = True
        elif quote or letter in "\"'":
            quote, word = "" if quote else letter, word or ""
        elif letter == "#":
            break
        elif letter.isspace():
            found, word = found + ([word] if word is not None else []), None
        else:
            word = (word or "") + letter
    assert not quote and not escaped
    return found + ([word] if word is not None else [])


@settings(max_examples=150, deadline=None)
@given(lines)
@example('/a b/"c"/it\'s')
def test_sbatch_reads_an_option_as_it_was_given(text: str) -> None:
    option = f"--comment={text}"
    assert read_by_sbatch(slurm.quoted(option)) == [option] == shlex.split(slurm.quoted(option))


def lines_of(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("folder", ["a b", "50%", "%j", "it's", 'a "quoted" one', "#1", "ü"])
def test_slurm_writes_into_the_workdir_whatever_it_is_called(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = str(tmp_path / folder)
    options = ("--sbatch", "--comment 'a # b' -p long", "--dry-run")
    script = said(capsys, "launch", "slurm", PAGE, "--workdir", workdir, *options)
    read = [word for line in lines_of(script) for word in read_by_sbatch(line)]
    (output,) = [word.removeprefix("--output=") for word in read if word.startswith("--output=")]
    assert re.sub("%(.)", lambda found: {"%": "%", "j": "7"}[found[1]], output) == f"{workdir}/slurm-7.log"
    assert "--comment=a # b" in read and "-plong" in read
    (command,) = [line for line in script.splitlines() if line.startswith("srun ")]
    assert shlex.split(command.removesuffix(" &"))[-2:] == ["--workdir", workdir]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workdir", "a\\b"), "into a folder with a backslash"),
        (("--workdir", "a\nb"), "one line of printable text"),
        (("--sbatch", "--comment 'a"), "cannot be read: No closing quotation"),
    ],
)
def test_what_no_script_can_hold(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in said(capsys, "launch", "slurm", PAGE, *words, "--dry-run", code=1)


# ---------------------------------------------------------------- a shell


@settings(max_examples=40, deadline=None)
@given(st.lists(texts, min_size=1, max_size=3))
def test_a_shell_on_a_tpu_vm_reads_the_words(given: list[str]) -> None:
    import argparse

    from launch.job import Job

    known = dict(type="v6e-8", zone="us-east5-b", project="", runtime="", service_account="")
    args = argparse.Namespace(**known, spot=False, reserved=False, keep=True, workdir="")
    steps = tpu_vm.plan(args, Job(("train", *given), args, "name"))
    remote = steps["run"][-1].removeprefix("--command=cd lm && LM_PROCESSES=auto ")
    assert shlex.split(remote) == [".venv/bin/python", "-m", "launch", "train", *given]


# ---------------------------------------------------------------- what the documents say


def examples(text: str) -> list[str]:
    """The commands `lm launch …` in a text, with the lines that they go on in."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.partition("    #")[0].strip() for line in joined.splitlines() if line.strip().startswith("lm launch ")]


DOCUMENTED = [*examples(README.read_text()), *examples(launch.EPILOG), *examples(gke.EPILOG)]
DOCUMENTED += [*examples(slurm.EPILOG), *examples(tpu_vm.EPILOG)]


@pytest.mark.parametrize("command", sorted(set(DOCUMENTED)))
@pytest.mark.usefixtures("bucket")
def test_a_documented_launch_is_one_that_works(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(re.split(r"\s{6,}", command)[0])[1:]
    words = [word for word in words if word.removeprefix("--") not in control.OPTIONS]  # of a job that is there
    assert main([*words, "--dry-run"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out
