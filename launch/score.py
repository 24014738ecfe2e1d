"""`lm score`: what a reward model thinks of texts and conversations."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from launch.serve import add_adapter_option

SHOWN = 60  # characters of a text in the table
EPILOG = """\
A score is read at the last token of a text with its end, as training reads it: bos, tokens, eos, or what the chat
template makes of messages. A line of --records is a JSON object with messages, with a prompt and its completion, or
with a text.

examples:
  lm score runs/reward "def add(a, b):" "def add(a b:"
  lm score runs/reward --records answers.jsonl --json > scored.jsonl    the records with their scores
  lm score reward-model --records chats.jsonl                   a Llama-, Qwen2-, .. ForSequenceClassification
  lm score SmolLM2-135M-Instruct.Q4_1.gguf "Hello." --adapter reward    with what LoRA(…) learned
"""


def add(verbs: Any) -> None:
    """Declare `lm score`."""
    verb = verbs.add_parser("score", help="the scores of texts by a reward model", description=__doc__, epilog=EPILOG)
    verb.add_argument("model", metavar="MODEL", help="a run's folder, or a model directory with an output of scores")
    verb.add_argument("texts", nargs="*", metavar="TEXT", help="a text to score")
    verb.add_argument("--records", nargs="+", default=[], metavar="FILE", help=".jsonl files of what to score")
    verb.add_argument("--json", action="store_true", help="print the records with their scores, a JSON object a line")
    add_adapter_option(verb)
    verb.add_argument(
        "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to run (default: the best there is)"
    )
    verb.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load the model and print the scores."""
    records = [{"text": text} for text in args.texts] + [record for file in args.records for record in read(Path(file))]
    if not records:
        raise ValueError("nothing to score: give texts, or --records FILE")
    from launch.serve import load

    model = load(args.model, "", args.devices, None, args.adapter)
    for record, score in zip(records, model.score(records).tolist(), strict=True):
        if args.json:
            print(json.dumps({**record, "score": score}, ensure_ascii=False))
        else:
            scores = score if isinstance(score, list) else [score]
            print("".join(f"{x:10.4f}" for x in scores) + f"  {shortened(record)}")
    sys.stdout.flush()


def read(file: Path) -> list[dict[str, Any]]:
    """The records of a .jsonl file. Raises ValueError for a line that is none."""
    records = []
    for number, line in enumerate(file.expanduser().read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}: line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{file}: line {number} is no object: expected messages, prompt and completion, or text")
        records.append(record)
    return records


def shortened(record: dict[str, Any]) -> str:
    """The end of what is scored, in one line."""
    last = record.get("text") or record.get("completion") or record.get("messages") or ""
    text = last if isinstance(last, str) else str(last[-1].get("content", ""))
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else "…" + text[-SHOWN:]
