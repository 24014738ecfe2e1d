"""The plain PyTorch training step around a peer's model: forward, backward, clip, AdamW."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.sizes import BATCHES, CLIP, Size
from benchmarks.worker import Train


def trainer(
    size: Size,
    parameters: Any,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Any, Any], Any],
    settings: dict[str, Any],
) -> Train:
    """Trains `parameters` by loss_of(tokens, targets) on BATCHES batches in turn; bfloat16 is autocast."""
    data = torch.randint(size.vocab, (BATCHES, size.batch, size.seq + 1), generator=torch.Generator().manual_seed(0))
    batches = [(d[:, :-1].contiguous(), d[:, 1:].contiguous()) for d in data]
    bf16 = settings["dtype"] == "bfloat16"
    parameters = list(parameters)
    taken = 0

    def train(steps: int) -> float:
        nonlocal taken
        for _ in range(steps):
            tokens, targets = batches[taken % BATCHES]
            taken += 1
            with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
                loss = loss_of(tokens, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return train
