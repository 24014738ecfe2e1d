"""`lm sample`: continuations of a prompt, drawn or found by beam search, by the model of a run or a published one."""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.find import filled
from launch.serve import add_adapter_option, add_step, add_weights

DRAWING = dict(temperature=0.8, top_k=0, top_p=0.95, min_p=0.0, repetition_penalty=1.0)  # what is drawn without options
DRAFTING = ("draft", "prompt_lookup")
SELF = "self"  # in place of a draft model
BEST = ("best_of", "reward")
MOST = 128  # new tokens, where nobody says how many
SLOTS = 16  # of the texts of best-of-n, so many at a time
GRAMMARS = ("json_schema", "regex", "choice")
EPILOG = """\
The first text is streamed; with -n the others, decoded in the same batch, follow. The same seed gives the same texts.

examples:
  lm sample runs/quickstart --prompt "def "
  lm sample runs/quickstart --prompt "The " --temperature 0 --max-new-tokens 64     greedy
  lm sample runs/quickstart --prompt "class " --top-k 40 --seed 7 -n 3
  lm sample runs/quickstart --prompt "def " --stop $'\\ndef ' --stop $'\\nclass '       one function
  lm sample runs/quickstart --prompt "def " --beams 4 -n 2       the two best of a beam search, with their scores
  lm sample runs/quickstart --prompt "def " --draft runs/small   a small model drafts; the acceptance goes to stderr
  lm sample runs/quickstart --prompt "def " --best-of 8 --reward runs/reward      of -n 8 the one that scores highest
  lm sample runs/multi --prompt "def " --draft self        its own modules draft (model.multi_token)
  lm sample model.gguf --prompt "A person as JSON: " --json-schema @person.json
  lm sample model.gguf --prompt "Is the sky blue?" --choice " yes" --choice " no" --temperature 0
  lm sample bert-base-uncased --prompt "Paris is [MASK]." -n 5   an encoder fills masks; 5 candidates each
  lm sample t5-base --prompt "The <extra_id_0> sat"              sentinels are filled in; other prompts have an output
  lm sample model.gguf --prompt "The capital of France is" --temperature 0
  lm sample gemma-3-4b-it --image cat.png --prompt "What is this?"      a model with a vision tower
"""


def add(verbs: Any) -> None:
    """Declare `lm sample`."""
    verb = verbs.add_parser("sample", help="continue a prompt", description=__doc__, epilog=EPILOG)
    verb.add_argument(
        "run_folder", metavar="MODEL", help="a run's folder, a Hugging Face model directory, or a GGUF file"
    )
    verb.add_argument("--prompt", default="", help="the text to continue (default: none)")
    verb.add_argument(
        "--image",
        action="append",
        type=filled,
        metavar="FILE",
        help="an image that the prompt is about, where it has <image> or before it; may be given several times",
    )
    verb.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="the most tokens to add (128, or what fits the context)"
    )
    verb.add_argument("--temperature", type=float, metavar="T", help="divides the logits; 0 is greedy (0.8)")
    verb.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the most likely tokens of this mass (0.95; 1: all)",
    )
    verb.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens (0: all)")
    verb.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="sample from tokens of at least P times the likeliest's probability (0: all)",
    )
    verb.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="divides the logits of tokens that occurred (1: none)",
    )
    verb.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end a text before this string; may be given several times (the model's own end of text always does)",
    )
    verb.add_argument("--seed", type=int, metavar="S", help="of the random draws (0)")
    verb.add_argument("-n", type=int, default=1, metavar="N", help="how many texts (1)")
    add_methods(verb)
    add_adapter_option(verb)
    add_step(verb)
    add_weights(verb)
    verb.add_argument(
        "--devices", default="", choices=("cpu", "gpu", "tpu"), help="where to run (default: the best there is)"
    )
    verb.set_defaults(run=run)


def add_methods(verb: argparse.ArgumentParser) -> None:
    """The options of beam search, of best-of-n, of grammars and of speculative decoding."""
    beams = verb.add_argument_group("beam search, in place of drawing")
    beams.add_argument("--beams", type=int, metavar="K", help="keep the K likeliest texts at each length")
    beams.add_argument(
        "--length-penalty",
        type=float,
        metavar="A",
        help="divide a text's log-probability by its tokens to the power of A: above 0 favours long texts (1)",
    )
    beams.add_argument(
        "--early-stopping",
        choices=("false", "true", "never"),
        help="stop where K texts are finished (true), where besides none under way promises a better score at its "
        "present length (false, the default), or at any length (never)",
    )
    best = verb.add_argument_group("best-of-n, the texts of -n N by a reward model's score")
    best.add_argument("--best-of", type=int, metavar="N", help="draw N texts and write the best, or with -n the best n")
    best.add_argument("--reward", metavar="MODEL", help="the reward model: a run's folder, or a model directory")
    constrained = verb.add_argument_group("only texts of a grammar (needs llguidance, of the extra serve)")
    grammars = constrained.add_mutually_exclusive_group()
    grammars.add_argument("--json-schema", metavar="JSON", help="JSON that meets this schema, or that of a file: @FILE")
    grammars.add_argument("--regex", metavar="R", help="texts that this regular expression matches from end to end")
    grammars.add_argument("--choice", action="append", metavar="TEXT", help="one of these; given several times")
    speculative = verb.add_argument_group("speculative decoding, of the same distribution, and greedy of the same text")
    drafters = speculative.add_mutually_exclusive_group()
    drafters.add_argument(
        "--draft",
        metavar="MODEL",
        help="a smaller model of the same tokenizer drafts; self: the model's own modules of multi-token prediction",
    )
    drafters.add_argument(
        "--prompt-lookup",
        action="store_true",
        default=None,
        help="draft what followed the last tokens where they stood before",
    )
    speculative.add_argument(
        "--draft-tokens", type=int, metavar="N", help="tokens to draft at a time (4; with --draft self, one a module)"
    )


def run(args: argparse.Namespace) -> None:
    """Load the model and write its texts."""
    most = args.max_new_tokens
    if args.n < 1 or most is not None and most < 1:
        shown = "" if most is None else f" --max-new-tokens {most}"
        raise ValueError(f"-n {args.n}{shown}: expected at least 1{' of each' if shown else ''}")
    refuse_unused(args)
    from lm.machine import hardware

    hardware.prepare(args.devices)
    from lm.machine import buckets
    from lm.machine.cache import cache_dir
    from lm.pretrained import is_run, load, read_experiment

    folder = buckets.local_mirror(args.run_folder)
    if is_run(folder):
        hardware.set_cpu_devices(read_experiment(folder).compute.devices)
    hardware.use_compilation_cache(cache_dir())
    hardware.check_backend()
    model = load(folder, adapter=args.adapter, weights=args.weights, step=args.step)
    print(f"lm: {model.summary}", file=sys.stderr, flush=True)
    method = method_for(model, args)
    args.max_new_tokens = fitting(model, args) if most is None else most
    method(model, args)


def fitting(model: Any, args: argparse.Namespace) -> int:
    """How many tokens to add where nobody says it: MOST, or what fits the context behind the prompt; 1 where none do,
    which the model then refuses with figures."""
    if not model.config.causal or model.config.has_encoder:
        return min(MOST, model.config.context - 1)  # of the decoder, which has read one id
    from lm.pretrained.images import prompt_ids

    tokenizer = model.checked_tokenizer()
    read = prompt_ids(args.prompt, len(args.image or ()), model.config, tokenizer)
    return max(1, min(MOST, model.config.context - len(read)))


def method_for(model: Any, args: argparse.Namespace) -> Callable[[Any, argparse.Namespace], None]:
    """What writes texts, as the model, the prompt and the options ask for."""
    if not model.config.causal:
        unused = [*DRAWING, "max_new_tokens", "seed", "stop", "image", "beams", *BEST, *DRAFTING, *GRAMMARS]
        refuse(args, unused, "has no effect: this model is an encoder, which fills the masks of a prompt")
        return fill_masks
    from lm.pretrained.fill import has_sentinels

    if model.config.has_encoder and has_sentinels(model, args.prompt):
        unused = ["stop", "image", "beams", *BEST, *DRAFTING, *GRAMMARS]
        refuse(args, unused, "has no effect where the sentinels of the prompt are filled in")
        return fill_spans
    return choose_best if args.best_of is not None else draw if args.beams is None else search


def refuse_unused(args: argparse.Namespace) -> None:
    """Raise ValueError for an option that would have no effect."""
    if args.beams is not None:
        drawing = [*DRAWING, "seed", "stop", *BEST, *DRAFTING, *GRAMMARS]
        refuse(args, drawing, "is for drawn texts: leave out either it or --beams")
    else:
        refuse(args, ["length_penalty", "early_stopping"], "is of beam search: add --beams")
    if (args.best_of is None) != (args.reward is None):
        raise ValueError("--best-of N and --reward MODEL: expected both, or neither")
    if args.best_of is not None:
        refuse(args, ["stop", *DRAFTING, *GRAMMARS], "is not for the texts of --best-of: leave it out")
        if args.best_of < args.n:
            raise ValueError(f"--best-of {args.best_of} -n {args.n}: expected at least as many as are to be written")
    if not args.draft and not args.prompt_lookup:
        refuse(args, ["draft_tokens"], "is of speculative decoding: add --draft MODEL or --prompt-lookup")

    if args.image is not None:
        refuse(args, ["beams", *BEST, *DRAFTING, *GRAMMARS], "is for text alone: leave out either it or --image")
    if any(getattr(args, name) is not None for name in GRAMMARS):
        refuse(args, ["stop", *DRAFTING], "is not for the texts of a grammar, which ends them: leave it out")


def refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise ValueError where one of these options is given."""
    for name in names:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} {why}")


def fill_masks(model: Any, args: argparse.Namespace) -> None:
    """Write the prompt with its masks filled in; with -n also the likeliest tokens of each."""
    from lm.pretrained.fill import fill_masks

    filled = fill_masks(model, args.prompt, args.n)
    write(f"{filled.text}\n")
    for i, best in enumerate(filled.candidates if args.n > 1 else [], 1):
        write(f"[MASK] {i}: " + ", ".join(f"{text} {chance:.3f}" for text, chance in best) + "\n")


def fill_spans(model: Any, args: argparse.Namespace) -> None:
    """Write the prompt with what the model writes for its sentinels."""
    from lm.pretrained.fill import fill_spans

    texts = fill_spans(model, args.prompt, args.max_new_tokens, sampling_of(args), args.seed or 0, args.n)
    for i, text in enumerate(texts, 1):
        header(i, args.n)
        write(f"{text}\n")


def sampling_of(args: argparse.Namespace) -> Any:
    """How to draw."""
    from lm.decode.sampling import Sampling

    given = {name: value for name in DRAWING if (value := getattr(args, name)) is not None}
    options: dict[str, Any] = DRAWING | given
    return Sampling(**options)


def search(model: Any, args: argparse.Namespace) -> None:
    """Write the best texts of a beam search."""
    from lm.decode.beam import BeamSearch
    from lm.machine.monitor import waiting_aside

    stopping: Any = {"true": True, "never": "never"}.get(args.early_stopping, False)
    penalty = 1.0 if args.length_penalty is None else args.length_penalty
    with waiting_aside("searching"):
        found = model.beam_search(args.prompt, args.max_new_tokens, BeamSearch(args.beams, args.n, penalty, stopping))
    for i, (text, score) in enumerate(found, 1):
        header(i, args.n, f", score {score:.4f}")
        write(f"{'' if model.config.has_encoder else args.prompt}{text}\n")


def choose_best(model: Any, args: argparse.Namespace) -> None:
    """Write the best texts by a reward model."""
    from lm.machine import buckets
    from lm.machine.monitor import waiting_aside
    from lm.pretrained import load
    from lm.pretrained.assistant import assistant_of
    from lm.tune.best_of import best_of, by_model

    reward, most = load(buckets.local_mirror(args.reward)), args.max_new_tokens
    length = len(model.encode(args.prompt)) + most
    assistant = assistant_of(model, most, sampling_of(args), args.seed or 0, min(args.best_of, SLOTS), length)
    with waiting_aside(f"drawing {args.best_of} texts"):
        (found,) = best_of(assistant, [{"prompt": args.prompt}], args.best_of, by_model(reward))
    for i, (text, score) in enumerate(found[: args.n], 1):
        header(i, args.n, f", reward {score:.4f}")
        write(f"{args.prompt}{text}\n")


def draw(model: Any, args: argparse.Namespace) -> None:
    """Stream the first text, and write the others after it."""
    sampling = sampling_of(args)
    before = "" if model.config.has_encoder else args.prompt  # an output, no continuation
    others, draft, drawn = [""] * (args.n - 1), drafting(model, args), (args.max_new_tokens, sampling, args.seed or 0)
    if any(getattr(args, name) is not None for name in GRAMMARS):
        from lm.pretrained.constrain import constrained

        stream = constrained(model, args.prompt, grammar_of(args), *drawn, args.n)
    else:
        stream = model.stream(args.prompt, *drawn, args.n, args.stop or [], **draft, images=args.image or ())
    for i, (first, *rest) in enumerate(begun(iter(stream))):
        if i == 0:  # only after the prompt was accepted: an error is printed alone
            header(1, args.n)
            write(before)
        write(first)
        others = [text + new for text, new in zip(others, rest, strict=True)]
    write("\n")
    for i, text in enumerate(others, 2):
        header(i, args.n)
        write(f"{before}{text}\n")
    if draft:
        print(draft["acceptance"], file=sys.stderr)


def begun(stream: Iterator[list[str]]) -> Iterator[list[str]]:
    """What comes of `stream`; that programs are compiled before the first comes is said."""
    from lm.machine.monitor import waiting_aside

    with waiting_aside("compiling"):
        first = list(itertools.islice(stream, 1))
    return itertools.chain(first, stream)


def grammar_of(args: argparse.Namespace) -> Any:
    """The grammar that is asked for. Raises ValueError for a schema that is not JSON."""
    from lm.decode.grammar import Choice, JsonSchema, Regex

    if args.regex is not None:
        return Regex(args.regex)
    if args.choice is not None:
        return Choice(tuple(args.choice))
    schema = args.json_schema
    if schema.startswith("@"):
        try:
            schema = Path(schema[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--json-schema {schema}: {getattr(error, 'strerror', '') or error}") from None
    try:
        json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--json-schema {schema[:40]!r} is not JSON: {error}") from None
    return JsonSchema(schema)


def drafting(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `stream` for speculative decoding: none without it."""
    if not args.draft and not args.prompt_lookup:
        return {}
    from lm.decode.self_draft import SelfDraft
    from lm.decode.speculative import Acceptance, PromptLookup
    from lm.machine import buckets
    from lm.pretrained import load

    if args.draft == SELF:
        return dict(drafter=SelfDraft.of(model.model, args.draft_tokens), acceptance=Acceptance())
    tokens = 4 if args.draft_tokens is None else args.draft_tokens
    if args.prompt_lookup:
        return dict(drafter=PromptLookup(tokens), acceptance=Acceptance())
    small = load(buckets.local_mirror(args.draft))
    return dict(drafter=model.draft_model(small, tokens), draft_params=small.params, acceptance=Acceptance())


def header(number: int, of: int, more: str = "") -> None:
    """A separator between several texts."""
    if of > 1:
        write(f"--- {number} of {of}{more} ---\n")


def write(text: str) -> None:
    """Write `text` and flush."""
    sys.stdout.write(text)
    sys.stdout.flush()
