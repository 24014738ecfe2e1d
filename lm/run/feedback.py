"""Records that come of a model's own answers, written so that a process that was killed goes on where it was.

While they are written they are in FILE.part: what they follow from, then a line for each prompt, its record or why
there is none. A record follows from that and the prompt's number alone, so that a file has the same bytes however often
it was begun.
"""

import collections
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm import value
from lm.data.conversations import checked_messages
from lm.data.prompts import parse
from lm.tune.assistant import Messages
from lm.tune.constitution import Outcome

BLOCK = 32  # prompts that are answered together, and written before the next ones are
Make = Callable[[Sequence[Messages], int], list[Outcome]]  # of conversations, of which the first has this number


def read_prompts(file: Path) -> list[Messages]:
    """The conversations of a .jsonl file's records with a `prompt`, a text or messages. Raises ValueError, naming the
    line, for another one."""
    found = list[Messages]()
    for number, line in enumerate(file.expanduser().read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                found.append(conversation(parse(line)["prompt"]))
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from None
    return found


def conversation(prompt: Any) -> Messages:
    """The messages of a prompt; a text is the user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else checked_messages("prompt", prompt, ())


def check_new(file: Path, prompts: Sequence[Messages]) -> None:
    """Raises ValueError where there are no prompts, or the file is there already."""
    if not prompts:
        raise ValueError("there are no prompts: give --prompts FILE, or a constitution that has some")
    if file.exists():
        raise ValueError(f"{file} is there already: choose another --output, or remove it")


def write_records(file: Path, of: Mapping[str, Any], prompts: Sequence[Messages], make: Make) -> dict[str, int]:
    """Write what `make` makes of `prompts` into a new .jsonl `file`; the counts of what was dropped, by reason.

    Args:
      file: written whole at the end; until then it is FILE.part.
      of: plain data that the records follow from, and the prompts.
      prompts: conversations.
      make: their outcomes.

    Raises ValueError where the file is there already, or was begun with other values."""
    check_new(file, prompts)
    part = file.with_name(f"{file.name}.part")
    header = {**of, "prompts": value.fingerprint([list(prompt) for prompt in prompts])}
    outcomes = _begun(part, header)
    for start in range(len(outcomes), len(prompts), BLOCK):
        new = make(prompts[start : start + BLOCK], start)
        with part.open("a", encoding="utf-8") as stream:
            stream.writelines(_line([one.record, one.dropped]) for one in new)
        outcomes += new
        print(f"{len(outcomes)} of {len(prompts)} prompts", flush=True)
    whole = file.with_name(f"{file.name}.whole")
    whole.write_text("".join(_line(one.record) for one in outcomes if one.record), encoding="utf-8")
    whole.replace(file)
    part.unlink()
    return dict(collections.Counter(one.dropped for one in outcomes if one.record is None))


def _begun(part: Path, header: Mapping[str, Any]) -> list[Outcome]:
    """The outcomes in a file that was begun; a new one has the header alone."""
    part.parent.mkdir(parents=True, exist_ok=True)
    lines = part.read_text(encoding="utf-8").splitlines(keepends=True) if part.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if not whole:
        whole = [_line(header)]
    elif others := value.differences(json.loads(whole[0]), json.loads(_line(header))):
        name, before, now = others[0]
        raise ValueError(
            f"{part} was begun with {name}={before!r}, and it is {now!r} now: choose another --output, or remove it"
        )
    part.write_text("".join(whole), encoding="utf-8")
    return [Outcome(*json.loads(line)) for line in whole[1:]]


def _line(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"
