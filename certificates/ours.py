"""Our side: loads every checkpoint, compares, writes it back, and in the end the table.

python -m certificates.ours load FOLDER           compare with transformers, export
python -m certificates.ours table FOLDER TABLE    the table; exit code 1 where a line fails
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from certificates.cases import CASES, NEW, Case, counted, inputs, prompts
from lm.decode.sampling import Sampling
from lm.pretrained import Pretrained, load

MARKS = {True: "equal", False: "**differs**", None: ""}
LIMIT = 1e-5  # of the standard deviation of the logits
COLUMNS = ("difference / std", "argmax", "greedy", "cached = full", "import, export, import", "back in transformers")


def compare(case: Case, folder: Path) -> dict[str, object]:
    """What a line of the table says, but for the last column."""
    model, reference = load(folder), np.load(folder / "reference.npz")
    given, wanted = np.asarray(model.logits(**inputs(case))), reference["logits"]
    real = counted(case)
    found: dict[str, object] = {
        "difference": difference(given[real], wanted[real]),
        "argmax": bool((given[real].argmax(-1) == wanted[real].argmax(-1)).all()),
        "greedy": None,
        "cached": None,
    }
    if "greedy" in reference:
        continued = next_tokens(model, case)
        found["greedy"] = continued == reference["greedy"].tolist()
        found["cached"] = continued == uncached(model, case) if case.cached else None
    model.save(folder / "export")
    again = load(folder / "export")
    found["bitwise"] = again.config == model.config and jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), model.params, again.params)
    )
    return found


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, in standard deviations of b."""
    return float(np.abs(a.astype(np.float64) - b).max() / b.std())


def next_tokens(model: Pretrained, case: Case) -> list[int]:
    """The greedy continuation, with a cache."""
    rows = model.stream_ids(prompts(case).tolist(), NEW, Sampling(temperature=0.0))
    return [id for part in rows for id in part[0]]


def uncached(model: Pretrained, case: Case) -> list[int]:
    """The greedy continuation, each token from a pass over all before it."""
    ids, start = prompts(case).tolist(), [0]
    encoded = model.config.has_encoder
    for _ in range(NEW):
        text = ids if not encoded else [start]
        width = len(prompts(case)[0]) + NEW  # one compiled program: what follows a token changes nothing
        padded = [[*text[0], *[0] * (width - len(text[0]))]]
        logits = model.logits(ids, decoder_input_ids=padded) if encoded else model.logits(padded)
        text[0].append(int(np.asarray(logits)[0, len(text[0]) - 1].argmax()))
    return (start if encoded else ids[0])[-NEW:]


def table(folder: Path) -> tuple[list[str], bool]:
    """The lines of the table, and whether all of them hold."""
    lines = [f"| architecture | shape | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    fine = True
    for case in CASES:
        found = json.loads((folder / case.name / "found.json").read_text())
        back = np.load(folder / case.name / "again.npz")
        reference = np.load(folder / case.name / "reference.npz")["logits"]
        real = counted(case)
        returned = difference(back["logits"][real], reference[real])
        holds = found["difference"] <= LIMIT and returned <= 1e-6 and not back["odd"].size
        holds &= all(found[name] is not False for name in ("argmax", "greedy", "cached", "bitwise"))
        fine &= holds
        marks = [MARKS[found[name]] for name in ("argmax", "greedy", "cached", "bitwise")]
        last = "bitwise" if returned == 0 else f"{returned:.1e}"
        odd = f" **{', '.join(back['odd'][:2])}**" if back["odd"].size else ""
        shown = f"{found['difference']:.1e}" + ("" if holds else " **fails**")
        lines.append(f"| {case.architecture} | {case.shape} | {shown} | {' | '.join(marks)} | {last}{odd} |")
    return lines, fine


def main(verb: str, folder: str, out: str = "") -> int:
    """Run `load` or `table`."""
    if verb == "load":
        for case in CASES:
            try:
                found = compare(case, Path(folder) / case.name)
            except Exception as error:
                error.add_note(f"in the case {case.architecture}, {case.shape}")
                raise
            print(case.architecture, case.shape, found, flush=True)
            (Path(folder) / case.name / "found.json").write_text(json.dumps(found))
        return 0
    lines, fine = table(Path(folder))
    print("\n".join(lines))
    Path(out).write_text(HEAD + "\n".join(lines) + "\n")
    return 0 if fine else 1


HEAD = """# Certificates

`make certificates` wrote this: for each architecture, small random checkpoints made by transformers in several shapes,
a batch padded on the left, on the right and not at all, in float32. The difference is the largest of all logits at
tokens that are no padding, in standard deviations of the logits, and must be at most 1e-5. Greedy continuations are 12
tokens.

"""

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
