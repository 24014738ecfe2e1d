"""Worker: transformers' LlamaForCausalLM with PyTorch's AdamW, from random weights; nothing is downloaded."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.sizes import BETAS, DECAY, LEARNING_RATE, SIZES
from benchmarks.torch_step import trainer
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """The model at settings["size"]; it shifts the labels itself, so tokens are their own."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    size = SIZES[settings["size"]]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocab,
            hidden_size=size.width,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=size.seq,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=BETAS,
    )
    forward = torch.compile(model) if settings["compiled"] else model
    return trainer(
        size, model.parameters(), optimizer, lambda tokens, _: forward(input_ids=tokens, labels=tokens).loss, settings
    )


if __name__ == "__main__":
    serve(build, ["torch", "transformers"])
