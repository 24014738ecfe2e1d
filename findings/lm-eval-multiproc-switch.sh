#!/bin/sh
# lm-evaluation-harness forks a process for each core, and its switch against that has a name that nothing reads.
#
# The bootstrap of a standard error (perplexity's, not accuracy's) runs in a pool of forked processes, in a process that
# may hold a model in a library with threads (JAX warns of a deadlock). lm_eval/defaults.py reads
# LMEVAL_DISABLE_MULTIPROC, and the bootstrap asks for DISABLE_MULTIPROC.
# Seen with lm_eval 0.4.13. The standard error is the same either way.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check lm_eval==0.4.13
"$folder/venv/bin/python" - <<'END'
import multiprocessing
import os

from lm_eval.api.metrics import bootstrap_stderr, perplexity

pools = []
Pool = multiprocessing.Pool
multiprocessing.Pool = lambda *args: pools.append(args) or Pool(*args)


def forked(**environment):
    """Whether the bootstrap made a pool under these variables, and the standard error."""
    pools.clear()
    os.environ.update(environment)
    error = bootstrap_stderr(perplexity, [-1.0, -2.0, -3.0], 1000)
    for name in environment:
        del os.environ[name]
    return bool(pools), error


documented, read = forked(LMEVAL_DISABLE_MULTIPROC="1"), forked(DISABLE_MULTIPROC="1")
print(f"LMEVAL_DISABLE_MULTIPROC=1: (forked, stderr) {documented}; DISABLE_MULTIPROC=1: {read}")
assert documented[0] and not read[0] and documented[1] == read[1], "the switch is read by its documented name"
END
