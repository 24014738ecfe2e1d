"""Worker: transformers' LlamaForCausalLM with PyTorch's AdamW, from random weights; nothing is downloaded."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.sizes import SIZES
from benchmarks.torch_step import of_transformers
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """The model at settings["size"]."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    size = SIZES[settings["size"]]
    config = LlamaConfig(
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
    return of_transformers(LlamaForCausalLM(config), size, settings)


if __name__ == "__main__":
    serve(build, ["torch", "transformers"])
