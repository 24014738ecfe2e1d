"""A side of a comparison, as a process of its own: it starts once, then trains as many steps as it is asked for.

One JSON object a line: the worker says {"ready": true, ...} after its first step, is asked {"steps": k} and answers
{"seconds": s, "loss": x, "parts": {...}}. Between questions it waits and holds no core. Standard library only: the
peers' interpreters run this file too.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
Train = Callable[[int], float]  # trains that many steps to their very end, returns the last loss; see `serve`


def serve(build: Callable[[dict[str, Any]], Train], packages: Sequence[str]) -> None:
    """Be a worker: build from the settings in argv[1], train a step, say `packages`' versions, then answer.

    What `build` returns may have `parts`, the seconds of each part of what it last trained."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    begun = time.perf_counter()
    train = build(json.loads(sys.argv[1]))
    loss = train(1)
    versions = {"python": sys.version.split()[0], **{name: metadata.version(name) for name in packages}}
    ready = {"ready": True, "seconds": time.perf_counter() - begun, "loss": loss, "versions": versions}
    channel.write(json.dumps(ready) + "\n")
    for line in sys.stdin:
        begun = time.perf_counter()
        loss = train(json.loads(line)["steps"])
        seconds, parts = time.perf_counter() - begun, getattr(train, "parts", {})
        channel.write(json.dumps({"seconds": seconds, "loss": loss, "parts": parts}) + "\n")


class Worker:
    """A running side, seen by the one who asks; `first_step` is the seconds from start to its first step's end."""

    def __init__(self, module: str, settings: dict[str, Any], python: str, environment: dict[str, str]) -> None:
        self.name = f"{module} {settings}"
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe that nobody reads would fill up)
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            [python, "-m", module, json.dumps(settings)],
            cwd=ROOT,
            env={**os.environ, **environment},
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
        )
        try:
            ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.first_step = time.perf_counter() - begun
        self.loss, self.versions, self.parts = ready["loss"], ready["versions"], dict[str, float]()

    def train(self, steps: int) -> float:
        """Seconds that `steps` steps take; `parts` has those of each part, where the side knows them."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"steps": steps}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.parts = answer["parts"]
        return float(answer["seconds"])

    def cpu_seconds(self) -> float:
        """Processor time that the process has used so far, all threads, user and system (Linux; elsewhere 0)."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.said.seek(0)
            raise ValueError(f"{self.name} ended with code {self.process.returncode}:\n{self.said.read()[-2000:]}")
        return json.loads(line)
