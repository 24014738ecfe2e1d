"""A trace of some steps of a run, for TensorBoard and Perfetto, and a page of the operations that took longest.

The steps are those that the run takes anyhow: they are waited for before the first and after the last, and nothing is
computed that they do not compute, so that the run's bits are the same.
"""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData, StepTraceAnnotation

from lm.machine import processes
from lm.page.markup import document, header, write
from lm.page.tables import Table, html
from lm.page.words import plural
from lm.run.course import Stepper

FOLDER, PAGE = "profile", "operations.html"
PARTS = ("forward", "backward", "rest")  # of a step; the rest is the optimizer, and sums of the loss
LONGEST = 40  # operations in the table
CONTAINERS = ("while", "call", "conditional")  # their time is that of what is in them
OPERATION = re.compile(r"^\s*(?:ROOT )?%(?P<name>[\w.-]+) = .*?\s(?P<opcode>[a-z][\w-]*)\(.*$", re.MULTILINE)
METADATA = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
    """One of a compiled program: its kind, and what it is of in the code that was traced (JAX's op_name)."""

    opcode: str
    source: str


@dataclass(frozen=True)
class Operation:
    """What an instruction took in all traced steps: nanoseconds, and how often it ran."""

    name: str
    instruction: Instruction
    nanoseconds: float
    calls: int

    @property
    def part(self) -> str:
        """One of PARTS."""
        source = self.instruction.source
        return "backward" if "transpose(" in source else "forward" if "jvp(" in source else "rest"


class Profiled(Stepper):
    """Takes the steps of `stepper`, and traces `steps` of them."""

    def __init__(self, stepper: Stepper, steps: range):
        self.stepper, self.steps, self.run = stepper, steps, stepper.run
        self.folder = stepper.run.folder / FOLDER
        self.number, self.began, self.program = 0, 0.0, ""

    def compile_ahead(self, batch: Any) -> None:
        self.stepper.compile_ahead(batch)

    def step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        self.number = self.number + 1 if self.number else int(state.step) + 1
        if self.number not in self.steps:
            return self.stepper.step(state, batch)
        if not self.began:
            lowered = self.stepper.compiled_step.lower(state, batch)
            self.program = lowered.compile().as_text()
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self.began = time.time()
        with StepTraceAnnotation("train", step_num=self.number):
            result = self.stepper.step(state, batch)
        if self.number == self.steps[-1]:
            jax.block_until_ready(result)
            self.finish()
        return result

    def finish(self) -> None:
        """End the trace, and write the page."""
        seconds = time.time() - self.began
        jax.profiler.stop_trace()
        taken = range(self.steps.start, self.number + 1)
        found = operations(read_trace(self.folder), instructions(self.program))
        write(self.folder / PAGE, page(found, self.run.experiment.name, taken, seconds / len(taken)))
        self.run.logger.say(
            f"profile of {described(taken)}: {self.folder / PAGE}; {newest(self.folder, '*.trace.json.gz')} for "
            f"https://ui.perfetto.dev; tensorboard --logdir {self.folder} with xprof"
        )
        self.began, self.steps = 0.0, range(0)

    def place(self, batch: Any) -> Any:
        return self.stepper.place(batch)

    def current(self, state: Any) -> Any:
        return self.stepper.current(state)


@contextlib.contextmanager
def profiled(stepper: Stepper, steps: range) -> Iterator[Stepper]:
    """`stepper`, that traces `steps` in the first process; a trace that a signal or an error cut short ends too."""
    if not processes.is_first():
        yield stepper
        return
    one = Profiled(stepper, steps)
    try:
        yield one
    finally:
        if one.began:
            one.finish()
        elif steps.start > one.number:
            print(f"--profile {steps.start}:{steps.stop - 1}: the run took none of these steps")


def described(steps: range) -> str:
    """As `step 5`, or `steps 5 to 8`."""
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def newest(folder: Path, pattern: str) -> Path:
    """The last file that a trace wrote."""
    return max(folder.rglob(pattern), key=lambda file: file.stat().st_mtime_ns)


# ---------------------------------------------------------------- what took how long


def read_trace(folder: Path) -> Iterator[tuple[str, float]]:
    """(instruction, nanoseconds) of each operation of the newest trace: of a TPU its line of operations, of a GPU the
    kernels of its streams, of a CPU what its threads ran."""
    planes = list(ProfileData.from_file(str(newest(folder, "*.xplane.pb"))).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    for plane in devices:
        lines = list(plane.lines)
        for line in [one for one in lines if one.name == "XLA Ops"] or lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op") or event.name
                yield str(name).lstrip("%").split(" = ")[0], event.duration_ns


def instructions(program: str) -> dict[str, Instruction]:
    """Name -> the instruction, of an optimised program's text."""
    found = {}
    for match in OPERATION.finditer(program):
        source = METADATA.search(match.group())
        found[match["name"]] = Instruction(match["opcode"], source[1] if source else "")
    return found


def operations(events: Iterable[tuple[str, float]], known: Mapping[str, Instruction]) -> list[Operation]:
    """The operations of a program, the longest first; events of other names are not its own."""
    spent: dict[str, list[float]] = {}
    for name, nanoseconds in events:
        if name in known and known[name].opcode not in CONTAINERS:
            spent.setdefault(name, []).append(nanoseconds)
    each = [Operation(name, known[name], sum(times), len(times)) for name, times in spent.items()]
    return sorted(each, key=lambda one: -one.nanoseconds)


# ---------------------------------------------------------------- the page


def page(found: list[Operation], name: str, steps: range, seconds: float) -> str:
    """The web page of the operations of the traced steps, which took `seconds` each."""
    total = sum(one.nanoseconds for one in found) or 1.0
    lead = (
        f"{described(steps).capitalize()}, {1e3 * seconds:,.1f} ms each; {plural(len(found), 'operation')} that took "
        f"{total / 1e6 / len(steps):,.1f} ms a step, summed over devices and threads."
    )
    spent = {part: sum(one.nanoseconds for one in found if one.part == part) for part in PARTS}

    def took(nanoseconds: float) -> tuple[str, str]:
        return f"{nanoseconds / 1e6 / len(steps):,.3f}", f"{nanoseconds / total:.1%}"

    parts = [(part, *took(spent[part])) for part in PARTS]
    longest = []
    for one in found[:LONGEST]:
        calls = f"{one.calls / len(steps):g}"
        longest.append((one.name, one.instruction.opcode, one.part, source(one), calls, *took(one.nanoseconds)))
    head = "operation", "kind", "part", "of", "calls a step", "ms a step", "share"
    return document(
        f"{name} – the largest operations",
        header(name, described(steps), False, lead, ()),
        html(Table("Parts of the step", ("part", "ms a step", "share"), tuple(parts))),
        html(Table("The largest operations", head, tuple(longest), text_columns=4)),
    )


def source(one: Operation) -> str:
    """What an operation is of, without the names of transformations."""
    names = re.sub(r"\b(?:jit|jvp|transpose|vmap|checkpoint|remat)\(|\)", "", one.instruction.source).split("/")
    return "/".join(name for name in names[1:] if name not in ("", "closed_call", "while", "body"))
