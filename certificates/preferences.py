"""Losses, gradients and metrics of TRL's DPO, KTO, SimPO and ORPO, recorded for tests/tune/test_preference_losses.py.

python -m venv trl; trl/bin/pip install trl==1.16.0 torch==2.13.0
trl/bin/python -m certificates.preferences tests/tune/trl_preferences.json

The trainers' own functions get log-probabilities that are made here in place of a model's: the gradient is by these.
Everything is float32, where the trainers' configs would turn bfloat16 on. ORPO's likelihood is that of the chosen
completions here; TRL takes the prompts too.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np

PAIRS, LENGTH = 4, 6
LENGTHS = [[5, 2], [3, 6], [1, 4], [6, 6]]  # of both sides, in tokens
LABELS = [True, False, False, True]
# name -> (TRL's options, our class and its fields)
DPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({}, {}),
    "sigmoid, beta 0.5": (dict(beta=0.5), dict(beta=0.5)),
    "hinge": (dict(loss_types=["hinge"]), dict(loss="hinge")),
    "ipo": (dict(loss_types=["ipo"], beta=0.3), dict(loss="ipo", beta=0.3)),
    "robust": (dict(loss_types=["robust"], label_smoothing=0.1), dict(loss="robust", label_smoothing=0.1)),
    "apo_zero": (dict(loss_types=["apo_zero"]), dict(loss="apo_zero")),
    "apo_down": (dict(loss_types=["apo_down"]), dict(loss="apo_down")),
}
KTO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "weighted": (
        dict(desirable_weight=2.0, undesirable_weight=0.5, beta=0.3),
        dict(desirable_weight=2.0, undesirable_weight=0.5, beta=0.3),
    ),
}
SIMPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (dict(beta=2.0, simpo_gamma=0.5, cpo_alpha=0.0), dict(beta=2.0, gamma=0.5)),
    "with likelihood": (
        dict(beta=1.5, simpo_gamma=0.3, cpo_alpha=1.0),
        dict(beta=1.5, gamma=0.3, sft_weight=1.0),
    ),
}
ORPO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"plain": (dict(beta=0.1), dict(beta=0.1))}
RENAMED = {
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "kl": "kl",
}


def arrays() -> dict[str, np.ndarray]:
    """Log-probabilities [PAIRS, 2, LENGTH] under the policy and the reference, and the mask of their tokens."""
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH) < np.array(LENGTHS)[..., None]
    policy = -rng.gamma(1.0, 1.0, mask.shape)
    return {"policy": policy * mask, "reference": (policy + rng.normal(0, 0.7, mask.shape)) * mask, "mask": mask * 1.0}


def stub(**options: Any) -> Any:
    """What the trainers' functions read of a trainer."""
    accelerator = SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False)
    given = dict(beta=0.1, label_smoothing=0.0, loss_types=["sigmoid"], ld_alpha=None, use_weighting=False)
    given |= dict(f_divergence_type="reverse_kl", precompute_ref_logps=False, aux_loss_enabled=False, alpha=0.0)
    given |= dict(desirable_weight=1.0, undesirable_weight=1.0, loss_type="kto", calculate_KL=True) | options
    metrics: dict[str, Any] = {"train": defaultdict(list)}
    return SimpleNamespace(
        accelerator=accelerator,
        args=args,
        loss_weights=[1.0],
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
        **given,
    )


def tensors() -> tuple[Any, Any, Any]:
    """Policy and reference [2 PAIRS, LENGTH], all first sides before the second ones, and the mask with a prompt's
    token before."""
    import torch

    given = arrays()
    policy, reference, mask = (
        torch.tensor(given[name], dtype=torch.float32).transpose(0, 1).reshape(2 * PAIRS, LENGTH)
        for name in ("policy", "reference", "mask")
    )
    return policy.requires_grad_(), reference, torch.cat([torch.zeros(2 * PAIRS, 1), mask], 1)


def module() -> Any:
    """A model that is only asked whether it trains."""
    import torch

    one = torch.nn.Identity()
    one.is_gradient_checkpointing = False  # type: ignore[assignment]
    return one


def outputs(logprobs: Any) -> Any:
    """What a model with TRL's fused head gives."""
    import torch

    zeros = torch.zeros(logprobs.shape)
    return SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0)


def recorded(loss: Any, policy: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """Loss, gradient and metrics as numbers."""
    loss.backward()
    gradient = policy.grad.reshape(2, PAIRS, LENGTH).transpose(0, 1)
    return {
        "loss": loss.item(),
        "gradient": gradient.tolist(),
        "metrics": {RENAMED[name]: value for name, value in metrics.items() if name in RENAMED},
    }


def dpo(**options: Any) -> dict[str, Any]:
    """TRL's DPO."""
    import torch
    from trl import DPOTrainer

    policy, reference, mask = tensors()
    trainer = stub(**options)
    trainer.model = module()
    trainer.ref_model = lambda **_: outputs(reference)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": ids, "completion_mask": mask}
    model: Any = lambda **_: outputs(policy * mask[:, 1:])  # noqa: E731
    loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
    return recorded(loss, policy, {name: values[0] for name, values in trainer._metrics["train"].items()})


def kto(**options: Any) -> dict[str, Any]:
    """TRL's KTO, of which the second sides are the mismatched completions."""
    import torch
    from trl import KTOTrainer

    policy, reference, mask = tensors()
    trainer = stub(**options)

    def model(of: Any) -> Any:
        return lambda input_ids, **_: outputs(of[PAIRS:] if input_ids[0, 0] else of[:PAIRS])

    trainer.model, trainer.ref_model = module(), model(reference)
    trainer._compute_kl_logps = MethodType(KTOTrainer._compute_kl_logps, trainer)
    ids = torch.zeros(PAIRS, LENGTH + 1, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": ids, "completion_mask": mask[:PAIRS], "label": torch.tensor(LABELS)}
    inputs |= {"KL_input_ids": ids + 1, "KL_attention_mask": ids, "KL_completion_mask": mask[PAIRS:]}
    loss = KTOTrainer._compute_loss(trainer, model(policy * mask[:, 1:]), inputs, False)
    return recorded(loss, policy, {name: values[0] for name, values in trainer._metrics["train"].items()})


def reference_free(kind: Any, **options: Any) -> dict[str, Any]:
    """TRL's ORPO, or its CPO with the loss of SimPO."""
    import torch

    policy, _, mask = tensors()
    mask, trainer = mask[:, 1:], stub(**{"loss_type": "simpo", **options})
    means = (policy * mask).sum(1) / mask.sum(1)
    nll = -(policy * mask)[:PAIRS].sum() / mask[:PAIRS].sum()
    zero = torch.zeros(1)
    trainer.concatenated_forward = lambda model, batch: (means[:PAIRS], means[PAIRS:], zero, zero, nll)
    for name in ("cpo_loss", "odds_ratio_loss"):
        if hasattr(kind, name):
            setattr(trainer, name, MethodType(getattr(kind, name), trainer))
    loss, metrics = kind.get_batch_loss_metrics(trainer, None, {})
    return recorded(loss, policy, metrics)


def main(file: Path) -> None:
    """Record everything in `file`."""
    import trl
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    each = {
        "DPO": (DPO, dpo),
        "KTO": (KTO, kto),
        "SimPO": (SIMPO, lambda **options: reference_free(CPOTrainer, **options)),
        "ORPO": (ORPO, lambda **options: reference_free(ORPOTrainer, **options)),
    }
    record = {
        "trl": trl.__version__,
        "labels": LABELS,
        "arrays": {name: array.tolist() for name, array in arrays().items()},
        "losses": {
            method: {name: {"ours": ours, **run(**theirs)} for name, (theirs, ours) in cases.items()}
            for method, (cases, run) in each.items()
        },
    }
    file.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
