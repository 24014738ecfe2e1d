"""GGUF files of ours in llama.cpp: the same ids, ends, logits and greedy text.

    python3 -m venv .venv-llama && .venv-llama/bin/pip install -r certificates/llama_cpp.txt
    python -m certificates.gguf build/gguf .venv-llama/bin/python [MODEL ...]

Small random models of every family in every type, one with each tokenizer that can be trained here, and each MODEL
(whatever `load` reads). What is wanted is our own forward pass over the file as it is read back. llama.cpp rounds the
activations to the type of a matrix, so greedy tokens may part where our two best logits lie closer than `PART` of their
standard deviation; up to there they are the same. The exit code is 1 where a line fails.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.model.attention import Attention
from lm.model.compute import Compute
from lm.model.config import LayerKind, ModelConfig
from lm.model.experts import Experts
from lm.model.families import gemma, gemma2, gemma3, gpt, gpt_oss, llama, mixtral, qwen3
from lm.model.output import Output
from lm.model.parts import JointRMSNorm
from lm.model.positions import PartialRotary, Positions
from lm.model.scaling import Llama3, LongRoPE, YaRN
from lm.model.shared_experts import SharedExperts
from lm.model.transformer import Transformer
from lm.model.wiring import ReorderedNorm, ScaledPreNorm
from lm.pretrained import Pretrained, load
from lm.text.tokenizer import Bytes, Characters, SentencePieceSpec, Tokenizer

WORKER = Path(__file__).with_name("llama_cpp_worker.py")
TYPES = ("f32", "f16", "bf16", "q8_0")
PART = {"f32": 1e-3, "f16": 2e-2, "bf16": 5e-2, "q8_0": 1e-1}
TOKENS = 24
TEXTS = ("The capital of France is", "def f(x):\n    return 'x'\n\n\n", "  two  spaces, 12345 and\ttabs ", "x")
TRAINING = "".join(map(chr, range(32, 127))) + "\t\n" + "\n".join(TEXTS) * 20


SIZES: dict[str, Any] = dict(vocab=258, layers=2, width=64, context=64)
HEADS: dict[str, Any] = dict(heads=4, kv_heads=2, head_dim=32, mlp=96)
JOINT = Attention(4, 16, 2, qk_norm=JointRMSNorm(1e-5))
QWEN2 = Attention(4, 16, 2, bias=True, out_bias=False)
SHARED = SharedExperts(96, "silu", gated=True, experts=5, top_k=2, renormalize=False, shared=128, shared_gate=True)
NOWHERE = LayerKind(positions=Positions())
MULTIPLIED: dict[str, Any] = dict(embed_scale=12.0, output=Output(scale=0.125), attention=Attention(4, 16, scale=0.06))
LONG = LongRoPE((1.0, 1.1, 1.25, 1.5, 2.0, 3.0), (1.0, 2.0, 4.0, 8.0, 9.0, 9.5), 12, 1.25)
FAMILIES: dict[str, ModelConfig] = {
    "gpt2": gpt(**SIZES, heads=4),
    "llama": llama(**SIZES, **HEADS),
    "llama, scaled": llama(**SIZES, **HEADS, theta=500000.0, scaling=Llama3(8.0)),
    "llama, biases": llama(**SIZES, heads=4, mlp=96, attention=Attention(4, 16, 2, bias=True)),
    "llama, YaRN": llama(**SIZES, **HEADS, scaling=YaRN(4.0, original_context=16)),
    "qwen2": llama(**SIZES, heads=4, mlp=96, attention=Attention(4, 16, 2, bias=True, out_bias=False)),
    "qwen3": qwen3(**SIZES, **HEADS),
    "gemma": gemma(**SIZES, **HEADS),
    "gemma2": gemma2(**SIZES, **HEADS, window=8),
    "gemma3": gemma3(**SIZES, **HEADS, window=8, every=2),
    "mixtral": mixtral(**SIZES, **HEADS, experts=4),
    "qwen3moe": qwen3(**SIZES, **HEADS, ffn=Experts(96, "silu", gated=True, experts=5, top_k=3)),
    "qwen2moe": llama(**SIZES, heads=4, mlp=96, attention=QWEN2, ffn=SHARED),
    "olmo2": llama(**SIZES, heads=4, mlp=96, attention=JOINT, wiring=ReorderedNorm()),
    "smollm3": llama(**SIZES | {"layers": 5}, **HEADS, pattern=(LayerKind(),) * 3 + (NOWHERE,), tied=True),
    "granite": replace(llama(**SIZES, heads=4, mlp=96, wiring=ScaledPreNorm(0.25)), **MULTIPLIED),
    "phi3": llama(**SIZES, heads=4, mlp=96, positions=PartialRotary(1e4, fraction=0.5)),
    "phi3, LongRoPE": llama(**SIZES, heads=4, mlp=96, positions=PartialRotary(1e4, LONG, fraction=0.75)),
    "gpt-oss": gpt_oss(**SIZES | {"context": 4096 * 32}, **HEADS, experts=4, top_k=2, window=8),
}


class Line(NamedTuple):
    """A model to write: its name, the type of its matrices."""

    name: str
    type: str
    model: Pretrained


def random(cfg: ModelConfig, tokenizer: Tokenizer | None) -> Pretrained:
    """A model with random parameters, biases and norms too."""
    model = Transformer(cfg, Compute().resolve("cpu"))
    params = model.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return Pretrained(cfg, jax.tree.unflatten(tree, moved), tokenizer, model)


def lines(models: list[str]) -> Iterator[Line]:
    """What is checked."""
    for name, cfg in FAMILIES.items():
        yield from (Line(name, type, random(cfg, Bytes().make([]))) for type in TYPES)
    for spec in (Bytes(), Characters(), SentencePieceSpec(400), SentencePieceSpec(105, "unigram", byte_fallback=False)):
        tokenizer = spec.make([TRAINING])
        cfg = llama(**SIZES | {"vocab": tokenizer.vocab_size}, **HEADS)
        yield Line(str(spec), "f32", random(cfg, tokenizer))
    for model in models:
        yield from (Line(model, type, load(model)) for type in TYPES)


def wanted(folder: Path, number: int, line: Line) -> dict[str, Any]:
    """Write the file of a line; what is wanted of llama.cpp is what is read back from it."""
    file = f"{number:02}.gguf"
    line.model.save_gguf(folder / file, line.type)
    model = load(folder / file)
    texts = list(TEXTS) if model.tokenizer else []
    prompt = model.encode(TEXTS[0]) if model.tokenizer else [5, 7, 11, 13]
    prompt = prompt[: model.config.context - TOKENS]
    return {
        "name": line.name,
        "type": line.type,
        "file": file,
        "context": min(model.config.context, 256),
        "prompt": prompt,
        "tokens": TOKENS,
        "texts": texts,
        "ids": [model.encode(text) for text in texts],
        "ends": sorted(model.stop_ids),
        "template": model.tokenizer.chat_template if model.tokenizer else None,
        **_greedy(model, prompt),
    }


def _greedy(model: Pretrained, prompt: list[int]) -> dict[str, Any]:
    """The greedy ids, their text, how far apart the two best logits were at each, and the logits of the first."""
    whole = [*prompt, *[0] * TOKENS]  # what follows changes nothing before it
    margins, first = [], np.zeros(0)
    for at in range(len(prompt), len(whole)):
        logits = np.asarray(model.logits([whole]))[0, at - 1]
        first = first if at > len(prompt) else logits
        best, second = np.sort(logits)[::-1][:2]
        margins.append(float((best - second) / logits.std()))
        whole[at] = int(logits.argmax())
    ids = whole[len(prompt) :]
    text = model.tokenizer.decode(ids) if model.tokenizer else ""
    return {"greedy": ids, "margins": margins, "text": text, "logits": [float(x) for x in first]}


def judged(want: dict[str, Any], found: dict[str, Any]) -> tuple[bool, str]:
    """Whether a line holds, and the line."""
    pairs = enumerate(zip(want["greedy"], found["greedy"], strict=True))
    parted = next((i for i, (a, b) in pairs if a != b), TOKENS)
    same = want["text"] == found["text"] if parted == TOKENS else want["margins"][parted] < PART[want["type"]]
    ids = [i for i, (a, b) in enumerate(zip(want["ids"], found["ids"], strict=True)) if a != b]
    ends, template = found["ends"] == want["ends"], found["template"] == want["template"]
    a, b = np.asarray(want["logits"]), np.asarray(found["logits"])
    difference = np.abs(a - b).max() / a.std()
    told = [
        f"{want['name']:<24.24} {want['type']:<5}",
        f"logits {difference:.0e}",
        f"greedy {parted} of {TOKENS}" + ("" if parted == TOKENS else f", margin {want['margins'][parted]:.0e}"),
        f"ids of {len(want['ids'])} texts equal" if not ids else f"ids of text {ids} differ",
        *([] if ends else [f"ends {found['ends']}, wanted {want['ends']}"]),
        *([] if template else ["another template"]),
    ]
    return same and not ids and ends and template, "  ".join(told)


def main() -> int:
    """Write, ask llama.cpp, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("peer", help="the Python that has llama-cpp-python")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a run, a model directory or a GGUF file")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    tasks = [wanted(args.folder, number, line) for number, line in enumerate(lines(args.models))]
    (args.folder / "wanted.json").write_text(json.dumps(tasks))
    subprocess.run([args.peer, WORKER, args.folder], check=True)
    results = [judged(*pair) for pair in zip(tasks, json.loads((args.folder / "found.json").read_text()), strict=True)]
    for holds, told in results:
        print(told if holds else f"{told}  FAILS")
    return 0 if all(holds for holds, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
