"""`lm score`: what a reward model thinks of texts and conversations, and what a classifier calls them."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.serve import add_adapter_option

SHOWN = 60  # characters of a text in the table
Record = dict[str, Any]
EPILOG = """\
A decoder's score is read at the last token of a text with its end, as training reads it: bos, tokens, eos, or what the
chat template makes of messages; an encoder reads a text as its tokenizer puts it ([CLS] ... [SEP]). A line of --records
is a JSON object with messages, with a prompt and its completion, or with a text; for an encoder with a text, and a
text_pair where it reads two. Of a classifier, the label is printed before its probability; of one of tokens, that of
each token in a line of its own.

examples:
  lm score runs/reward "def add(a, b):" "def add(a b:"
  lm score runs/reward --records answers.jsonl --json > scored.jsonl    the records with their scores
  lm score reward-model --records chats.jsonl                   a Llama-, Qwen2-, .. ForSequenceClassification
  lm score bert-sst2 "A fine film." --json                     a Bert-, Roberta-, .. ForSequenceClassification
  lm score bert-ner "Angela Merkel was in Paris."              a .. ForTokenClassification: each token's label
  lm score SmolLM2-135M-Instruct.Q4_1.gguf "Hello." --adapter reward    with what LoRA(…) learned
"""


def add(verbs: Any) -> None:
    """Declare `lm score`."""
    verb = verbs.add_parser("score", help="the scores or labels of texts", description=__doc__, epilog=EPILOG)
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
    from lm.pretrained.classify import classify, classify_tokens

    model = load(args.model, "", args.devices, None, args.adapter)
    if model.config.output.of_tokens:
        show_tokens(records, classify_tokens(model, records), args.json)
    else:
        scores, labels = classify(model, records)
        show(records, scores.tolist(), labels, args.json)
    sys.stdout.flush()


def show(records: Sequence[Record], scores: Sequence[Any], labels: Sequence[Any], as_json: bool) -> None:
    """Print the scores of records, or the labels where they have some."""
    for record, score, found in zip(records, scores, labels, strict=True):
        if as_json:
            named = {} if found is None else {"labels": [one._asdict() for one in found]}
            print(json.dumps({**record, "score": score, **named}, ensure_ascii=False))
        elif found is not None:
            shown = ", ".join(f"{label} {probability:.4f}" for label, probability in found) or "no label"
            print(f"{shown}  {shortened(record)}")
        else:
            each = score if isinstance(score, list) else [score]
            print("".join(f"{x:10.4f}" for x in each) + f"  {shortened(record)}")


def show_tokens(records: Sequence[Record], tokens: Sequence[Sequence[Any]], as_json: bool) -> None:
    """Print the label of each token of records, between texts an empty line."""
    for i, (record, found) in enumerate(zip(records, tokens, strict=True)):
        if as_json:
            print(json.dumps({**record, "tokens": [one._asdict() for one in found]}, ensure_ascii=False))
            continue
        wide = max((len(one.label) for one in found), default=0)
        print("\n" * (i > 0) + "\n".join(f"{one.label:{wide}} {one.probability:.4f}  {one.text}" for one in found))


def read(file: Path) -> list[Record]:
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


def shortened(record: Record) -> str:
    """The end of what is scored, in one line."""
    last = record.get("text") or record.get("completion") or record.get("messages") or ""
    text = last if isinstance(last, str) else str(last[-1].get("content", ""))
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else "…" + text[-SHOWN:]
