"""`lm convert`: export a model as a Hugging Face model directory, or a GGUF file."""

import argparse
from typing import Any

from launch.serve import add_adapter_option, add_step

TYPES = ("f32", "f16", "bf16", "q8_0")
EPILOG = """\
SRC is a run's folder, a Hugging Face model directory (safetensors) or a GGUF file. DST becomes a Hugging Face model
directory: config.json, generation_config.json, model.safetensors in float32, the tokenizer's files. A DST that ends in
.gguf becomes one file for llama.cpp and the programs built on it: the families of GPT-2, Llama, Mixtral, Qwen 2 and 3,
Gemma 1 to 3, OLMo 2, SmolLM3, Granite, Phi-3 and gpt-oss, with the tokenizer, the chat template and the ends inside;
what llama.cpp cannot express is refused. Both are written atomically; an existing model is replaced.

examples:
  lm convert runs/quickstart exported
  lm convert runs/quickstart model.gguf --type q8_0
  lm convert model.gguf exported
  lm convert runs/quickstart best --step best            of the checkpoints it kept, the best by held-out loss
  lm convert runs/tuned adapter --adapter-only           adapter_config.json, adapter_model.safetensors for PEFT
  lm convert model.gguf merged --adapter adapter         and back into a model
"""


def add(verbs: Any) -> None:
    """Declare `lm convert`."""
    verb = verbs.add_parser("convert", help="export a run or a published model", description=__doc__, epilog=EPILOG)
    verb.add_argument("source", metavar="SRC", help="a run's folder, a model directory, or a GGUF file")
    verb.add_argument("destination", metavar="DST", help="the model directory or the .gguf file to write")
    verb.add_argument(
        "--type",
        choices=TYPES,
        help="of the matrices of a .gguf file: 32 bits each, 16 (f16, bf16), or 8 in blocks of 32 with a scale (q8_0); "
        "norms and biases stay f32 (default: f32)",
    )
    verb.add_argument(
        "--adapter-only", action="store_true", help="write what a run with trains=LoRA(…) learned, in PEFT's layout"
    )
    add_adapter_option(verb)
    add_step(verb)
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load SRC and write DST."""
    from lm.machine import hardware

    hardware.prepare("cpu")  # nothing is computed
    from lm.model import count
    from lm.pretrained import load

    single = args.destination.endswith(".gguf")
    if args.type and not single:
        raise ValueError(f"--type {args.type} is of a .gguf file, and {args.destination} is a directory in float32")
    if args.adapter_only:
        return convert_adapter(args)
    model, type = load(args.source, adapter=args.adapter, step=args.step), args.type or "f32"
    print(model.summary)
    left: list[str] = []
    if single:
        left = model.save_gguf(args.destination, type)
    else:
        model.save(args.destination)
    total = count.parameters(model.config)
    tokenizer = "no tokenizer" if model.tokenizer is None else "with its tokenizer"
    print(f"{args.destination}: {total:,} parameters, {type if single else 'float32'}, {tokenizer}")
    if left:
        print(f"{len(left)} of its tensors are f16, since their rows are no multiple of 32: {left[0]}", end="")
        print(", ..." if left[1:] else "")


def convert_adapter(args: argparse.Namespace) -> None:
    """Write the adapter of the run SRC to DST."""
    from lm.machine import buckets
    from lm.pretrained import is_run, read_experiment
    from lm.pretrained.peft_save import save_adapter
    from lm.pretrained.runs import FinishedRun

    folder = buckets.local_mirror(args.source)
    if args.adapter or args.type or not is_run(folder):
        raise ValueError("--adapter-only is of a run's folder, and alone: leave --adapter and --type out")
    written = save_adapter(FinishedRun(folder, read_experiment(folder), args.step), args.destination)
    print(f"{args.destination}: an adapter of {written:,} numbers in PEFT's layout")
