"""Worker of benchmarks/tune.py: transformers' model, PEFT's LoRA and PyTorch's AdamW."""

import contextlib
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.tune_job import BATCHES, LEARNING_RATE, RANK, batches
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """Float32 parameters; bfloat16 is autocast. With "lora" on all linear layers, without dropout."""
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
                logits = model(input_ids=ids[:, :-1]).logits
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return train


if __name__ == "__main__":
    serve(build, ["torch", "transformers", "peft"])
