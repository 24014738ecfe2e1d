"""A process of a study: trains the runs in the folders that it is given, and writes why where one ends too soon.

    python -m lm.study.worker FOLDER ...

Each folder has its experiment.json already. Several folders are runs that share one program (lm/run/together.py). The
process ends, after a checkpoint, when the one that started it is gone: its standard input closes.
"""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

from lm import value
from lm.machine import hardware
from lm.run.outcome import FAILED, write_outcome


def _end_with_parent() -> None:
    """End once standard input has closed. Ctrl-C reaches the study too, which closes it then: SIGINT as well would be a
    second signal, and leave no time for a checkpoint."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def work(folders: list[Path], how: str) -> int:
    """Train the runs, `how` they share a program; the exit code."""
    from lm.pretrained import read_experiment
    from lm.run.course import Interrupted
    from lm.run.together import train

    try:
        train([read_experiment(folder) for folder in folders], folders, how)
    except Interrupted as stopped:
        print(stopped, flush=True)
        return 128 + stopped.signal
    except Exception as error:  # the study goes on without these
        traceback.print_exc()
        known = isinstance(error, (ValueError, OSError))
        line = str(error).splitlines()[0] if str(error) else ""
        for folder in folders:
            write_outcome(folder, FAILED, line if known else f"{type(error).__name__}: {line}")
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the `arguments` (default: the process's), and work."""
    parser = argparse.ArgumentParser(prog="python -m lm.study.worker", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run's folder")
    parser.add_argument("--devices", default="", help="cpu, gpu or tpu")
    parser.add_argument("--together", default="auto", help="how runs share a program: auto, turns or vmap")
    parser.add_argument("--watched", action="store_true", help="end when standard input closes")
    options = parser.parse_args(arguments)
    hardware.prepare(options.devices)
    if options.watched:
        _end_with_parent()
    os.environ[value.TRUST] = "1"  # the process that started this one wrote the experiments, of the user's own page
    return work(options.folders, options.together)


if __name__ == "__main__":
    sys.exit(main())
