"""Worker: transformers in PyTorch with a published GGUF file."""

import os
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """Load the file in float32 and give the first token of a prompt, then passes over random tokens."""
    torch.set_num_threads(settings["threads"])
    folder, name = os.path.split(os.path.abspath(settings["gguf"]))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    prompt = tokenizer(settings["prompt"], return_tensors="pt")
    with torch.no_grad():
        print(tokenizer.decode(model.generate(**prompt, max_new_tokens=1, do_sample=False)[0]), flush=True)
    ids = torch.randint(model.config.vocab_size, (1, settings["tokens"]), generator=torch.Generator().manual_seed(0))
    first = True

    @torch.no_grad()
    def passes(count: int) -> float:
        nonlocal first
        if first:
            first = False
            return 0.0
        for _ in range(count):
            logits = model(ids).logits
        return float(logits[0, -1, 0])

    return passes


if __name__ == "__main__":
    serve(build, ["torch", "transformers", "gguf"])
