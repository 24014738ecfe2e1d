"""Classifiers, of texts and of their tokens, against transformers, in both directions.

.venv-certificates/bin/python -m certificates.labels make FOLDER      models of transformers, and their scores
.venv/bin/python -m certificates.labels ours FOLDER                   our scores with these; our exports
.venv-certificates/bin/python -m certificates.labels check FOLDER     its scores with our exports; 1 where one differs
.venv-certificates/bin/python -m certificates.labels record FOLDER    what tests need: tests/pretrained/labels.json
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from certificates.cases import BERT, DISTILBERT, LLAMA, MODERNBERT, NUMBERED_BY_ID, ROBERTA, array

LIMIT = 1e-5  # of the scores' size, their root mean square
LENGTHS, WIDTH = (9, 3, 16, 1), 16
RECORD = Path(__file__).parent.parent / "tests" / "pretrained" / "labels.json"
MOODS, PARTS = ("bad", "so so", "good"), ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


class LabelCase(NamedTuple):
    """One classifier: transformers' class, its labels, and fields of its config."""

    architecture: str
    labels: tuple[str, ...]
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        """A folder's name."""
        return f"{self.architecture}-{len(self.labels)}"

    @property
    def pad(self) -> int:
        """The id of padding."""
        numbered = self.architecture.startswith(NUMBERED_BY_ID)
        return int(self.fields.get("pad_token_id", int(numbered)))


def _cases(family: str, fields: dict[str, Any], other: dict[str, Any]) -> list[LabelCase]:
    """A family's classifiers of texts and of tokens, in two shapes."""
    texts, tokens = f"{family}ForSequenceClassification", f"{family}ForTokenClassification"
    several = {"problem_type": "multi_label_classification"}
    return [
        LabelCase(texts, MOODS, fields),
        LabelCase(texts, ("score",), {**fields, **other}),
        LabelCase(tokens, PARTS, fields),
        LabelCase(tokens, MOODS, {**fields, **other, **several}),
    ]


CASES = (
    *_cases("Bert", BERT, {"num_attention_heads": 2, "hidden_act": "relu"}),
    *_cases("Roberta", ROBERTA, {"pad_token_id": 3, "type_vocab_size": 2}),
    *_cases("XLMRoberta", ROBERTA, {"num_attention_heads": 1})[:3],
    *_cases("Camembert", ROBERTA, {"num_attention_heads": 1})[1:3],
    *_cases("DistilBert", DISTILBERT, {"activation": "relu", "n_heads": 2}),
    *_cases(
        "ModernBert",
        MODERNBERT,
        {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True, "classifier_activation": "silu"},
    ),
    LabelCase("LlamaForSequenceClassification", MOODS, LLAMA),
    LabelCase("LlamaForSequenceClassification", PARTS, {**LLAMA, "num_key_value_heads": 1}),
)


def rows() -> list[list[int]]:
    """Ids of texts of several lengths."""
    random = np.random.default_rng(0)
    return [random.integers(4, LLAMA["vocab_size"], n).tolist() for n in LENGTHS]


def scores(model: Any, pad: int) -> list[np.ndarray]:
    """What transformers gives of each of `rows`, padded on the right: float32 [labels], or [T, labels]."""
    import torch

    ids = torch.tensor([[*row, *[pad] * (WIDTH - len(row))] for row in rows()])
    mask = torch.tensor([[1] * len(row) + [0] * (WIDTH - len(row)) for row in rows()])
    with torch.no_grad():
        found = model(ids, attention_mask=mask).logits.numpy()
    return [one[: len(row)] if one.ndim == 2 else one for one, row in zip(found, rows(), strict=True)]


def make(folder: Path) -> None:
    """Models with our values; their scores."""
    import transformers
    from safetensors.numpy import load_file, save_file

    for case in CASES:
        kind, at = getattr(transformers, case.architecture), folder / case.name
        names = {"id2label": dict(enumerate(case.labels)), "label2id": {n: i for i, n in enumerate(case.labels)}}
        kind(kind.config_class(**names, **case.fields)).save_pretrained(at)
        shapes = {n: x.shape for n, x in load_file(at / "model.safetensors").items()}
        save_file({n: array(n, s) for n, s in shapes.items()}, at / "model.safetensors", {"format": "pt"})
        model = kind.from_pretrained(at, attn_implementation="eager").eval()
        np.savez(at / "reference.npz", *scores(model, case.pad))


def ours(folder: Path) -> None:
    """Our scores; our exports, and whether they are read again as they were."""
    import jax

    from lm.pretrained import load

    for case in CASES:
        at = folder / case.name
        model = load(at)
        model.save(at / "export")
        again = load(at / "export")
        same = jax.tree.map(lambda a, b: bool((a == b).all()), model.params, again.params)
        equal = again.config == model.config and again.labels == model.labels and jax.tree.all(same)
        assert model.labels.names == case.labels, model.labels
        np.savez(at / "ours.npz", *model.scores_of_ids(rows()), equal=equal)


def check(folder: Path) -> int:
    """The table; 1 where a line differs."""
    import transformers

    print("| architecture | labels | read / size | import, export, import | written / size | labels kept |")
    print("|---" * 6 + "|")
    fine = True
    for case in CASES:
        at = folder / case.name
        theirs, mine = (_rows(at / name) for name in ("reference.npz", "ours.npz"))
        model = getattr(transformers, case.architecture).from_pretrained(at / "export", attn_implementation="eager")
        size = np.sqrt(np.mean(np.concatenate([x.ravel() for x in theirs]) ** 2))
        equal = bool(np.load(at / "ours.npz")["equal"])
        read, written = (apart(x, theirs, size) for x in (mine, scores(model.eval(), case.pad)))
        kept = tuple(model.config.id2label.values()) == case.labels
        fine &= max(read, written) < LIMIT and equal and kept
        last = "bitwise" if written == 0 else f"{written:.1e}"
        marks = ["equal" if one else "**differs**" for one in (equal, kept)]
        print(f"| {case.architecture} | {len(case.labels)} | {read:.1e} | {marks[0]} | {last} | {marks[1]} |")
    print(f"transformers {transformers.__version__}")
    return int(not fine)


def _rows(file: Path) -> list[np.ndarray]:
    """What is said of each of `rows`."""
    return [np.load(file)[f"arr_{i}"] for i in range(len(LENGTHS))]


def record(folder: Path) -> None:
    """A line a case: its config, the shapes of its tensors, its scores."""
    from safetensors import safe_open

    lines = []
    for case in CASES:
        at = folder / case.name
        with safe_open(at / "model.safetensors", "np") as file:
            shapes = {n: list(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
        config = json.loads((at / "config.json").read_text())
        given = [x.round(7).tolist() for x in _rows(at / "reference.npz")]
        lines.append(f"{json.dumps(case.name)}: {json.dumps({'config': config, 'tensors': shapes, 'scores': given})}")
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def apart(a: list[np.ndarray], b: list[np.ndarray], size: float) -> float:
    """The largest difference, in parts of `size`."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)) / float(size)


if __name__ == "__main__":
    verb, at = sys.argv[1], Path(sys.argv[2])
    sys.exit({"make": make, "ours": ours, "check": check, "record": record}[verb](at))
