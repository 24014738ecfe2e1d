"""The loss, gradient and metrics of TRL's reward trainer, recorded for tests/tune/test_reward.py.

python -m venv trl; trl/bin/pip install trl==1.16.0 torch==2.13.0
trl/bin/python -m certificates.reward tests/tune/trl_reward.json

The trainer's own function gets rewards that are made here in place of a model's: the gradient is by these.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

PAIRS = 6
CASES: dict[str, dict[str, Any]] = {  # whether there are margins, and the coefficient of centring
    "plain": dict(margins=False, centering=0.0),
    "margins": dict(margins=True, centering=0.0),
    "centred": dict(margins=False, centering=0.01),
    "margins, centred": dict(margins=True, centering=0.5),
}


def arrays() -> dict[str, np.ndarray]:
    """Rewards of both sides of six pairs, one of which is equal and two of which are wrong, and margins."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(0.5, 1.5, (PAIRS, 2))
    rewards[2, 0] = rewards[2, 1]
    return {"rewards": rewards.astype(np.float32), "margins": rng.choice([0.0, 0.5, 1.0], PAIRS).astype(np.float32)}


def recorded(margins: bool, centering: float) -> dict[str, Any]:
    """TRL's loss of `arrays`, its gradient by the rewards, and its metrics."""
    import torch
    from trl import RewardTrainer

    given = {name: torch.tensor(array) for name, array in arrays().items()}
    rewards = given["rewards"].requires_grad_()
    stacked = torch.cat([rewards[:, :1], rewards[:, 1:]])  # chosen ones, then rejected ones
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centering or None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {"margin": given["margins"]} if margins else {}
    loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=stacked), inputs)
    loss.backward()
    metrics = {name: values[0] for name, values in trainer._metrics["eval"].items() if name != "num_tokens"}
    return {"loss": loss.item(), "gradient": rewards.grad.tolist(), **metrics}


def main(file: Path) -> None:
    """Write the record."""
    import trl

    record = {
        "trl": trl.__version__,
        **{name: array.tolist() for name, array in arrays().items()},
        "cases": {name: {**case, **recorded(**case)} for name, case in CASES.items()},
    }
    file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
