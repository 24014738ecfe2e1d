"""Rewards, advantages, losses, gradients and metrics of TRL's PPO, recorded for tests/tune/test_trl_ppo.py.

python -m venv trl; trl/bin/pip install trl==1.12.0 torch==2.13.0 pandas
trl/bin/python -m certificates.ppo tests/tune/trl_ppo.json

1.12.0 is the last version that has it. Its trainer takes one step, as it is, on arrays that are made here in place of
what models would give: logits of the policy that has drawn, of the one that learns and of the reference, values and
scores. Gradients are by the logits and values of the one that learns.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROWS, PROMPT, LENGTH, VOCAB = 8, 2, 5, 6
PAD, EOS = 0, 1
LENGTHS = [5, 2, 5, 1, 4, 5, 3, 5]  # of completions that end at different places; in "full" all have 5 tokens
WIDE = dict(temperature=0.7, kl_coef=0.3, cliprange=0.1, cliprange_value=0.15, vf_coef=0.5, gamma=0.9, lam=0.8)
# name -> (whether completions are ragged, TRL's options)
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "full": (False, {}),
    "full, every option": (False, dict(whiten_rewards=True, **WIDE)),
    "ragged": (True, {}),
    "ragged, every option": (True, dict(whiten_rewards=True, **WIDE)),
}
DIGITS = 7


def arrays(ragged: bool) -> dict[str, np.ndarray]:
    """Rows of a prompt and a completion: `tokens`, logits of three policies, values of two critics, and scores."""
    rng = np.random.default_rng(1)
    T = PROMPT + LENGTH
    tokens = rng.integers(2, VOCAB, (ROWS, T))
    old = rng.normal(size=(ROWS, T, VOCAB))
    values = rng.normal(size=(ROWS, T))
    for row, length in enumerate(LENGTHS if ragged else []):
        tokens[row, PROMPT + length - 1] = EOS
    found = {
        "tokens": tokens,
        "old": old,
        "new": old + rng.normal(0, 0.3, old.shape),
        "reference": old + rng.normal(0, 0.5, old.shape),
        "old_values": values,
        "new_values": values + rng.normal(0, 0.3, values.shape),
        "scores": rng.normal(size=ROWS),
    }
    return {name: a if a.dtype == int else a.round(4) for name, a in found.items()}


def trainer(module: Any, folder: str, options: dict[str, Any]) -> Any:
    """A trainer of a Llama of one layer, of which nothing is read."""
    import tokenizers
    import transformers
    from datasets import Dataset

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *"abcd"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config = transformers.LlamaConfig(vocab_size=VOCAB, num_labels=1, pad_token_id=PAD, **sizes)
    policy, reference = (transformers.LlamaForCausalLM(config) for _ in range(2))
    reward, value = (transformers.LlamaForSequenceClassification(config) for _ in range(2))
    common = dict(output_dir=folder, bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no")
    batch = dict(per_device_train_batch_size=ROWS, gradient_accumulation_steps=1, total_episodes=ROWS)
    once = dict(num_ppo_epochs=1, num_sample_generations=0, response_length=LENGTH, stop_token="eos")
    return module.PPOTrainer(
        args=module.PPOConfig(**common, **batch, **once, **options),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": [[2] * PROMPT] * ROWS}),
    )


def step(ragged: bool, options: dict[str, Any]) -> dict[str, Any]:
    """What a step of TRL's trainer makes of `arrays`."""
    import torch
    import trl.experimental.ppo.ppo_trainer as module

    made = arrays(ragged)
    given = {name: torch.tensor(a, dtype=None if a.dtype == int else torch.float32) for name, a in made.items()}
    leaves = [given[name].requires_grad_() for name in ("new", "new_values")]
    whitened: list[dict[str, Any]] = []
    losses: list[float] = []
    metrics: dict[str, float] = {}

    def whiten(values: Any, mask: Any, shift_mean: bool = True, whiten: Any = module.masked_whiten) -> Any:
        found = whiten(values, mask, shift_mean)
        whitened.append({"values": digits(values), "mask": mask.int().tolist(), "whitened": digits(found)})
        return found

    def forward(model: Any, *_: Any) -> Any:
        if model is made_trainer.ref_model:
            return SimpleNamespace(logits=given["reference"].clone())
        return SimpleNamespace(logits=leaves[0] * 1), leaves[1][..., None]

    def reward(model: Any, *_: Any) -> Any:
        return given["old_values"][..., None], given["scores"].clone(), None

    def backward(loss: Any) -> None:
        losses.append(loss.item())
        loss.backward()

    with tempfile.TemporaryDirectory() as folder:
        made_trainer = trainer(module, folder, options)
        old = given["old"][:, PROMPT - 1 : -1] / (made_trainer.args.temperature + 1e-7)  # generate's are divided
        module.batch_generation = lambda *_: (given["tokens"], old)
        module.forward, module.get_reward, module.masked_whiten = forward, reward, whiten
        made_trainer.accelerator.backward, made_trainer.log = backward, metrics.update
        shuffle, np.random.permutation = np.random.permutation, np.arange
        made_trainer.train()
        np.random.permutation = shuffle
    kept = {name: value for name, value in metrics.items() if "/" in name and np.isfinite(value)}
    gradients = [digits(leaf.grad) for leaf in leaves]
    args = {name: getattr(made_trainer.args, name) for name in (*WIDE, "whiten_rewards")}
    return {"options": args, "whitened": whitened, "loss": losses, "gradients": gradients, "metrics": kept}


def digits(tensor: Any) -> Any:
    """Its numbers, rounded to DIGITS places, as lists."""
    return tensor.detach().numpy().astype(float).round(DIGITS).tolist()


def main(file: Path) -> None:
    """Record everything in `file`."""
    import trl
    import trl.experimental.ppo.ppo_trainer as module

    plain, cases = module.masked_whiten, {}
    for name, (ragged, options) in CASES.items():
        module.masked_whiten = plain
        cases[name] = {"ragged": ragged, **step(ragged, options)}
    given = [{n: a.tolist() for n, a in arrays(ragged).items()} for ragged in (False, True)]
    record = {"trl": trl.__version__, "prompt": PROMPT, "eos": EOS, "arrays": given, "cases": cases}
    file.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
