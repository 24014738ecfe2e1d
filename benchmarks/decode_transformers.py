"""Worker of benchmarks/decode.py: transformers in PyTorch, float32, with the cache that `generate` takes by default."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.decode_jobs import JOBS, NEW, prompts
from benchmarks.worker import Train, serve


def build(settings: dict[str, Any]) -> Train:
    """Load the directory; greedy, and no id ends a text."""
    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(settings["file"], dtype=torch.float32).eval()

    @torch.no_grad()
    def run(number: int) -> float:
        job = JOBS[number]
        if job == "nothing":
            return 0.0
        ids = torch.tensor(prompts(job, model.config.vocab_size))
        fixed = dict(min_new_tokens=NEW[job], max_new_tokens=NEW[job], do_sample=False, pad_token_id=0)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **fixed)
        return float(out[:, ids.shape[1] :].numel())

    return run


if __name__ == "__main__":
    serve(build, ["torch", "transformers"])
