"""Constitutional AI (2212.08073): a model's answers made better, and compared, by written principles.

`revise` has a model criticise its own answer by a principle and write it anew: conversations for supervised
fine-tuning. `compare` has a model say which of two answers is better by a principle: preference pairs, for a reward
model or DPO (reinforcement learning from AI feedback). What comes of a prompt follows from the models, the seed and the
prompt's number alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lm.data.conversations import said
from lm.data.random import generator
from lm.tune.assistant import Assistant, Messages
from lm.tune.best_of import Ranked, Score, assistant_message, best_of
from lm.tune.reward_functions import Completion

DRAWS = 64  # of a prompt: answers, critiques and revisions
MOST_ROUNDS = (DRAWS - 1) // 2
BEGUN, LABELS = "The better answer is", (" A", " B")
QUESTION = """\
Two answers to the same request are to be compared.

{request}

Answer A:
{a}

Answer B:
{b}

{compare}"""


@dataclass(frozen=True)
class Principle:
    """What an answer should be like, as three requests to a model: to criticise its last answer by it (`critique`), to
    write the answer anew (`revision`), and to say which of two answers is better (`compare`)."""

    critique: str
    revision: str
    compare: str

    def __post_init__(self) -> None:
        if empty := [name for name in ("critique", "revision", "compare") if not getattr(self, name).strip()]:
            raise ValueError(f"Principle.{empty[0]} is empty: expected a request to the model")


@dataclass(frozen=True)
class Constitution:
    """The `principles`, of which each critique and each comparison draws one, and `prompts` to apply them to, where no
    others are given."""

    principles: tuple[Principle, ...]
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.principles:
            raise ValueError("Constitution.principles is empty: expected at least one")

    def draw(self, seed: int, number: int, round: int) -> int:
        """The number of the principle of a prompt's round."""
        return int(generator(seed, "principle", number, round).integers(len(self.principles)))


class Outcome(NamedTuple):
    """The record that came of a prompt, or why there is none."""

    record: dict[str, Any] | None
    dropped: str = ""


@dataclass
class _Draft:
    """A prompt's `conversation` and what was written in it so far, by name."""

    number: int
    conversation: Messages
    texts: dict[str, str] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    dropped: str = ""


def _drafts(conversations: Sequence[Messages], first: int) -> list[_Draft]:
    return [_Draft(first + i, conversation) for i, conversation in enumerate(conversations)]


def _ask(
    assistant: Assistant, drafts: Sequence[_Draft], name: str, draw: int, more: Callable[[_Draft], Messages]
) -> None:
    """Let the text `name` be written in each draft, by the prompt's draw `draw`, after what is said `more` in its
    conversation. A draft without a usable one is dropped."""
    asked = list[tuple[_Draft, list[int]]]()
    for draft in drafts:
        if not draft.dropped:
            ids = assistant.encode([*draft.conversation, *more(draft)])
            if assistant.fits(ids):
                asked.append((draft, ids))
            else:
                draft.dropped = f"{name}: what is asked leaves no room in {assistant.engine.length} tokens"
    texts = assistant.write([ids for _, ids in asked], [draft.number * DRAWS + draw for draft, _ in asked])
    for (draft, _), text in zip(asked, texts, strict=True):
        draft.texts[name], draft.dropped = text.strip(), fault(name, text)


def fault(name: str, text: Completion) -> str:
    """Why a text is of no use; empty where it is."""
    if not text.stopped:
        return f"{name}: not ended within {text.tokens} tokens"
    return "" if text.strip() else f"{name}: empty"


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _none(draft: _Draft) -> Messages:
    return ()


# ---------------------------------------------------------------- critique and revision


def revise(
    assistant: Assistant, constitution: Constitution, conversations: Sequence[Messages], rounds: int = 1, first: int = 0
) -> list[Outcome]:
    """Of each conversation the record with its revised answer: `messages`, and as `trace` what was written before.

    Args:
      assistant: answers, criticises and revises.
      constitution: whose principles are drawn.
      conversations: which end with the user's request.
      rounds: of critique and revision, each of the answer before.
      first: the number of the first conversation, of more that are asked for in parts.

    Raises ValueError where the tokenizer has no chat template."""
    if not 1 <= rounds <= MOST_ROUNDS:
        raise ValueError(f"rounds={rounds}: expected 1 to {MOST_ROUNDS}")
    drafts = _drafts(conversations, first)
    _ask(assistant, drafts, "answer", 0, _none)
    for n in range(rounds):
        _revise(assistant, constitution, drafts, n)
    return [Outcome(None, draft.dropped) if draft.dropped else Outcome(_revised(draft)) for draft in drafts]


def _revise(assistant: Assistant, constitution: Constitution, drafts: Sequence[_Draft], n: int) -> None:
    """One round: in place of its answer each draft gets the revised one."""

    def principle(draft: _Draft) -> Principle:
        return constitution.principles[constitution.draw(assistant.seed, draft.number, n)]

    def criticised(draft: _Draft) -> list[dict[str, str]]:
        answer = draft.rounds[-1]["revision"] if draft.rounds else draft.texts["answer"]
        return [assistant_message(answer), _user(principle(draft).critique)]

    def revised(draft: _Draft) -> list[dict[str, str]]:
        return [*criticised(draft), assistant_message(draft.texts["critique"]), _user(principle(draft).revision)]

    _ask(assistant, drafts, "critique", 2 * n + 1, criticised)
    _ask(assistant, drafts, "revision", 2 * n + 2, revised)
    for draft in drafts:
        if not draft.dropped:
            written = {name: draft.texts[name] for name in ("critique", "revision")}
            draft.rounds.append({"principle": constitution.draw(assistant.seed, draft.number, n), **written})


def _revised(draft: _Draft) -> dict[str, Any]:
    messages = [*draft.conversation, assistant_message(draft.rounds[-1]["revision"])]
    return {"messages": messages, "trace": {"answer": draft.texts["answer"], "rounds": draft.rounds}}


# ---------------------------------------------------------------- comparison


def compare(
    assistant: Assistant,
    judge: Assistant,
    constitution: Constitution,
    conversations: Sequence[Messages],
    first: int = 0,
) -> list[Outcome]:
    """Of each conversation a preference pair of two answers: `prompt`, `chosen`, `rejected`, and as `judged` by which
    principle and with which probability the chosen one is better, in each order of the two.

    A judge that favours the first place favours neither answer: what decides is the mean over both orders.

    Args:
      assistant: draws the answers.
      judge: says which is better, by the probabilities of A and B.
      constitution, conversations, first: as in `revise`."""
    drafts = _drafts(conversations, first)
    for draw, name in enumerate(("first answer", "second answer")):
        _ask(assistant, drafts, name, draw, _none)
    questions = {draft.number: _questions(draft, judge, constitution) for draft in drafts if not draft.dropped}
    for draft in drafts:
        if draft.number in questions and not draft.dropped:
            most = max(len(judge.encode(question, BEGUN + LABELS[0])) for question in questions[draft.number])
            draft.dropped = "" if most <= judge.engine.length else f"comparison: over {judge.engine.length} tokens"
    live = [draft for draft in drafts if not draft.dropped]
    found = judge.choose([question for draft in live for question in questions[draft.number]], BEGUN, LABELS)
    better = {draft.number: np.array([a, b]) for draft, a, b in zip(live, found[::2, 0], found[1::2, 1], strict=True)}
    return [_compared(draft, better.get(draft.number), judge, constitution) for draft in drafts]


def _questions(draft: _Draft, judge: Assistant, constitution: Constitution) -> list[Messages]:
    """Which answer is better, asked in both orders; a draft of equal answers is dropped."""
    a, b = draft.texts["first answer"], draft.texts["second answer"]
    if a == b:
        draft.dropped = "the two answers are equal"
    asked = constitution.principles[constitution.draw(judge.seed, draft.number, 0)].compare
    request = "\n\n".join(f"{message['role'].capitalize()}: {said(message)}" for message in draft.conversation)
    return [[_user(QUESTION.format(request=request, a=x, b=y, compare=asked))] for x, y in ((a, b), (b, a))]


def _compared(draft: _Draft, better: np.ndarray | None, judge: Assistant, constitution: Constitution) -> Outcome:
    """The pair, where the first answer is `better` with these probabilities in each order."""
    if better is None or better.mean() == 0.5:
        return Outcome(None, draft.dropped or "a tie")
    sides, ahead = ("first answer", "second answer"), better.mean() > 0.5
    chosen, rejected = ([assistant_message(draft.texts[name])] for name in (sides if ahead else sides[::-1]))
    chances = np.round(better if ahead else 1 - better, 6).tolist()
    judged = {"principle": constitution.draw(judge.seed, draft.number, 0), "probabilities": chances}
    return Outcome({"prompt": list(draft.conversation), "chosen": chosen, "rejected": rejected, "judged": judged})


# ---------------------------------------------------------------- the best by a reward


def best_answers(
    assistant: Assistant, conversations: Sequence[Messages], n: int, score: Score, first: int = 0
) -> list[Outcome]:
    """Of each conversation the record with the best of `n` answers, `messages`, and their `rewards`, best first; of
    answers that have an end and a reward."""
    fits = [assistant.fits(assistant.encode(one)) for one in conversations]
    numbers = [first + i for i, there in enumerate(fits) if there]
    records = [{"prompt": list(conversations[number - first])} for number in numbers]
    ranked = dict(zip(numbers, best_of(assistant, records, n, score, numbers) if numbers else (), strict=True))
    return [
        _best(conversation, ranked[first + i])
        if fits[i]
        else Outcome(None, f"answer: what is asked leaves no room in {assistant.engine.length} tokens")
        for i, conversation in enumerate(conversations)
    ]


def _best(conversation: Messages, ranked: Sequence[Ranked]) -> Outcome:
    usable = [(text, reward) for text, reward in ranked if not fault("answer", text) and reward == reward]
    if not usable:
        return Outcome(None, f"answer: none of {len(ranked)} is usable")
    messages = [*conversation, assistant_message(usable[0][0].strip())]
    return Outcome({"messages": messages, "rewards": [round(reward, 6) for _, reward in usable]})
