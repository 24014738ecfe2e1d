"""Losses, gradients and advantages of TRL's GRPO and RLOO, recorded for tests/tune/test_policy_gradient.py.

python -m venv trl; trl/bin/pip install trl==1.16.0 torch==2.13.0
trl/bin/python -m certificates.grpo tests/tune/trl.json

The trainers' own functions get arrays that are made here in place of a model's log-probabilities: the gradient is by
these. bf16 is off, which TRL turns on by default, on CPUs too.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROWS, LENGTH, MOST = 4, 6, 8
REWARDS = [1.0, 0.0, 0.0, 2.0, 3.0, 3.0, 3.0, 3.0, 0.5, None, -1.0, 0.25, None, None, None, None]
PLAIN = dict(use_bias_correction_kl=False)
# name -> (TRL's options, ours)
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": (dict(loss_type="grpo"), {}),
    "grpo, kl": (dict(loss_type="grpo", beta=0.1, **PLAIN), dict(beta=0.1)),
    "dr_grpo": (dict(loss_type="dr_grpo"), dict(aggregation="constant")),
    "dapo": (dict(loss_type="dapo", epsilon_high=0.28), dict(aggregation="token", clip_high=0.28)),
    "dapo, kl": (dict(loss_type="dapo", beta=0.2, **PLAIN), dict(aggregation="token", beta=0.2)),
    "gspo": (
        dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=0.05),
        dict(ratio="sequence", clip_low=0.05, clip_high=0.05),
    ),
    "cispo": (dict(loss_type="cispo", epsilon_high=1.2), dict(aggregation="token", surrogate="cispo", clip_high=0.2)),
    "weighted": (dict(loss_type="dapo"), dict(aggregation="token")),
    "rloo": ({}, dict(ratio="product")),
}
ADVANTAGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "group": (dict(scale_rewards="group"), {}),
    "batch": (dict(scale_rewards="batch"), dict(scale="batch")),
    "none": (dict(scale_rewards="none"), dict(scale="none")),
    "rloo": (dict(beta=0.0), dict(scale="none", baseline="leave_one_out")),
}


def arrays() -> dict[str, np.ndarray]:
    """Log-probabilities of four completions of one to six tokens under the policy, before and in the reference."""
    rng = np.random.default_rng(0)
    new = -rng.gamma(1.0, 1.0, (ROWS, LENGTH))
    lengths = np.array([6, 3, 1, 4])
    return {
        "logprobs": new,
        "old": new + rng.normal(0, 0.3, new.shape),
        "reference": new + rng.normal(0, 0.5, new.shape),
        "weights": rng.uniform(0.5, 1.5, new.shape),
        "mask": (np.arange(LENGTH) < lengths[:, None]).astype(float),
        "advantages": np.array([1.2, -0.7, 0.4, -0.9]),
    }


def trainer(name: str, folder: str, options: dict[str, Any], rewards: Any = None) -> Any:
    """A trainer of a Llama of two layers."""
    import tokenizers
    import transformers
    import trl
    from datasets import Dataset

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *"abcdefgh"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    size = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, vocab_size=len(words))
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size))
    model.save_pretrained(folder)  # its reference is read from there
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    config, kind = (trl.RLOOConfig, trl.RLOOTrainer) if name == "rloo" else (trl.GRPOConfig, trl.GRPOTrainer)
    common = dict(
        bf16=False, use_cpu=True, report_to="none", max_completion_length=MOST, num_generations=4, max_steps=1
    )
    sizes = dict(per_device_train_batch_size=len(REWARDS), gradient_accumulation_steps=1, logging_steps=1)
    return kind(
        model=model,
        reward_funcs=rewards or (lambda completions, **_: [0.0] * len(completions)),
        args=config(output_dir=folder, **common, **sizes, **options),
        train_dataset=Dataset.from_dict({"prompt": list("abcd")}),
        processing_class=tokenizer,
    )


def loss(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """TRL's loss of `arrays`, and its gradient by the log-probabilities."""
    import torch

    given = {key: torch.tensor(array, dtype=torch.float32) for key, array in arrays().items()}
    new = given["logprobs"].requires_grad_()
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(name, folder, options)
        made.model.eval()
        made._get_per_token_logps_and_entropies = lambda *_, **__: (new, torch.zeros_like(new), None)
        ids = torch.ones(ROWS, LENGTH, dtype=torch.long)
        inputs = {
            **dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids"), ids),
            "completion_mask": given["mask"],
            "advantages": given["advantages"],
            "old_per_token_logps": given["old"],
            "old_logps": (given["old"] * given["mask"]).sum(1),
            "ref_per_token_logps": given["reference"],
            "num_items_in_batch": given["mask"].sum(),
        }
        if name == "weighted":  # what vLLM's correction is, without vLLM
            made.use_vllm, made.vllm_importance_sampling_correction = True, True
            inputs |= {"importance_sampling_ratio": given["weights"], "sampling_per_token_logps": given["old"]}
        value = made._compute_loss(made.model, inputs)
    value.backward()
    return {"loss": value.item(), "gradient": new.grad.tolist()}


def advantages(name: str, options: dict[str, Any]) -> list[float]:
    """TRL's advantages of REWARDS, in groups of four, from a step of training."""
    import trl.trainer.grpo_trainer as grpo
    import trl.trainer.rloo_trainer as rloo

    found: list[Any] = []
    for module in (grpo, rloo):
        module.shuffle_sequence_dict = lambda inputs: inputs
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(name, folder, options, lambda completions, **_: REWARDS)
        compute = made._compute_loss
        made._compute_loss = lambda model, inputs: (found.append(inputs["advantages"]), compute(model, inputs))[1]
        made.train()
    return found[0].tolist()


def main(file: Path) -> None:
    """Record everything in `file`."""
    import trl

    record = {
        "trl": trl.__version__,
        "rewards": REWARDS,
        "max_completion_length": MOST,
        "arrays": {name: array.tolist() for name, array in arrays().items()},
        "losses": {name: {"ours": ours, **loss(name, theirs)} for name, (theirs, ours) in LOSSES.items()},
        "advantages": {
            name: {"ours": ours, "values": advantages(name, theirs)} for name, (theirs, ours) in ADVANTAGES.items()
        },
    }
    file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
