"""A model as lm-evaluation-harness asks it: log-likelihoods and continuations, computed by the engine.

The harness (PyPI: lm_eval) brings the tasks and their statistics. `EngineModel` answers its three kinds of request, as
the harness's own Hugging Face adapter does: a context and a continuation are tokenised as one text, what is too long
loses tokens on the left, and a continuation is greedy where each of its tokens has the largest log-probability. But a
text begins with exactly one bos, where that adapter has none, one or two of them, by tokenizer and by request.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Protocol

import jax
import numpy as np

from lm.decode.engine import Engine, Output, Request, TokenLogprob
from lm.decode.sampling import NONE, Sampling
from lm.decode.slots import TOP
from lm.pretrained.model import Pretrained
from lm.text.stop import StopStrings
from lm.text.tokenizer import Tokenizer
from lm.value import fingerprint, suggest

SLOTS = 16  # texts that are drawn at a time
STEP = 256  # the engine's length is a multiple of it, where the context allows
NEW_TOKENS = 256  # of a text whose task names no number: the harness's
FORCE = 1e9  # a bias under which a token is certain
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one thing, the first wins
FILTERS = ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty")
KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better", "configs")
Progress = Callable[[str, int, int], None]  # (what, done, total)


class Instance(Protocol):
    """The harness's request: its arguments, as a tuple."""

    args: Any


@dataclass(frozen=True)
class Beginning:
    """The id before the first token of a text. Its `source` is the tokenizer's bos, its eos in place of a bos, or none;
    it is before `every` text, or else before those without a context alone."""

    id: int | None
    source: str
    every: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer, always: bool) -> "Beginning":
        """That of a tokenizer: before every text `always`, or where the tokenizer puts a bos there by itself."""
        if tokenizer.bos is not None:
            return cls(tokenizer.bos, "bos", always or tokenizer.bos in tokenizer.encode_prompt("")[:1])
        if tokenizer.eos is not None:
            return cls(tokenizer.eos, "eos", always)
        return cls(None, "none", False)


@dataclass
class EngineModel:
    """What the harness asks of a model, answered by engines of `engines(slots, length)`, each for one call.

    Args:
      model: with a tokenizer.
      engines: makes an engine of so many slots, and tokens of each.
      length: tokens that are read at a time (0: the model's context).
      slots: texts that are drawn at a time.
      always_bos: whether every text begins with a bos (or the eos, where the tokenizer has no bos); else a text with a
        context does where the tokenizer puts it there by itself, as under the harness's Hugging Face adapter.
      progress: told what is done, how much of it, and of how much."""

    model: Pretrained
    engines: Callable[[int, int], Engine]
    length: int = 0
    slots: int = SLOTS
    always_bos: bool = True
    progress: Progress = lambda what, done, total: None
    asked: int = field(default=0, init=False)  # requests of the engine
    truncated: int = field(default=0, init=False)  # texts that lost tokens on the left

    def __post_init__(self) -> None:
        if self.model.tokenizer is None:
            raise ValueError("this model came without a tokenizer, which tasks need: put one beside its weights")
        self.tokenizer, self.length = self.model.tokenizer, self.length or self.model.config.context
        self.beginning = Beginning.of(self.tokenizer, self.always_bos)

    # ---------------------------------------------------------------- what the harness asks

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): the continuation's log-probability, and whether it is greedy."""
        return self._scores([self._pair(*request.args) for request in requests], "continuations")

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each (text,), in windows of `length` tokens that follow one another."""
        texts = [list(self._windows(*request.args)) for request in requests]
        scores = iter(self._scores([window for text in texts for window in text], "windows"))
        return [math.fsum(next(scores)[0] for _ in text) for text in texts]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each (context, options), to before one of the strings options["until"]."""
        asked = [self._generation(i, *request.args) for i, request in enumerate(requests)]
        readers = [(self.tokenizer.decoder_after(one.prompt), StopStrings(until)) for one, until in asked]
        texts = [""] * len(asked)
        engine = self._engine(self.slots, [len(one.prompt) + one.max_new_tokens for one, _ in asked])
        for number, output in self._outputs(engine, [one for one, _ in asked], "texts"):
            decoder, end = readers[number]
            texts[number] += end.push("" if output.token == NONE else decoder.push(output.token))
            if output.finish_reason:
                texts[number] += end.push(decoder.close()) + end.close()
            elif end.found is not None:
                engine.cancel(output.number)
        return texts

    # ---------------------------------------------------------------- tokens

    def encode(self, text: str) -> list[int]:
        """The ids of a text with its beginning, once. Names of control ids in the text are those ids."""
        ids = self._without_prefix(text)
        return [self._prefix(), *ids] if self.beginning.every else self.tokenizer.encode(text, parse_special=True)

    def _prefix(self) -> int:
        if self.beginning.id is None:
            raise ValueError(
                "this tokenizer has neither bos nor eos to begin a text with, so that its first token has no "
                "probability: choose tasks whose requests have a context"
            )
        return self.beginning.id

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of both, tokenised as one text; spaces between them are the continuation's."""
        if not context:
            return [self._prefix()], self._without_prefix(continuation)
        before = self.encode(context.rstrip())
        return before or [self._prefix()], self.encode(context + continuation)[len(before) :]

    def _without_prefix(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, parse_special=True)
        return ids[1:] if ids[:1] == [self.beginning.id] else ids

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """(context, continuation) of parts of a text: each token is in one continuation, and each context is as long as
        there is room for."""
        ids = [self._prefix(), *self._without_prefix(text)]
        for start in range(1, len(ids), self.length):
            end = min(start + self.length, len(ids))
            yield ids[max(0, end - self.length - 1) : start], ids[start:end]

    # ---------------------------------------------------------------- the engine

    def _scores(self, pairs: Sequence[tuple[list[int], list[int]]], what: str) -> list[tuple[float, bool]]:
        """The log-probability of each continuation after its context, and whether it is greedy."""
        longest = max((len(after) for _, after in pairs), default=0)
        if longest > self.length:
            raise ValueError(f"a continuation of {longest:,} tokens: expected at most the context's {self.length:,}")
        rows = [(before + after)[-self.length - 1 :] for before, after in pairs]
        self.truncated += sum(len(row) < len(before + after) for row, (before, after) in zip(rows, pairs, strict=True))
        engine = self._engine(1, map(len, rows))
        found = [(0.0, True)] * len(rows)
        requests = [self._scoring(row, engine.length) for row in rows]
        for number, output in self._outputs(engine, requests, what):
            last = TokenLogprob(output.token, output.logprob, output.top)
            tokens = [*output.prompt, last][: len(rows[number]) - 1]
            scored = tokens[len(tokens) - len(pairs[number][1]) :]
            found[number] = sum(one.logprob for one in scored), all(map(self._is_greedy, scored))
        return found

    def _scoring(self, row: Sequence[int], room: int) -> Request:
        """A request for the log-probabilities of a row; the token for which there is no room is drawn for certain."""
        bias = tuple((id, FORCE) for id in row[room:])
        top = TOP if self.model.config.vocab > self.tokenizer.vocab_size else 1
        return Request(row[:room], 1, Sampling(0.0, logit_bias=bias), top_logprobs=top, prompt_logprobs=True)

    def _is_greedy(self, token: TokenLogprob) -> bool:
        """Whether no token of the vocabulary has a larger log-probability: the same float, also in a tie."""
        return token.logprob >= max((value for id, value in token.top if id < self.tokenizer.vocab_size), default=0.0)

    def _engine(self, slots: int, lengths: Iterable[int]) -> Engine:
        """An engine with room for rows of these lengths."""
        longest = max(lengths, default=0)
        return self.engines(slots, min(self.length, -(-longest // STEP) * STEP or STEP))

    def _outputs(self, engine: Engine, requests: Sequence[Request], what: str) -> Iterator[tuple[int, Output]]:
        """(index of the request, output), as they come. Raises ValueError for logits that are not finite."""
        self.asked += len(requests)
        index, left = {engine.submit(request): i for i, request in enumerate(requests)}, len(requests)
        while engine.busy:
            for output in engine.step():
                if output.finish_reason == "not finite":
                    raise ValueError("the model's logits are NaN or infinite")
                yield index[output.number], output
            self.progress(what, left - len(engine.waiting) - len(engine.running), left)

    def _generation(self, index: int, context: str, options: dict[str, Any]) -> tuple[Request, list[str]]:
        """The request for text `index`, and the strings that end it."""
        options = dict(options)
        given = [value for name in LIMITS if (value := options.pop(name, None)) is not None]
        most, until = int((given or [NEW_TOKENS])[0]), options.pop("until", None) or []
        until = [until] if isinstance(until, str) else [stop for stop in until if stop]
        if not 0 < most < self.length:
            raise ValueError(f"max_gen_toks={most} of a task: expected 1 to {self.length - 1}, less than the context")
        stop = *self.model.stop_ids, *(id for id, name in self.tokenizer.controls.items() if name in until)
        ids = self.encode(context) or [self._prefix()]
        self.truncated += len(ids) > self.length - most
        return Request(ids[most - self.length :], most, self._sampling(options), stop, index=index), until

    def _sampling(self, options: dict[str, Any]) -> Sampling:
        """What the options of a task ask for, of those that are left. Raises ValueError for another one."""
        draws = options.pop("do_sample", None)
        temperature = float(options.pop("temperature", 1.0 if draws else 0.0))
        filters = {name: options.pop(name) for name in FILTERS if name in options}
        if options:
            raise ValueError(f"generation option {min(options)} of a task is not known: expected {', '.join(FILTERS)}")
        padded = self.model.config.vocab > self.tokenizer.vocab_size
        temperature = 0.0 if draws is False else temperature
        return Sampling(temperature, **filters, vocab_size=self.tokenizer.vocab_size if padded else 0)


# ---------------------------------------------------------------- the harness


def evaluate_tasks(
    model: EngineModel,
    tasks: Sequence[str],
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> dict[str, Any]:
    """The harness's results of these tasks, and under "model" what they are of.

    Args:
      model: what is asked.
      tasks: names of tasks, groups or tags.
      include_path: a folder of task files, which come before the harness's own of the same name.
      limit: documents of each task (None: all).
      num_fewshot: examples before each, where the task does not fix them.

    Raises ValueError where the harness is not installed, or a task is not known or cannot be loaded."""
    try:
        import lm_eval
        from lm_eval.api.model import LM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ValueError(f'--tasks needs {error.name}: pip install -e ".[harness]"') from None

    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # its bootstrap forks, and a process with JAX has threads
    logging.getLogger("lm_eval.tasks").setLevel(logging.ERROR)  # or each task file of the user's is warned of

    class Answers(LM):
        loglikelihood, generate_until = model.loglikelihood, model.generate_until
        loglikelihood_rolling = model.loglikelihood_rolling

    known = TaskManager(include_path=include_path)
    for name in tasks:
        if name not in known.all_tasks:
            raise ValueError(f"unknown task {name!r}: {suggest(name, known.all_tasks)}")
    options = dict(limit=limit, num_fewshot=num_fewshot, log_samples=False)
    try:
        found = lm_eval.simple_evaluate(Answers(), tasks=list(tasks), task_manager=known, **options)
    except Exception as error:
        if model.asked:
            raise
        what = f"{type(error).__name__}: {str(error).strip()}"
        raise ValueError(f"the tasks cannot be loaded: {what}; for data that is here, see --include-path") from error
    settings = {"tasks": list(tasks), "limit": limit, "num_fewshot": num_fewshot, "lm_eval": version("lm_eval")}
    return {"model": about(model), "settings": settings, **{name: found[name] for name in KEPT if name in found}}


def tables(found: Mapping[str, Any]) -> str:
    """The harness's tables of `evaluate_tasks`, and how texts were read."""
    from lm_eval.utils import make_table

    beginning, truncated = found["model"]["bos"], found["model"]["truncated"]
    where = "every text" if beginning["every"] else "texts without a context"
    said = f"bos: {beginning['token']!r}, the tokenizer's {beginning['source']}, before {where}"
    lost = f"{truncated} texts longer than {found['model']['length']:,} tokens lost some on the left"
    parts = [make_table(found), *([make_table(found, "groups")] if found.get("groups") else [])]
    return "\n".join([*parts, said if beginning["token"] else "bos: none", *([lost] if truncated else [])])


def about(model: EngineModel) -> dict[str, Any]:
    """What results are of: the model's fingerprints, and how its texts were read."""
    own, beginning = model.model, model.beginning
    token = None if beginning.id is None else model.tokenizer.name(beginning.id)
    return {
        "config": fingerprint(own.config),
        "params": params_fingerprint(own.params),
        "tokenizer": model.tokenizer.fingerprint,
        "step": own.step,
        "dtype": own.model.compute.dtype,
        "device": jax.devices()[0].device_kind,
        "length": model.length,
        "bos": {**asdict(beginning), "token": token},
        "truncated": model.truncated,
    }


def params_fingerprint(params: Any) -> str:
    """16 hex digits of a hash of all parameters, their names and shapes."""
    digest = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(array)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()[:16]
