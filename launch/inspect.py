"""`lm inspect`: what a model has inside for a text, from tokens to the next word, as one HTML page."""

import argparse
import json
from pathlib import Path
from typing import Any

from launch.find import filled
from launch.serve import add_adapter_option

EPILOG = """\
The page is one file that asks for nothing from elsewhere: tokens and ids; the nearest neighbours of each in the
embedding; the same words in another order, layer by layer, with and without positions; where each head of each layer
looked, from any token; the next tokens, how likely each token of the text was, and what the output would read behind
each layer; and what changes where heads are zeroed, or values of another text are patched in. The arrow keys choose
token and layer, with Shift the head. Names of control tokens and masks in --text are those tokens.

An encoder-decoder (T5) reads --text and writes an output, or reads the one that is given; an encoder (BERT) has
attention in both directions, and predicts what stands for a [MASK] in --text. A head is LAYER.HEAD, from 0; of an
encoder-decoder also encoder.LAYER.HEAD and cross.LAYER.HEAD.

examples:
  lm inspect SmolLM2-135M-Instruct.Q4_1.gguf --text "The cat sat on the mat because it was tired"
  lm inspect runs/quickstart --text "def add(a, b):" --out add.html
  lm inspect model.gguf --text "I ate the cake" --other-order "The cake ate I"
  lm inspect model.gguf --text "Paris is in" --zero 3.5 --zero 7.1              without each of these heads
  lm inspect model.gguf --text "Rome is in" --patch-from "Paris is in"          what carries the difference
  lm inspect bert-base-uncased --text "Paris is [MASK]."
  lm inspect t5-base --text "translate English to German: A cat." --output "Eine Katze."
  lm inspect gemma-3-4b-it --image cat.png --text "What is this?"     and where it looks in the image
  lm inspect model.gguf --text "Hello" --json | jq .output.best
"""


def add(verbs: Any) -> None:
    """Declare `lm inspect`."""
    verb = verbs.add_parser(
        "inspect", help="a page of what a model has inside for a text", description=__doc__, epilog=EPILOG
    )
    verb.add_argument("model", metavar="MODEL", help="a run's folder, a Hugging Face model directory, or a GGUF file")
    verb.add_argument("--text", required=True, help="what the model reads")
    verb.add_argument(
        "--image",
        action="append",
        default=[],
        type=filled,
        metavar="FILE",
        help="an image that --text is about, for a model with a vision tower; may be given several times",
    )
    verb.add_argument("--output", default="", metavar="TEXT", help="what an encoder-decoder writes (default: its own)")
    verb.add_argument(
        "--other-order", default="", metavar="TEXT", help="the words of --text in another order (default: a random one)"
    )
    changes = verb.add_argument_group("what if")
    changes.add_argument(
        "--zero",
        action="append",
        default=[],
        metavar="LAYER.HEAD",
        help="without this head; may be given several times",
    )
    changes.add_argument(
        "--patch-from", default="", metavar="TEXT", help="with values of this text, of as many tokens: head by head"
    )
    verb.add_argument("--out", type=filled, metavar="FILE", help="the page to write (inspect.html)")
    verb.add_argument(
        "--json", action="store_true", help="print what the page shows as JSON; then a page is written with --out alone"
    )
    add_adapter_option(verb)
    verb.add_argument(
        "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to run (default: the best there is)"
    )
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load the model, look, and write the page."""
    out = Path(args.out or "inspect.html").expanduser()
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}")
    from launch.serve import load

    model = load(args.model, "", args.devices, None, args.adapter)
    from lm.machine.monitor import human
    from lm.page.markup import write
    from lm.pretrained.inside import WhatIf, html, inside, plain

    what_if = WhatIf(args.zero, args.patch_from)
    data, attentions = inside(model, args.text, args.other_order, args.output, what_if, args.image)
    if args.json:
        print(json.dumps(plain(data, attentions), ensure_ascii=False))
    if args.out or not args.json:
        page = html(Path(args.model).expanduser().resolve().name, data, attentions)
        write(out, page)
        if not args.json:
            print(f"{out}: {len(data['texts'][data['main']]):,} tokens, {human(len(page.encode()))}B")
