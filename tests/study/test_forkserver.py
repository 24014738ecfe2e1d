"""A process that the fork server starts is as good as a fresh one: the same run, and nothing of the study's own."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch import study
from lm.machine import hardware
from lm.study import forkserver
from tests.tiny import lines, write_texts

ROOT = Path(__file__).parent.parent.parent
RUNS = """
import sys
from pathlib import Path
from lm.machine import hardware
hardware.prepare_host()
from lm.study import executors, forkserver, runner
imported_with = forkserver.settings()
from tests.study import page

study, note = runner.SomeArms(page.pair, ["alibi"]), {"study": "tests.study.page:pair"}
server, fresh = forkserver.ForkServer(), executors.subprocess.Popen
executors.subprocess.Popen = None  # no fresh process
runner.run(study, Path(sys.argv[1]), note, executors.Local(1, "cpu", server=server))
executors.subprocess.Popen = fresh
server._channel.close()  # the server has ended
runner.run(study, Path(sys.argv[2]), note, executors.Local(1, "cpu", server=server))
"""
# what a process finds, one that says so when it gets SIGTERM, one that has ended before it is asked to, and one that is
# interrupted, and whose study ends then
PROBES = """
import json, os, signal, sys, threading, time
from pathlib import Path
from lm.machine import hardware
from lm.machine.processes import catch_signals
hardware.prepare_host()
import jax
assert jax.config.jax_platforms == "cpu"
from lm.study import executors, forkserver, worker
imported_with = forkserver.settings()
import numpy
numpy.ones((512, 512)) @ numpy.ones((512, 512))  # OpenBLAS has threads now
ended = threading.Event()
thread = threading.Thread(target=ended.wait)
thread.start()
assert "thread" in forkserver.obstacle(imported_with, "cpu")
ended.set()
thread.join()
assert not (why := forkserver.obstacle(imported_with, "cpu")), why

def found():
    handlers = [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    tasks = len(os.listdir("/proc/self/task"))
    blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    return [os.environ.get("JAX_PLATFORMS"), tasks, handlers, blocked, sorted(os.listdir("/proc/self/fd"))]

def interrupted(folders, how):
    with catch_signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.close(study)
        time.sleep(1.0)
    return len(signals)

def main(arguments):
    global study
    print("héllo", arguments[0])
    if arguments[0] == "interrupted":
        end, study = os.pipe()
        os.dup2(end, 0)
        worker.work = interrupted
        Path(arguments[1]).write_text(str(work_as_asked(["--watched", "folder"])))
        return 0
    if arguments[0] == "found":
        Path(arguments[1]).write_text(json.dumps(found()))
        print("to stderr", file=sys.stderr)
        raise OSError("it fails")
    if arguments[0] == "watched":
        worker._end_with_parent()
        signal.signal(signal.SIGTERM, lambda *_: (Path(arguments[1]).write_text("ended"), os._exit(0)))
    Path(arguments[1]).with_suffix(".ready").touch()
    time.sleep(600)

work_as_asked, worker.main = worker.main, main
server = forkserver.ForkServer()
folder = Path(sys.argv[1])
log = (folder / "log.txt").open("ab")
one = server.start(["found", str(folder / "forked.json")], log.fileno())
one.wait()
assert one.poll() == 0
one.kill()  # no error
two = server.start(["watched", str(folder / "watched")], log.fileno())
three = server.start(["sleeps", str(folder / "sleeps")], log.fileno())
four = server.start(["interrupted", str(folder / "signals")], log.fileno())
while len(list(folder.glob("*.ready"))) < 2:
    time.sleep(0.05)
assert two.poll() is None and three.poll() is None
two.stdin.close()
two.wait()
executors.PATIENCE_SECONDS = 0.0
executors._terminate([three])
assert three.poll() == 0
(folder / "fresh.json").write_text(json.dumps(found()))
four.wait()
server._channel.close()
assert server.start(["found"], log.fileno()) is None
"""


def python(code: str, *arguments: object, **environment: str) -> None:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_runs_are_those_of_a_fresh_process(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    python(RUNS, tmp_path / "forked", tmp_path / "fresh", TEXTS=str(texts))
    for seed in ("0", "1"):
        forked, fresh = (tmp_path / which / "runs" / "alibi" / seed for which in ("forked", "fresh"))
        assert lines(forked) == lines(fresh) and len(lines(fresh)) >= 12
        said = [(folder / "log.txt").read_text() for folder in (forked, fresh) if seed == "0"]
        assert len({text.count("held-out") + text.count("one program") for text in said}) <= 1
        about = [json.loads((folder / "about.json").read_text()) for folder in (forked, fresh)]
        for name in about[0].keys() | about[1].keys():
            if isinstance(value := about[0].get(name), str) and name not in ("started", "finished"):
                assert value == about[1].get(name), name


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that PROBES has written to."""
    folder = tmp_path_factory.mktemp("probed")
    python(PROBES, folder, JAX_PLATFORMS="")
    return folder


def test_a_process_has_what_a_fresh_one_has(probed: Path) -> None:
    """Of the environment, signals, threads and files; it ends when its standard input closes, or is killed."""
    platforms, tasks, handlers, blocked, files = json.loads((probed / "forked.json").read_text())
    assert (platforms, tasks, blocked) == ("", 1, []) and files == ["0", "1", "2", "3"]  # 3 lists the folder
    assert handlers == json.loads((probed / "fresh.json").read_text())[2]
    log = (probed / "log.txt").read_text()
    assert log.startswith("to stderr\nTraceback") and "OSError: it fails\nhéllo found\n" in log
    assert (probed / "watched").read_text() == "ended" and "sleeps" not in log


def test_ctrl_c_is_one_signal(probed: Path) -> None:
    """It goes to the study and to its processes, which have time for a checkpoint."""
    assert (probed / "signals").read_text() == "1"


@pytest.mark.parametrize("platforms", [None, "", "tpu"])
def test_the_platform_of_a_study_s_processes_is_the_user_s(
    platforms: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    if platforms is not None:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    hardware.prepare_host()
    assert os.environ.get("JAX_PLATFORMS") == platforms


@pytest.mark.parametrize(
    ("devices", "environment", "found"),
    [
        ("gpu", {}, "accelerator"),
        ("", {"JAX_PLATFORMS": "tpu"}, "accelerator"),
        ("", {"JAX_PLATFORMS": "", "TPU_LIBRARY_PATH": "libtpu.so"}, "accelerator"),
        ("cpu", {}, "have started"),
    ],
)
def test_where_a_fresh_process_is_another(
    devices: str, environment: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jax.devices()
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    assert found in forkserver.obstacle(forkserver.settings(), devices)


def test_what_changes_after_the_import_of_jax_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    monkeypatch.setattr(forkserver, "is_single_threaded", lambda: True)
    before = forkserver.settings()
    assert forkserver.obstacle(before, "cpu") == ""
    with jax.numpy_dtype_promotion("strict"):
        assert "has changed" in forkserver.obstacle(before, "cpu")
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_dump_to=/tmp")
    assert "has changed" in forkserver.obstacle(before, "cpu")


@pytest.mark.parametrize(("obstacle", "forks"), [("", True), ("more than one thread runs", False)])
def test_lm_study_has_a_server_where_nothing_hinders(
    obstacle: str, forks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forkserver, "obstacle", lambda settings, devices: obstacle)
    monkeypatch.setattr(forkserver.ForkServer, "__init__", lambda self: None)
    args = argparse.Namespace(executor="local", workers=1, devices="cpu", together="no")
    server = study.executor(args, forkserver.settings()).server
    assert isinstance(server, forkserver.ForkServer) == forks
