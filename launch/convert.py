"""`lm convert`: export a model as a Hugging Face model directory."""

import argparse
from typing import Any

EPILOG = """\
SRC is a run's folder, a Hugging Face model directory (safetensors) or a GGUF file. DST becomes a Hugging Face model
directory: config.json, generation_config.json, model.safetensors in float32, the tokenizer's files. It is written
atomically; an existing model directory is replaced.

examples:
  lm convert runs/quickstart exported
  lm convert model.gguf exported
"""


def add(verbs: Any) -> None:
    """Declare `lm convert`."""
    verb = verbs.add_parser("convert", help="export a run or a published model", description=__doc__, epilog=EPILOG)
    verb.add_argument("source", metavar="SRC", help="a run's folder, a model directory, or a GGUF file")
    verb.add_argument("destination", metavar="DST", help="the model directory to write")
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load SRC and write DST."""
    from lm.machine import hardware

    hardware.prepare("cpu")  # nothing is computed
    from lm.model import count
    from lm.pretrained import load

    model = load(args.source)
    model.save(args.destination)
    total = count.parameters(model.config)
    tokenizer = "no tokenizer" if model.tokenizer is None else "with its tokenizer"
    print(f"{args.destination}: {total:,} parameters, float32, {tokenizer}")
