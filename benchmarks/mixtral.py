"""Worker: transformers' MixtralForCausalLM with PyTorch's AdamW, from random weights; nothing is downloaded."""

from typing import Any

from transformers import MixtralForCausalLM

from benchmarks.sizes import SIZES
from benchmarks.torch_step import of_transformers
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """The model at settings["size"], of whose experts a token takes two, without their losses."""
    return of_transformers(MixtralForCausalLM, settings, num_local_experts=SIZES[settings["size"]].experts)


if __name__ == "__main__":
    serve(build, ["torch", "transformers"])
