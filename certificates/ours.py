"""Our side: loads every checkpoint, compares, writes it back, and in the end the table.

python -m certificates.ours load FOLDER [WORD ...]    compare with transformers, export
python -m certificates.ours table FOLDER TABLE        the table; exit code 1 where a line fails
python -m certificates.ours lines FOLDER [WORD ...]   those of the cases in whose name a WORD occurs, to look at
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from certificates.cases import CASES, NEW, Case, counted, inputs, prompts
from certificates.mixers import MIXERS, MixerCase, attention_mask, hidden_states, params
from lm.decode.sampling import Sampling
from lm.model.compute import Compute
from lm.model.delta import GatedDeltaNet
from lm.model.mixer import LayerInputs, Mixer
from lm.model.parts import RMSNorm
from lm.model.positions import Positions
from lm.model.scoring import Mask
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
    """The greedy continuation, each token from a pass over all before it: in rows as long as those of `inputs`, and as
    many, so that it is their program; what follows a text is padding."""
    ids, encoded, shapes = prompts(case)[0].tolist(), model.config.has_encoder, inputs(case)
    text = [model.decoder_start] if encoded else ids

    def rows(name: str, row: list[int]) -> np.ndarray:
        return np.pad([row] * len(shapes[name]), ((0, 0), (0, shapes[name].shape[1] - len(row))))

    for _ in range(NEW):
        given = {"input_ids": rows("input_ids", ids), "attention_mask": rows("attention_mask", [1] * len(ids))}
        more = {"decoder_input_ids": rows("decoder_input_ids", text)} if encoded else {}
        logits = np.asarray(model.logits(**given, **more))
        text.append(int(logits[0, len(text) - 1].argmax()))
    return text[-NEW:]


class Alone(nn.Module):
    """A mixer without a layer around it, in float32."""

    mixer: Mixer

    @nn.compact
    def __call__(self, x: jax.Array, mask: Mask, cache: Any = None) -> tuple[jax.Array, Any]:
        compute = Compute(matmul="float32").resolve("cpu")
        return self.mixer(self, x, LayerInputs(mask), Positions(), cache, compute, 1)


def mixer_of(case: MixerCase) -> GatedDeltaNet:
    """Our mixer of a case's fields."""
    sizes = {name.removeprefix("linear_"): size for name, size in case.fields.items()}
    return GatedDeltaNet(
        sizes["num_key_heads"],
        sizes["num_value_heads"],
        sizes["key_head_dim"],
        sizes["value_head_dim"],
        conv_size=sizes["conv_kernel_dim"],
        norm=RMSNorm(eps=sizes.get("rms_norm_eps", 1e-6)),
    )


def mixer_outputs(case: MixerCase) -> dict[str, np.ndarray]:
    """What transformers' side gives of a module: certificates/reference.py, make_mixer."""
    mixer, x = mixer_of(case), jnp.asarray(hidden_states(case))
    run = jax.jit(partial(Alone(mixer).apply, {"params": params(case)}))
    full, _ = run(x, Mask(jnp.asarray(attention_mask())))
    rows, last = len(x), x.shape[1] - 1
    _, cache = run(x[:, :-1], Mask(), mixer.empty_cache(rows, 0, 0, 0, jnp.float32))
    following, cache = run(x[:, -1:], Mask(offset=jnp.full(rows, last)), cache)
    return {name: np.asarray(a) for name, a in dict(full=full, next=following, state=cache.state).items()}


def compare_mixer(case: MixerCase, folder: Path) -> dict[str, float]:
    """The differences of each of `mixer_outputs`; of `full` where there is no padding."""
    reference, given = np.load(folder / "reference.npz"), mixer_outputs(case)
    real = {"full": attention_mask() > 0}
    return {n: difference(a[real.get(n, ...)], reference[n][real.get(n, ...)]) for n, a in given.items()}


def mixer_table(folder: Path) -> tuple[list[str], bool]:
    """The lines of the table of mixers, and whether all of them hold."""
    lines = ["| module | shape | rows | a token behind a cache | state |", "|---|---|---|---|---|"]
    fine = True
    for case in MIXERS:
        found = json.loads((folder / case.name / "found.json").read_text())
        fine &= max(found.values()) <= LIMIT
        shown = (f"{value:.1e}" + ("" if value <= LIMIT else " **fails**") for value in found.values())
        lines.append(f"| {case.module} | {case.shape} | {' | '.join(shown)} |")
    return lines, fine


def table(folder: Path, words: Sequence[str] = ()) -> tuple[list[str], bool]:
    """The lines of the table, and whether all of them hold."""
    lines = [f"| architecture | shape | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    fine = True
    for case in (case for case in CASES if case.named(words)):
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


def main(verb: str, folder: str, *words: str) -> int:
    """Run `load`, `table` or `lines`."""
    if verb == "lines":
        lines, fine = table(Path(folder), words)
        print("\n".join(lines))
        return 0 if fine else 1
    if verb == "load":
        for case in (case for case in CASES if case.named(words)):
            try:
                found = compare(case, Path(folder) / case.name)
            except Exception as error:
                error.add_note(f"in the case {case.architecture}, {case.shape}")
                raise
            print(case.architecture, case.shape, found, flush=True)
            (Path(folder) / case.name / "found.json").write_text(json.dumps(found))
        for mixer in MIXERS if not words else ():
            (Path(folder) / mixer.name / "found.json").write_text(
                json.dumps(compare_mixer(mixer, Path(folder) / mixer.name))
            )
        return 0
    lines, fine = table(Path(folder))
    mixers, mixers_fine = mixer_table(Path(folder))
    print("\n".join([*lines, *mixers]))
    Path(*words).write_text(HEAD + "\n".join(lines) + MIXERS_HEAD + "\n".join(mixers) + "\n")
    return 0 if fine and mixers_fine else 1


HEAD = """# Certificates

`make certificates` wrote this: for each architecture, small random checkpoints made by transformers in several shapes,
a batch padded on the left, on the right and not at all, in float32. The difference is the largest of all logits at
tokens that are no padding, in standard deviations of the logits, and must be at most 1e-5. Greedy continuations are 12
tokens.

"""

MIXERS_HEAD = """

Single mixers, of architectures that are not read as a whole: random weights and inputs of 150 tokens, padded on the
left, on the right and not at all. The largest difference of what comes out, of one token's behind a cache of 149, and
of the cache's state, in their standard deviations: at most 1e-5.

"""

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
