"""Worker of benchmarks/tune.py: transformers' model, PEFT's LoRA and PyTorch's AdamW."""

import contextlib
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.tune_job import BATCHES, BETA, LEARNING_RATE, RANK, batches
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """Float32 parameters; bfloat16 is autocast. With "lora" on all linear layers, without dropout. With
    "dpo" on pairs, the reference being the model without its adapters at every step."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=torch.float32)
    model.config.use_cache = False
    if settings["lora"]:
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))
    model.train()
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=LEARNING_RATE, weight_decay=0.0)
    data = [torch.tensor(rows) for rows in batches(model.config.vocab_size)]
    bf16, taken = settings["dtype"] == "bfloat16", 0

    def train(steps: int) -> float:
        nonlocal taken
        for _ in range(steps):
            ids = data[taken % BATCHES]
            taken += 1
            with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
                loss = preference(model, ids) if settings["dpo"] else losses(model, ids).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return train


def losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of each token but the first, [B, T - 1]."""
    logits = model(input_ids=ids[:, :-1]).logits.float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def preference(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """DPO's loss (2305.18290) of rows that are chosen and rejected in turn."""
    with torch.no_grad(), model.disable_adapter():
        reference = losses(model, ids).sum(1)
    ratios = reference - losses(model, ids).sum(1)
    return -torch.nn.functional.logsigmoid(BETA * (ratios[0::2] - ratios[1::2])).mean()


if __name__ == "__main__":
    serve(build, ["torch", "transformers", "peft"])
