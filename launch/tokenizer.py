"""`lm tokenizer`: train a SentencePiece model on any text, or inspect a tokenizer."""

import argparse
import itertools
from typing import TYPE_CHECKING, Any

from launch.find import filled

if TYPE_CHECKING:
    from lm.text.tokenizer import Tokenizer

TRAIN_EPILOG = """\
A PATH is a text file, a .jsonl or .parquet file (the field "text" of each record), or a folder of them.
The first --train-bytes of it are used for training.

examples:
  lm tokenizer train --text ~/books --vocab-size 8000 --output tokenizers/books
  lm tokenizer train --text a.jsonl b.txt --model-type unigram --output tokenizers/ab

An experiment uses it as TokenizerFile("tokenizers/books").
"""
INSPECT_EPILOG = """\
examples:
  lm tokenizer inspect runs/quickstart
  lm tokenizer inspect runs/quickstart "for i in range(10): print(i)"
  lm tokenizer inspect tokenizers/books --text chapter.txt
"""
SAMPLE = """The quick brown fox jumps over the lazy dog; 3.14159 is close to π.

def area(radius):
    return 3.14159 * radius ** 2
"""
SHOWN_CHARACTERS = 2000  # of the text shown with its tokens in colours
COLOURS = ("on dark_blue", "on dark_green", "on dark_magenta", "on grey30")


def add(verbs: Any) -> None:
    """Declare `lm tokenizer`."""
    verb = verbs.add_parser("tokenizer", help="train or inspect a tokenizer", description=__doc__)
    action = verb.add_subparsers(dest="action", metavar="train|inspect", required=True)
    new = action.add_parser(
        "train",
        help="train a SentencePiece model",
        description="Train a SentencePiece model on any text.",
        epilog=TRAIN_EPILOG,
    )
    new.add_argument(
        "--text",
        nargs="+",
        action="extend",
        required=True,
        type=filled,
        metavar="PATH",
        help="files and folders to train on",
    )
    new.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="pieces, 256 bytes among them (4096)")
    new.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe", help="the algorithm (bpe)")
    new.add_argument(
        "--train-bytes", type=int, default=10_000_000, metavar="N", help="the most text to train on (10 million)"
    )
    new.add_argument("--output", required=True, type=filled, metavar="DIR", help="the folder to write")
    new.set_defaults(run=train)
    old = action.add_parser(
        "inspect",
        help="pieces, fertility, tokens in colours",
        description="Inspect a tokenizer.",
        epilog=INSPECT_EPILOG,
    )
    old.add_argument(
        "folder", metavar="RUN_OR_DIR", help="a run's folder, a tokenizer's, or a SentencePiece .model file"
    )
    old.add_argument("sentence", metavar="TEXT", nargs="?", default="", help="a text to tokenise")
    old.add_argument("--text", type=filled, metavar="FILE", help="a file to tokenise, and to measure fertility on")
    old.set_defaults(run=inspect)


# ---------------------------------------------------------------- train


def train(args: argparse.Namespace) -> None:
    """Train a tokenizer on all documents of the paths, and save it."""
    from lm.data.paths import texts
    from lm.text.tokenizer import SentencePieceSpec

    spec = SentencePieceSpec(vocab_size=args.vocab_size, model_type=args.model_type, train_bytes=args.train_bytes)
    tokenizer = spec.make(itertools.chain.from_iterable(map(texts, args.text)))
    try:
        tokenizer.save(args.output)
    except OSError as error:
        raise ValueError(f"cannot write {args.output}: {error.strerror or error}") from None
    print(f"{tokenizer.vocab_size} pieces in {args.output}")


# ---------------------------------------------------------------- inspect


def inspect(args: argparse.Namespace) -> None:
    """Print a tokenizer's pieces, its fertility, and a text with its tokens in colours."""
    from lm.data.paths import texts
    from lm.data.source import existing
    from lm.machine.monitor import terminal
    from lm.text.tokenizer import read

    folder = existing(args.folder)
    tokenizer = read(folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder)
    text = args.sentence or ("\n".join(texts(args.text)) if args.text else SAMPLE)
    console = terminal()
    console.print(
        f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} pieces, bos {tokenizer.bos}, eos {tokenizer.eos}"
    )
    console.print(pieces(tokenizer))
    what = "the text" if args.sentence or args.text else "a small sample (--text FILE measures yours)"
    console.print(f"[bold]fertility[/] of {what}: {fertility(tokenizer, text)}\n", soft_wrap=True)
    console.print(split(tokenizer, text[:SHOWN_CHARACTERS]))


def pieces(tokenizer: "Tokenizer") -> Any:
    """The longest pieces, and twenty spread over all ids."""
    from rich.table import Table
    from rich.text import Text

    ids = range(tokenizer.vocab_size)
    longest = sorted(ids, key=lambda i: -len(tokenizer.bytes_of(i)))[:20]
    ranks = [tokenizer.vocab_size * k // 20 for k in range(20)]
    table = Table("longest", "id", "by rank", "id", title="pieces", title_justify="left")
    for a, b in zip(longest, ranks, strict=False):
        table.add_row(Text(visible(tokenizer.piece(a))), str(a), Text(visible(tokenizer.piece(b))), str(b))
    return table


def fertility(tokenizer: "Tokenizer", text: str) -> str:
    """Tokens per word (separated by whitespace) and per byte."""
    tokens, words, size = len(tokenizer.encode(text)), len(text.split()), len(text.encode())
    if not size:
        return "no text"
    rates = f"{tokens / max(words, 1):.3f} tokens a word, {tokens / size:.3f} tokens a byte"
    return f"{rates} ({size / tokens:.2f} bytes a token; {tokens:,} tokens)"


def split(tokenizer: "Tokenizer", text: str) -> Any:
    """`text` with its tokens in alternating colours, or, without a terminal, separated by bars."""
    from rich.text import Text

    from lm.machine.monitor import terminal

    coloured, plain = Text(), not terminal().is_terminal
    for i, token in enumerate(tokenizer.encode(text)):
        if plain and i:
            coloured.append("|")
        piece = tokenizer.piece(token)
        shown = visible(piece).replace("·", " ") if not plain else visible(piece)
        coloured.append(shown + "\n" * piece.count("\n"), COLOURS[i % len(COLOURS)])
    return coloured


def visible(piece: str) -> str:
    """A piece with visible whitespace."""
    return piece.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
