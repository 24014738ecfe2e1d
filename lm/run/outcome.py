"""Files in a run's folder between it and what started it: why it ended before its end, and the wish that it does."""

import json
from pathlib import Path

from lm.page.markup import write

FAILED, DIVERGED, PRUNED = "failed", "diverged", "pruned"  # why a run ended
OUTCOME = "outcome.json"
STOP = "stop"  # while a run goes (together.py): it is to end


def write_outcome(folder: Path, status: str, reason: str) -> None:
    """Write why the run in `folder` ended. Raises ValueError where that cannot be written."""
    write(folder / OUTCOME, json.dumps({"status": status, "reason": reason}) + "\n")
