"""Models of sequences (reward models) against transformers, in both directions.

.venv-certificates/bin/python -m certificates.scores make FOLDER      models of transformers, and their scores
.venv/bin/python -m certificates.scores ours FOLDER                   our scores with these; our exports
.venv-certificates/bin/python -m certificates.scores check FOLDER     its scores with our exports; 1 where one differs
.venv-certificates/bin/python -m certificates.scores record FOLDER    what tests need: tests/pretrained/scores.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from certificates.cases import GEMMA, GPT2, LLAMA, QWEN, array

LIMIT = 1e-5  # of the standard deviation of the scores
EOS, PAD, LENGTHS, WIDTH = 2, 0, (9, 3, 16, 1), 16
RECORD = Path(__file__).parent.parent / "tests" / "pretrained" / "scores.json"
# transformers' class -> fields of its config
CASES: dict[str, dict[str, Any]] = {
    "GPT2ForSequenceClassification": {**GPT2, "pad_token_id": PAD},
    "LlamaForSequenceClassification": LLAMA,
    "MistralForSequenceClassification": {**LLAMA, "sliding_window": 9},
    "MixtralForSequenceClassification": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2ForSequenceClassification": {**LLAMA, "num_labels": 3},
    "Qwen3ForSequenceClassification": {**LLAMA, **QWEN, "tie_word_embeddings": True},
    "GemmaForSequenceClassification": {**LLAMA, **GEMMA, "num_labels": 2},
    "Gemma2ForSequenceClassification": {**LLAMA, **GEMMA, "sliding_window": 7},
}


def rows() -> list[list[int]]:
    """Ids of texts of several lengths, each with an eos at its end."""
    random = np.random.default_rng(0)
    return [[*random.integers(3, LLAMA["vocab_size"], n - 1).tolist(), EOS] for n in LENGTHS]


def scores(model: Any, pad: int = PAD) -> np.ndarray:
    """What transformers gives of `rows`, padded on the right: float32 [B, labels]."""
    import torch

    ids = torch.tensor([[*row, *[pad] * (WIDTH - len(row))] for row in rows()])
    mask = torch.tensor([[1] * len(row) + [0] * (WIDTH - len(row)) for row in rows()])
    model.config.pad_token_id = pad
    with torch.no_grad():
        return model(ids, attention_mask=mask).logits.numpy()


def make(folder: Path) -> None:
    """Models with our values; their scores, and those under pad = eos."""
    import transformers
    from safetensors.numpy import load_file, save_file

    for name, fields in CASES.items():
        kind, at = getattr(transformers, name), folder / name
        config = kind.config_class(**{"num_labels": 1, **fields, "eos_token_id": EOS})
        kind(config).save_pretrained(at)
        shapes = {n: x.shape for n, x in load_file(at / "model.safetensors").items()}
        save_file({n: array(n, s) for n, s in shapes.items()}, at / "model.safetensors", {"format": "pt"})
        model = kind.from_pretrained(at, attn_implementation="eager").eval()
        np.savez(at / "reference.npz", scores=scores(model), pad_is_eos=scores(model, EOS))


def ours(folder: Path) -> None:
    """Our scores, and those of the texts without their eos; our exports."""
    from lm.pretrained import load

    for name in CASES:
        model, at = load(folder / name), folder / name
        shorter = [row[:-1] or row for row in rows()]
        np.savez(at / "ours.npz", scores=model.score_ids(rows()), shorter=model.score_ids(shorter))
        model.save(at / "export")


def check(folder: Path) -> int:
    """The table; 1 where a line differs."""
    import transformers

    print(f"{'':36}{'read':>12}{'written':>12}{'pad = eos':>12}")
    worst = 0.0
    for name in CASES:
        at = folder / name
        theirs, mine = np.load(at / "reference.npz"), np.load(at / "ours.npz")
        model = getattr(transformers, name).from_pretrained(at / "export", attn_implementation="eager").eval()
        given, long = theirs["scores"], [i for i, n in enumerate(LENGTHS) if n > 1]
        line = [
            apart(mine["scores"].reshape(given.shape), given),
            apart(scores(model), given),
            apart(mine["shorter"].reshape(given.shape)[long], theirs["pad_is_eos"][long]),
        ]
        worst = max(worst, *line)
        print(f"{name:36}" + "".join(f"{x:12.1e}" for x in line))
    print(f"transformers {transformers.__version__}; under pad = eos it scores the text without its eos")
    return int(not worst < LIMIT)


def record(folder: Path) -> None:
    """A line a case: its config, the shapes of its tensors, its scores."""
    from safetensors import safe_open

    lines = []
    for name in CASES:
        at = folder / name
        with safe_open(at / "model.safetensors", "np") as file:
            shapes = {n: list(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
        config = json.loads((at / "config.json").read_text())
        given = {n: x.round(7).tolist() for n, x in np.load(at / "reference.npz").items()}
        lines.append(f"{json.dumps(name)}: {json.dumps({'config': config, 'tensors': shapes, **given})}")
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, of the standard deviation."""
    return float(np.abs(a - b).max() / b.std())


if __name__ == "__main__":
    verb, at = sys.argv[1], Path(sys.argv[2])
    sys.exit({"make": make, "ours": ours, "check": check, "record": record}[verb](at))
