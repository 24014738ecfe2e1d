"""Chromium without a window, driven through the DevTools protocol over a pipe."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
needs_chromium = pytest.mark.skipif(not (CHROMIUM and shutil.which("bash")), reason="there is no Chromium")
SECONDS = 30  # for an answer, and for what is waited for
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


@dataclass
class Pipe:
    """The two ends of DevTools: messages in JSON, each ended by a NUL."""

    commands: int
    answers: int
    number: int = 0
    rest: bytes = b""

    def ask(self, method: str, session: str = "", **params: Any) -> Any:
        """The result of a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            pass
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self.rest:
            assert select.select([self.answers], [], [], SECONDS)[0], "Chromium does not answer"
            self.rest += os.read(self.answers, 1 << 20)
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)


@dataclass
class Page:
    """A page, or a frame in it that has a process of its own."""

    pipe: Pipe
    target: str
    session: str = field(init=False)

    def __post_init__(self) -> None:
        self.session = self.pipe.ask("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]

    def ask(self, method: str, **params: Any) -> Any:
        return self.pipe.ask(method, self.session, **params)

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Show `address` in a window of this size."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """What the body of an async function returns in the page."""
        expression = f"(async () => {{ {script} }})()"
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for an expression to be true; one that fails, as on a page that is not there yet, is not."""
        deadline = time.monotonic() + SECONDS
        while not self.run(f"try {{ return !!({condition}) }} catch {{ return false }}"):
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)

    def text(self, where: str) -> str:
        """The text of an element."""
        return str(self.run(f"return document.querySelector({json.dumps(where)}).textContent"))

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.ask("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """Press a key of KEYS."""
        code = dict(windowsVirtualKeyCode=KEYS[key], key=key, code=key)
        self.ask("Input.dispatchKeyEvent", type="keyDown", **code, **({"text": "\r"} if key == "Enter" else {}))
        self.ask("Input.dispatchKeyEvent", type="keyUp", **code)

    def frame(self) -> "Page":
        """The frame that is a process of its own."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for one in self.pipe.ask("Target.getTargets")["targetInfos"]:
                if one["type"] == "iframe":
                    return replace(self, target=one["targetId"])
            time.sleep(0.02)
        raise AssertionError("there is no frame")

    def picture(self, whole: bool = False) -> bytes:
        """A PNG of what is seen, or of the whole page."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def overflow(self) -> int:
        """By how many pixels it is wider than its window."""
        return int(self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """An empty page of a Chromium, whose profile is in `folder`."""
    (read, commands), (answers, write) = os.pipe(), os.pipe()
    script = f'exec "$0" "$@" 3<&{read} 4>&{write}'  # where DevTools reads and writes
    command = ["bash", "-c", script, CHROMIUM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with subprocess.Popen(command, pass_fds=(read, write), stderr=subprocess.DEVNULL) as process:
        os.close(read)
        os.close(write)
        pipe = Pipe(commands, answers)
        try:
            found = pipe.ask("Target.getTargets")["targetInfos"]
            yield Page(pipe, next(one["targetId"] for one in found if one["type"] == "page"))
        finally:
            process.kill()
            os.close(commands)
            os.close(answers)
