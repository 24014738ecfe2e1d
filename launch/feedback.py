"""`lm feedback`: records to learn from that a model makes of its own answers, by principles or by rewards."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.find import filled
from launch.serve import add_adapter_option, add_weights

LENGTH = 2048  # tokens of a conversation, at most the model's context
KINDS = {
    "revise": "answers that a model criticises by written principles and writes anew: conversations for SFT",
    "compare": "pairs of answers of which a model says which is better by the principles: for DPO or a reward model",
    "best": "the best of n answers by a reward model: conversations for SFT (expert iteration)",
}
EPILOG = """\
A line of --prompts is a JSON object with a prompt, a text or messages. Without it the prompts are those of the
constitution, a value Constitution(principles=(Principle(...), ...), prompts=(...)) of a module. The model has a chat
template. Prompts of which nothing usable came (an empty answer, one that did not end) are left out and counted. The
same command writes the same bytes, and goes on where it was stopped.

examples:
  lm feedback revise SmolLM2-135M-Instruct.Q4_1.gguf --constitution experiments.constitution:chat --output revised.jsonl
  lm feedback compare runs/constitution --judge SmolLM2-135M-Instruct.Q4_1.gguf --output pairs.jsonl
  lm feedback best runs/sft_small --reward runs/reward -n 8 --prompts prompts.jsonl --output best.jsonl

They are read by Conversations(Jsonl("revised.jsonl"), other_fields=("trace",)), Preferences(Jsonl("pairs.jsonl"),
other_fields=("judged",)) and Conversations(Jsonl("best.jsonl"), other_fields=("rewards",)).
"""


def add(verbs: Any) -> None:
    """Declare `lm feedback`."""
    verb = verbs.add_parser(
        "feedback", help="a model's own answers, judged, as records", description=__doc__, epilog=EPILOG
    )
    action = verb.add_subparsers(dest="action", metavar="|".join(KINDS), required=True)
    for kind, help in KINDS.items():
        one = action.add_parser(kind, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=EPILOG)
        one.add_argument(
            "model", metavar="MODEL", help="a run's folder, a Hugging Face model directory, or a GGUF file"
        )
        one.add_argument("--output", required=True, type=filled, metavar="FILE", help="the .jsonl file to write")
        one.add_argument("--prompts", type=filled, metavar="FILE", help=".jsonl records with a prompt")
        one.add_argument(
            "--constitution",
            default="experiments.constitution:constitution",
            metavar="MODULE:NAME",
            help="of its principles and prompts (experiments.constitution:constitution)",
        )
        if kind == "revise":
            one.add_argument("--rounds", type=int, default=1, metavar="N", help="of critique and revision (1)")
        if kind == "compare":
            one.add_argument("--judge", metavar="MODEL", help="the model that compares (default: MODEL itself)")
        if kind == "best":
            one.add_argument("--reward", required=True, metavar="MODEL", help="a reward model")
            one.add_argument("-n", type=int, default=8, metavar="N", help="answers to each prompt (8)")
        add_drawing(one)
        add_adapter_option(one)
        add_weights(one)
        one.add_argument(
            "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to run (default: the best there is)"
        )
        one.set_defaults(run=run)


def add_drawing(verb: Any) -> None:
    """How texts are drawn."""
    verb.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of an answer or a critique (256)")
    verb.add_argument("--temperature", type=float, default=1.0, metavar="T", help="divides the logits (1)")
    verb.add_argument("--top-p", type=float, default=1.0, metavar="P", help="of the most likely tokens (1: all)")
    verb.add_argument("--seed", type=int, default=0, metavar="S", help="of the random draws (0)")
    verb.add_argument("--slots", type=int, default=16, metavar="N", help="conversations at a time (16)")


def run(args: argparse.Namespace) -> None:
    """Load the models, write the records, and say what was left out."""
    for name in ("max_new_tokens", "slots", "rounds", "n"):
        if getattr(args, name, 1) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1")
    from launch.find import find_constitution
    from launch.serve import load
    from lm.run.feedback import check_new, conversation, read_prompts, write_records

    constitution = find_constitution(args.constitution)
    given = read_prompts(Path(args.prompts)) if args.prompts else [conversation(one) for one in constitution.prompts]
    output = Path(args.output).expanduser()
    check_new(output, given)
    model = load(args.model, "", args.devices, None, args.adapter, args.weights)
    dropped = write_records(output, header(args, constitution), given, maker(args, model, constitution))
    print(summary(output, len(given), dropped))


def header(args: argparse.Namespace, constitution: Any) -> dict[str, Any]:
    """What the records follow from, beside the prompts."""
    from lm.machine import buckets
    from lm.pretrained import open_model
    from lm.value import plain

    own = ("action", "max_new_tokens", "temperature", "top_p", "seed", "weights", "adapter", "rounds", "n")
    models = {name: path for name in ("model", "judge", "reward") if (path := getattr(args, name, None))}
    prints = {name: open_model(buckets.local_mirror(path)).fingerprint() for name, path in models.items()}
    principles = [] if args.action == "best" else plain(constitution.principles)
    return {**{name: getattr(args, name) for name in own if hasattr(args, name)}, **prints, "principles": principles}


def maker(args: argparse.Namespace, model: Any, constitution: Any) -> Any:
    """What makes records of conversations, of which the first has a number."""
    from lm.decode.sampling import Sampling
    from lm.machine import buckets
    from lm.pretrained import load
    from lm.pretrained.assistant import assistant_of
    from lm.tune.best_of import by_model
    from lm.tune.constitution import best_answers, compare, revise

    def assistant(model: Any) -> Any:
        drawing = Sampling(args.temperature, top_p=args.top_p), args.seed, args.slots
        return assistant_of(model, args.max_new_tokens, *drawing, min(LENGTH, model.config.context))

    own = assistant(model)
    if args.action == "revise":
        return lambda some, first: revise(own, constitution, some, args.rounds, first)
    if args.action == "best":
        score = by_model(load(buckets.local_mirror(args.reward)))
        return lambda some, first: best_answers(own, some, args.n, score, first)
    judge = assistant(load(buckets.local_mirror(args.judge))) if args.judge else own
    return lambda some, first: compare(own, judge, constitution, some, first)


def summary(file: Path, count: int, dropped: Mapping[str, int]) -> str:
    """How many records there are, why others are left out, and how often a judge says the same in both orders."""
    lines = [f"{file}: {count - sum(dropped.values())} of {count} prompts"]
    lines += [f"{number} left out, {reason}" for reason, number in sorted(dropped.items(), key=lambda one: -one[1])]
    records = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    agree = [min(one["judged"]["probabilities"]) > 0.5 for one in records if "judged" in one]
    if agree:
        lines.append(f"the judge prefers the same answer in both orders in {sum(agree) / len(agree):.0%}")
    return "\n".join(lines)
