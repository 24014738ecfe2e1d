"""A run that learns from rewards, as a process of its own, which may kill itself.

python -m tests.tune.process METHOD WHERE COUNT FILE WORKDIR [SECONDS [FIELD=VALUE ...]]: METHOD is grpo or ppo. With
WHERE `never` it is that run alone; else the same run goes to its end in WORKDIR-whole first, and then that in WORKDIR
to its COUNT-th WHERE (a rollout, an update, a checkpoint), in the middle of which the process gets SIGKILL.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm import value
from lm.experiment import Experiment
from lm.run import course
from lm.train.checkpoint import Checkpoints
from lm.tune.kl_control import AdaptiveKL
from lm.tune.on_policy import OnPolicy
from lm.tune.ppo import PPO
from tests import tiny
from tests.tune.sums import Digits, summing

PLACES: dict[str, tuple[Any, str]] = {
    "rollout": (OnPolicy, "compared"),  # completions are drawn and rewarded, and not yet learned from
    "update": (course.Stepper, "step"),  # which is dispatched, and not waited for
    "checkpoint": (Checkpoints, "save"),  # which is written in the background
}


def grpo(file: Path) -> Experiment:
    return summing(file, minibatches=2, beta=0.05).replace(**SHORT)


def ppo(file: Path) -> Experiment:
    kl = AdaptiveKL(horizon=100.0)
    method = PPO(rewards=(Digits(),), max_new_tokens=6, normalize=True, kl=kl, minibatches=2, epochs=2)
    return replace(summing(file).replace(model=dict(output=dict(scores=1)), **SHORT), method=method)


# with Adam's own eps, rounding alone would turn the first update of parameters whose gradient is nearly 0
SHORT: dict[str, Any] = dict(steps=7, eval_every_steps=4, checkpoint_every_steps=2, optimizer=dict(eps=1e-3))
METHODS = {"grpo": grpo, "ppo": ppo}


def kill(where: str, count: int) -> None:
    """Have this process killed once the `count`-th call there has been made."""
    owner, name = PLACES[where]
    call, calls = getattr(owner, name), [0]

    def killing(*args: Any) -> Any:
        result = call(*args)
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killing)


def main(method: str, where: str, count: str, file: str, workdir: str, seconds: str = "0", *settings: str) -> None:
    declared = METHODS[method](Path(file))
    for setting in settings:
        declared = value.parse(declared, setting)
    if where != "never":
        tiny.run(declared, f"{workdir}-whole")
        kill(where, int(count))
    tiny.run(declared, workdir, float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
