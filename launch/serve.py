"""`lm serve`: a model over HTTP, by the API of OpenAI."""

import argparse
import sys
from pathlib import Path
from typing import Any

EPILOG = """\
GET / is a page: a chat, and what the model has inside for a text (as `lm inspect` draws it). POST /v1/completions,
/v1/chat/completions, /v1/embeddings, /inspect, /apply-template, /tokenize, /detokenize; GET /v1/models,
/tokenizer_info, /props, /health, /metrics (Prometheus). A field that is not honoured is refused by its name with 400.
An answer does not depend on what else is being served. An encoder (BERT) has embeddings and its inside alone. SIGTERM
lets requests finish. Needs `pip install -e ".[serve]"`.

examples:
  lm serve SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2
  lm serve runs/quickstart --port 8080 --slots 4
  lm serve model --host 0.0.0.0 --api-key-file keys.txt
  curl 127.0.0.1:8000/v1/completions -H "Content-Type: application/json" -d '{"prompt": "def ", "max_tokens": 32}'
  curl 127.0.0.1:8000/inspect -H "Content-Type: application/json" -d '{"text": "The cat sat"}' > inside.html
"""


def add(verbs: Any) -> None:
    """Declare `lm serve`."""
    verb = verbs.add_parser("serve", help="serve a model over HTTP", description=__doc__, epilog=EPILOG)
    verb.add_argument("model", metavar="MODEL", help="a run's folder, a Hugging Face model directory, or a GGUF file")
    verb.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1: this machine alone)")
    verb.add_argument("--port", type=int, default=8000, help="(8000)")
    verb.add_argument("--name", default="", help="what clients call the model (default: the name of its file)")
    verb.add_argument("--api-key-file", metavar="FILE", help="keys, one a line, of which a request has to send one")
    verb.add_argument("--allow-origin", nargs="+", default=[], metavar="URL", help="web pages that may read answers")
    verb.add_argument("--slots", type=int, default=16, metavar="N", help="requests that are decoded at a time (16)")
    verb.add_argument(
        "--length",
        type=int,
        default=0,
        metavar="T",
        help="tokens of a slot (default: the context, at most 8192; of a text that is embedded, at most 2048)",
    )
    verb.add_argument("--max-waiting", type=int, default=256, metavar="N", help="requests that may wait (256)")
    verb.add_argument(
        "--max-new-tokens", type=int, default=0, metavar="N", help="the most a choice may ask for (0: what fits)"
    )
    verb.add_argument("--max-body-bytes", type=int, default=8 << 20, metavar="N", help="of a request (8 MiB)")
    verb.add_argument("--max-seconds", type=float, default=600.0, metavar="S", help="of a request (600)")
    verb.add_argument(
        "--inspect-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="of a text that is looked into, at most (1024; 0: none is looked into)",
    )
    verb.add_argument("--drain-seconds", type=int, default=60, metavar="S", help="for requests after SIGTERM (60)")
    add_model_options(verb)
    verb.set_defaults(run=run)


def add_model_options(verb: Any) -> None:
    """Those of a model that is loaded to be talked with."""
    verb.add_argument("--chat-template", metavar="FILE", help="jinja2, in place of the model's own")
    add_adapter_option(verb)
    verb.add_argument(
        "--dtype", default="", choices=("float32", "bfloat16"), help="of a published model's products (float32)"
    )
    add_weights(verb)
    verb.add_argument(
        "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to run (default: the best there is)"
    )


def add_adapter_option(verb: Any) -> None:
    """That of an adapter."""
    verb.add_argument("--adapter", default="", metavar="DIR", help="an adapter in PEFT's layout, merged into the model")


def add_step(verb: Any) -> None:
    """The option of which of a run's checkpoints is read."""
    verb.add_argument(
        "--step", default="last", metavar="N|best|last", help="of a run, the checkpoint of this step (the newest)"
    )


def add_weights(verb: Any) -> None:
    """The option of what a model decodes by."""
    verb.add_argument(
        "--weights",
        default="float32",
        choices=("float32", "bfloat16", "int8"),
        help="to decode by, on a CPU: bfloat16 reads half of the bytes a token, int8 a quarter, rounded (float32)",
    )


def load(
    path: str,
    dtype: str,
    devices: str,
    chat_template: str | None,
    adapter: str = "",
    weights: str = "float32",
    step: str = "last",
) -> Any:
    """The model at `path`, loaded to be talked with.

    Args:
      path: a run's folder, a Hugging Face model directory, or a GGUF file.
      dtype: of a published model's products; "": float32.
      devices: where to run; "": the best there is.
      chat_template: the file of one in place of the model's own, where there is one.
      adapter: the folder of an adapter that is merged into it, where there is one.
      weights: by which it decodes.
      step: of a run, the checkpoint that is read."""
    from lm.machine import buckets, hardware
    from lm.machine.cache import cache_dir

    hardware.prepare(devices)
    from lm.pretrained import is_run, read_experiment
    from lm.pretrained import load as load_model

    folder = buckets.local_mirror(path)
    if is_run(folder):
        if dtype:
            raise ValueError(f"--dtype {dtype}: a run is computed as in its experiment, leave it out")
        hardware.set_cpu_devices(read_experiment(folder).compute.devices)
    hardware.use_compilation_cache(cache_dir())
    hardware.check_backend()
    model = load_model(folder, dtype=dtype or "float32", adapter=adapter, weights=weights, step=step)
    if chat_template and model.tokenizer is not None:
        model.tokenizer.chat_template = Path(chat_template).expanduser().read_text(encoding="utf-8")
    print(f"lm: {model.summary}", file=sys.stderr, flush=True)
    return model


def run(args: argparse.Namespace) -> None:
    """Load the model, compile, and listen."""
    least = dict.fromkeys(("max_waiting", "max_new_tokens", "inspect_tokens", "drain_seconds"), 0)
    least |= dict.fromkeys(("max_body_bytes", "max_seconds"), 1)
    for name, low in least.items():
        if not getattr(args, name) >= low:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least {low}")
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port {args.port}: expected 0 to 65535")
    try:
        from lm.serve import start
    except ModuleNotFoundError as error:
        raise ValueError(f'lm serve needs {error.name}: pip install -e ".[serve]"') from None
    from lm.serve.call import Limits
    from lm.serve.conversation import engine_of, length_of
    from lm.serve.embeddings import EMBEDDED, Embedder

    keys = start.read_keys(Path(args.api_key_file).expanduser()) if args.api_key_file else []
    model = load(args.model, args.dtype, args.devices, args.chat_template, args.adapter, args.weights)
    decodes = model.config.generates and not model.config.has_encoder
    engine = engine_of(model, args.slots, args.length) if decodes else None
    length = length_of(model, args.length)
    most_embedded = model.vectors.longest(model.config)
    embedder = Embedder(model, min(length if args.length else min(length, EMBEDDED), most_embedded))
    name = args.name or Path(args.model).expanduser().resolve().name
    most = Limits(args.max_body_bytes, args.max_new_tokens, args.max_seconds, inspect_tokens=args.inspect_tokens)
    app = start.application(model, name, engine, most, args.max_waiting, keys, args.allow_origin, embedder)
    what = f"{args.slots} slots of {engine.length:,} tokens" if engine else f"vectors of {embedder.length:,} tokens"
    print(f"{name}: {what}; compiling", flush=True)
    if args.host not in ("127.0.0.1", "::1", "localhost") and not keys:
        print(f"lm: {args.host} can be reached by others, and no key is asked for: see --api-key-file", flush=True)
    if engine:
        engine.warm_up()
    embedder.warm_up()
    start.listen(app, args.host, args.port, args.drain_seconds)
