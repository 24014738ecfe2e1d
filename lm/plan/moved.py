"""The bytes of a chip's main memory that an instruction reads and writes: of what it slices the slice alone, of what it
updates in place the update, and of what a copy in the background brings nearer the copy.
"""

from collections.abc import Iterator

from lm.plan.hlo import Array, Instruction, Program

SLICES = ("dynamic-slice", "slice", "gather")
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # and which operand is the update
BACKGROUND = {"copy-start": 0, "slice-start": -2}  # and which result is the copy
ALIASES = ("bitcast", "reshape", "get-tuple-element")


def moved(program: Program, there: str, i: Instruction) -> float:
    """Bytes that instruction `i` of the computation `there` moves."""
    if i.opcode in BACKGROUND:
        copy, sources = i.results[BACKGROUND[i.opcode]], [*program.operands(there, i)][:1]
        return copy.bytes * (copy.main + sum(a.main for a in sources))
    if i.opcode == "fusion":
        (inner,) = i.called("calls")
        return _read(program, there, i, inner) + _written(program, i, inner)
    operands, written = [*program.operands(there, i)], sum(a.bytes for a in i.results if a.main)
    if i.opcode in UPDATES and len(operands) > UPDATES[i.opcode]:
        return (1.0 + operands[0].main) * operands[UPDATES[i.opcode]].bytes
    if i.opcode in SLICES:
        return written + (sum(a.bytes for a in i.results) if operands and operands[0].main else 0.0)
    return written + sum(a.bytes for a in operands if a.main)


def _read(program: Program, there: str, i: Instruction, inner: str) -> float:
    """What a fusion reads."""
    body = program.computations[inner]
    parameters = {int(p.literal): p for p in body.values() if p.opcode == "parameter"}
    instructions, total = program.computations[there], 0.0
    for number, name in enumerate(i.operands):
        arrays = instructions[name].results if name in instructions else []
        if arrays and arrays[0].main and number in parameters:
            total += min(arrays[0].bytes, sum(_uses(program, inner, parameters[number].name, arrays[0])))
    return total


def _uses(program: Program, there: str, name: str, whole: Array) -> Iterator[float]:
    """What each use of a parameter `name` of a fused computation reads of it."""
    for user in program.computations[there].values():
        if name not in user.operands:
            continue
        if user.opcode in SLICES and user.operands[0] == name:
            yield sum(a.bytes for a in user.results)
        elif user.opcode in UPDATES and user.operands[0] == name:
            yield 0.0  # in place: what is written is counted
        elif user.opcode == "pad":  # of which slices are taken, in a product that was taken apart
            padded = sum(a.bytes for a in user.results)
            yield from (part * whole.bytes / padded for part in _uses(program, there, user.name, whole))
        elif user.opcode in ALIASES:
            yield from _uses(program, there, user.name, whole)
        elif user.opcode == "fusion":
            (inner,) = user.called("calls")
            at = [n for n, operand in enumerate(user.operands) if operand == name]
            for p in program.computations[inner].values():
                if p.opcode == "parameter" and int(p.literal) in at:
                    yield from _uses(program, inner, p.name, whole)
                    if _source(program, inner, list(program.computations[inner].values())[-1]) is p:
                        yield from _uses(program, there, user.name, whole)
        else:
            yield whole.bytes


def _written(program: Program, i: Instruction, inner: str) -> float:
    """What a fusion writes."""
    body = program.computations[inner]
    root = list(body.values())[-1]
    roots = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    pairs = zip(i.results, roots, strict=False)
    return sum(min(a.bytes, _update(program, inner, made)) for a, made in pairs if a.main)


def _source(program: Program, there: str, made: Instruction) -> Instruction:
    """What an instruction gives another shape, at last."""
    body = program.computations[there]
    while made.opcode in ALIASES and made.operands and made.operands[0] in body:
        made = body[made.operands[0]]
    return made


def _update(program: Program, there: str, made: Instruction) -> float:
    """The bytes of an update in place, or of the whole result."""
    body, made = program.computations[there], _source(program, there, made)
    if made.opcode in UPDATES and len(made.operands) > UPDATES[made.opcode]:
        update = body[made.operands[UPDATES[made.opcode]]]
        return sum(a.bytes for a in update.results)
    if made.opcode == "fusion":
        (inner,) = made.called("calls")
        return _update(program, inner, list(program.computations[inner].values())[-1])
    return sum(a.bytes for a in made.results)
