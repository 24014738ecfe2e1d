"""Worker: transformers' LlamaForCausalLM with PyTorch's AdamW, from random weights; nothing is downloaded."""

from typing import Any

from transformers import LlamaForCausalLM

from benchmarks.torch_step import of_transformers
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """The model at settings["size"]."""
    return of_transformers(LlamaForCausalLM, settings)


if __name__ == "__main__":
    serve(build, ["torch", "transformers"])
