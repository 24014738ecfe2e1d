"""The plain PyTorch training step around a peer's model: forward, backward, clip, AdamW."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.sizes import BATCHES, BETAS, CLIP, DECAY, LEARNING_RATE, SIZES, Size
from benchmarks.worker import Train


def of_transformers(model_class: Any, settings: dict[str, Any], **more: Any) -> Train:
    """Trains a causal model of transformers at settings["size"], with these fields of its config besides, by AdamW; it
    shifts the labels itself, so tokens are their own."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    size = SIZES[settings["size"]]
    config = model_class.config_class(
        vocab_size=size.vocab,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.seq,
        tie_word_embeddings=True,
        use_cache=False,
        **more,
    )
    model = model_class(config)
    model.train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS)
    forward = torch.compile(model) if settings["compiled"] else model
    loss_of = lambda tokens, _: forward(input_ids=tokens, labels=tokens).loss  # noqa: E731
    return trainer(size, model.parameters(), optimizer, loss_of, settings)


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
