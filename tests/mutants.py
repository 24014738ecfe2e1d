"""Whether the tests notice a mistake: each of tests/mutations.py is made in a copy of the tree, and a test must fail.

    python -m tests.mutants [WORD ...]   all of them, or those in whose file or description a WORD occurs

A mutant is killed when one of its tests fails, or does not end, and survives when all pass; without a mutation all must
pass. The working tree is not touched. The exit code is 1 where less than SHARE of the mutants are killed, 2 where the
list is stale (a text that a mutation replaces must occur exactly once) or a test fails without a mutation.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests import (
    mutations,
    mutations_of_data,
    mutations_of_decoding,
    mutations_of_encoders,
    mutations_of_families,
    mutations_of_images,
    mutations_of_inspection,
    mutations_of_multi_token,
    mutations_of_rl,
    mutations_of_runs,
    mutations_of_serving,
    mutations_of_studies,
    mutations_of_tuning,
)

ROOT = Path(__file__).parent.parent
COPIED = ("lm", "launch", "experiments", "benchmarks", "certificates", "tests")
COPIED += ("README.md", "pyproject.toml", ".pytest_cache")
LISTS = (mutations, mutations_of_decoding, mutations_of_encoders, mutations_of_studies, mutations_of_runs)
LISTS += (mutations_of_data, mutations_of_serving, mutations_of_tuning, mutations_of_rl, mutations_of_inspection)
LISTS += (mutations_of_families, mutations_of_images, mutations_of_multi_token)
SHARE = 0.95


@dataclass(frozen=True)
class Mutation:
    """`old` replaced by `new` in `file`, which makes wrong `what`."""

    file: str
    what: str
    old: str
    new: str

    def tests(self) -> tuple[str, ...]:
        """The tests that are to notice: the file that mirrors `file`, where the list names no others."""
        folder, _, name = self.file.removeprefix("lm/").rpartition("/")
        named = {file: tests for one in LISTS for file, tests in one.TESTS.items()}
        return named.get(self.file, (f"tests/{folder}/test_{name}",))

    def mutate(self, text: str) -> str:
        """The text of the file after it. Raises ValueError where the list is stale."""
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.file}: {self.old!r} occurs {count} times, expected once")
        after = text.replace(self.old, self.new)
        try:
            compile(after if self.file.endswith(".py") else "", self.file, "exec")
        except SyntaxError as error:
            raise ValueError(f"{self.file}: with {self.new!r} it is no program: {error}") from None
        return after


def chosen(words: list[str]) -> list[Mutation]:
    every = [item for one in LISTS for item in one.BY_FILE.items()]
    found = [Mutation(file, *line) for file, lines in every for line in lines]
    return [m for m in found if not words or any(word in f"{m.file} {m.what}" for word in words)]


def run(tree: Path, tests: tuple[str, ...], seconds: float | None = None) -> tuple[bool, str]:
    """(whether all tests pass, what failed first). Raises RuntimeError where no test could be run."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    command += ["-o", "addopts=--import-mode=importlib", *tests]
    # no bytecode: it is found by the second in which a file was written, and a mutation takes less
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False, f"no end after {seconds:.0f} s"
    ends = [line.partition(" ") for line in done.stdout.splitlines()]
    failed = [test.split(" - ")[0] for verdict, _, test in ends if verdict in ("FAILED", "ERROR")]
    if done.returncode > 1 or done.returncode == 1 and not failed:
        raise RuntimeError(f"pytest {' '.join(tests)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode == 0, failed[0] if failed else f"signal {-done.returncode}"


def stale(listed: list[Mutation]) -> list[str]:
    """What keeps each mutation from being made."""
    found = []
    for mutation in listed:
        try:
            mutation.mutate((ROOT / mutation.file).read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            found.append(str(error))
    return found


def survives(mutation: Mutation, tree: Path, seconds: float) -> bool:
    """Whether the tests pass on `tree` with the mutation, which is taken back; prints a line of the table."""
    start, file = time.monotonic(), tree / mutation.file
    before = file.read_text(encoding="utf-8")
    file.write_text(mutation.mutate(before), encoding="utf-8")
    passed, failed = run(tree, mutation.tests(), seconds)
    file.write_text(before, encoding="utf-8")
    verdict = "SURVIVED" if passed else f"killed by {failed}"
    print(f"{time.monotonic() - start:4.0f} s  {mutation.file}: {mutation.what}: {verdict}", flush=True)
    return passed


def main(*words: str) -> int:
    listed, start = chosen(list(words)), time.monotonic()
    if faults := stale(listed) or (not listed and ["nothing in it has these words"]):
        print("tests/mutations.py is stale:", *faults, sep="\n", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="lm-mutants-") as folder:
        tree = Path(folder)
        for path in (ROOT / name for name in COPIED if (ROOT / name).exists()):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, tree / path.name)
        limits: dict[tuple[str, ...], float] = {}
        for tests in dict.fromkeys(mutation.tests() for mutation in listed):
            begun = time.monotonic()
            passed, failed = run(tree, tests)
            if not passed:
                print(f"without a mutation, {failed} fails", file=sys.stderr)
                return 2
            limits[tests] = 60 + 5 * (time.monotonic() - begun)
        print(f"{time.monotonic() - start:4.0f} s  without a mutation: all pass", flush=True)
        survived = sum(survives(mutation, tree, limits[mutation.tests()]) for mutation in listed)
    share = 1 - survived / len(listed)
    print(f"{len(listed) - survived} of {len(listed)} killed ({share:.0%}) in {time.monotonic() - start:.0f} s")
    return int(share < SHARE)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
