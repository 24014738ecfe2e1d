"""Worker: transformers' MixtralForCausalLM with PyTorch's AdamW, from random weights; nothing is downloaded."""

from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks.sizes import SIZES
from benchmarks.torch_step import of_transformers
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """The model at settings["size"], of whose experts a token takes two, without their losses."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    size = SIZES[settings["size"]]
    config = MixtralConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=size.seq,
        tie_word_embeddings=True,
        use_cache=False,
        num_local_experts=size.experts,
    )
    return of_transformers(MixtralForCausalLM(config), size, settings)


if __name__ == "__main__":
    serve(build, ["torch", "transformers"])
