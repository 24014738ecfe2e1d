"""`lm chat`: a conversation with a model, in the terminal."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from launch.serve import add_model_options, load

EPILOG = """\
Replies are streamed. Ctrl-C ends a reply, /exit or Ctrl-D the chat. Messages are rendered by the model's chat template;
a model that has none continues the text.

  /image FILE       goes with the next message, for a model with a vision tower
  /reset            forget what was said, but for the system message
  /system TEXT      put TEXT before the conversation; without TEXT, nothing
  /temperature T    0 is greedy
  /save FILE        the messages, as a line of JSON

examples:
  lm chat SmolLM2-135M-Instruct.Q4_1.gguf
  lm chat runs/quickstart --temperature 0.5 --max-new-tokens 64
  lm chat gemma-3-4b-it        and in it: /image cat.png, then: What is this?
"""


def add(verbs: Any) -> None:
    """Declare `lm chat`."""
    verb = verbs.add_parser("chat", help="talk with a model", description=__doc__, epilog=EPILOG)
    verb.add_argument("model", metavar="MODEL", help="a run's folder, a Hugging Face model directory, or a GGUF file")
    verb.add_argument("--system", default="", metavar="TEXT", help="the system message (default: the template's)")
    verb.add_argument("--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (0.8)")
    verb.add_argument(
        "--top-p", type=float, default=0.95, metavar="P", help="the likeliest of this mass (0.95; 1: all)"
    )
    verb.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="the most of a reply (512)")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="of the random draws (0)")
    verb.add_argument(
        "--length", type=int, default=0, metavar="T", help="tokens of context (default: the model's, at most 8192)"
    )
    add_model_options(verb)
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load the model, and talk."""
    from lm.bounds import Count, Seed, require
    from lm.decode.sampling import Sampling

    require(Count, max_new_tokens=args.max_new_tokens)
    require(Seed, seed=args.seed)
    sampling = Sampling(args.temperature, top_p=args.top_p)
    model = load(args.model, args.dtype, args.devices, args.chat_template, args.adapter, args.weights)
    from lm.serve.conversation import Conversation, engine_of

    engine = engine_of(model, 1, args.length)
    conversation = Conversation(model, engine, sampling, args.max_new_tokens, args.seed)
    if args.system:
        conversation.system(args.system)
    if not conversation.tokenizer.chat_template:
        say("this model has no chat template: it continues the text")
    say("compiling")
    engine.warm_up()
    talk(conversation)


def talk(conversation: Any) -> None:
    """Read lines and answer them, to the end of the input."""
    while (line := read()) is not None and line != "/exit":
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                say(conversation.command(line))
                continue
            with interruptions() as interrupted:
                for text in conversation.reply(line, interrupted):
                    sys.stdout.write(text)
                    sys.stdout.flush()
            print()
        except (ValueError, OSError) as error:
            say(str(error))


def read() -> str | None:
    """The next line of the input; None at its end. Ctrl-C takes back what was typed."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (lines can be edited)
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            say("Ctrl-D or /exit ends the chat")


@contextlib.contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, in place of an exception in the midst of a step."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def say(text: str) -> None:
    """A line that is the command's own."""
    print(f"lm: {text}", file=sys.stderr, flush=True)
