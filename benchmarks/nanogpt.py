"""Worker: nanoGPT's own model and optimizer, from a clone of github.com/karpathy/nanoGPT; none of it is kept here."""

import sys
from typing import Any

import torch

from benchmarks.sizes import BETAS, DECAY, LEARNING_RATE, SIZES
from benchmarks.torch_step import trainer
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """The model at settings["size"], from the clone in settings["clone"], as its train.py would make it."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    sys.path.insert(0, settings["clone"])
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    size = SIZES[settings["size"]]
    model = GPT(
        GPTConfig(
            block_size=size.seq,
            vocab_size=size.vocab,
            n_layer=size.layers,
            n_head=size.heads,
            n_embd=size.width,
            dropout=0.0,
            bias=False,
        )
    )
    optimizer = model.configure_optimizers(DECAY, LEARNING_RATE, BETAS, "cpu")
    forward = torch.compile(model) if settings["compiled"] else model
    return trainer(size, model.parameters(), optimizer, lambda tokens, targets: forward(tokens, targets)[1], settings)


if __name__ == "__main__":
    serve(build, ["torch"])
