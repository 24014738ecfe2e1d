"""An experiment that trains in seconds on texts of its own, and a way to run it as a process of its own.

python -m tests.tiny TEXTS WORKDIR [SECONDS [FIELD=VALUE ...]]: each step lasts SECONDS longer, so that there is time to
interrupt it.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from lm import value
from lm.data.mixture import Data, Mixture
from lm.data.pack import Pack
from lm.data.source import TextFolder
from lm.experiment import Experiment
from lm.machine.processes import PeerLost
from lm.model.families import llama
from lm.run import course
from lm.text.tokenizer import Bytes
from lm.train.optim import AdamW
from lm.train.schedule import Cosine

STEPS = 12


def write_texts(folder: Path) -> Path:
    """Two sources of short documents, each of which fits in a row."""
    for name, texts in {
        "sums": [f"{a} + {b} = {a + b}\n" for a in range(9) for b in range(9)],
        "words": [
            f"the {a} {b}s.\n" for a in ("cat", "dog", "owl", "fox", "ant") for b in ("sit", "run", "eat", "see")
        ],
    }.items():
        (folder / name).mkdir(parents=True)
        for i, text in enumerate(texts):
            (folder / name / f"{i}.txt").write_text(text)
    return folder


def experiment(texts: Path) -> Experiment:
    return Experiment(
        name="tiny",
        model=llama(vocab=258, layers=2, width=16, heads=2, mlp=32, context=32, dropout=0.1),
        data=Data(
            mixture=Mixture(
                sources={name: TextFolder(str(texts / name), heldout=0.3) for name in ("sums", "words")},
                weights={"sums": 0.7, "words": 0.3},
            ),
            tokenizer=Bytes(),
            packing=Pack(),
        ),
        optimizer=AdamW(learning_rate=1e-2, schedule=Cosine(warmup_steps=2)),
        batch_tokens=8 * 32,
        steps=STEPS,
        ema=0.5,
        log_every_steps=1,
        eval_every_steps=4,
        checkpoint_every_steps=4,
        prompts=("the ", "1 + "),
        sample_tokens=16,  # one chunk: one program
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, less what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "mfu")} for line in found]


def of(found: list[dict[str, Any]], name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in found if name in line}


def run(declared: Experiment, workdir: str | Path, seconds: float = 0.0) -> None:
    """Train, each step `seconds` longer, and exit with the command's code where it does not end."""
    place = course.place_batch

    def slowly(*args: object) -> object:
        time.sleep(seconds)
        return place(*args)

    course.place_batch = slowly
    try:
        course.train(declared, workdir)
    except course.Interrupted as interrupted:
        print(interrupted)
        sys.exit(75)
    except (ValueError, PeerLost) as error:
        print(error, file=sys.stderr, flush=True)
        if code := getattr(error, "exit_code", 0):
            os._exit(code)
        sys.exit(2)
    finally:
        course.place_batch = place


def main(texts: str, workdir: str, seconds: str = "0", *settings: str) -> None:
    declared = experiment(Path(texts))
    for setting in settings:
        declared = value.parse(declared, setting)
    run(declared, workdir, float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
