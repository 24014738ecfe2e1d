"""The loss, gradients and metrics of TRL's SFT, recorded for tests/tune/test_sft.py.

python -m venv trl; trl/bin/pip install trl==1.16.0 torch==2.13.0
trl/bin/python -m certificates.sft tests/tune/trl_sft.json

The trainer's own functions make the labels of rows of tokens and their masks, batches of them, packed or padded with
the eos, and the loss, by its fused head, of hidden states that are made here in place of a model's: the gradients are
by these and by the head. Everything is float32, where the trainer's config would turn bfloat16 on.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

LENGTHS, WIDTH, VOCAB, EOS = (9, 4, 7), 6, 11, 1
MASKS = ("assistant_masks", "completion_mask")
# name -> (the mask that the records have, whether they are packed into one row)
CASES: dict[str, tuple[str, bool]] = {
    "every token": ("", False),
    "assistant": ("assistant_masks", False),
    "completion": ("completion_mask", False),
    "assistant, packed": ("assistant_masks", True),
}


def arrays() -> dict[str, np.ndarray]:
    """Rows of tokens that end with the eos, their masks, hidden states of each token, and the head [VOCAB, WIDTH].

    There are two answers in the first row and one in the others, and a completion is what follows three tokens."""
    rng, shape = np.random.default_rng(0), (len(LENGTHS), max(LENGTHS))
    at, end = np.arange(shape[1]), np.array(LENGTHS)[:, None]
    tokens = np.where(at < end - 1, rng.integers(2, VOCAB, shape), EOS) * (at < end)
    tokens[0, 4] = EOS
    assistant = ((at > end - 4) | (at == 3) | (at == 4)) & (at < end)
    return {
        "tokens": tokens,
        "assistant_masks": assistant.astype(int),
        "completion_mask": ((at >= 3) & (at < end)).astype(int),
        "hidden": rng.normal(0, 1, (*shape, WIDTH)).astype(np.float32),
        "head": rng.normal(0, 1, (VOCAB, WIDTH)).astype(np.float32),
    }


def module(states: Any, head: Any) -> Any:
    """A model whose hidden states are `states`, with TRL's fused head."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(logit_scale=None))
            self.base_model = lambda **_: SimpleNamespace(last_hidden_state=states)

        def get_output_embeddings(self) -> Any:
            return SimpleNamespace(weight=head, bias=None)

        def forward(self) -> None:
            raise NotImplementedError

    model = Given()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return model


def recorded(mask: str, packed: bool) -> dict[str, Any]:
    """TRL's labels, its loss, the gradients, and its metrics."""
    import torch
    from datasets import Dataset
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    given = arrays()
    columns = {"input_ids": "tokens", **({mask: mask} if mask else {})}
    each = zip(LENGTHS, *(given[name] for name in columns.values()), strict=True)
    records = [dict(zip(columns, (row[:n].tolist() for row in rows), strict=True)) for n, *rows in each]
    args = dict(dataset_num_proc=None, max_length=max(LENGTHS), truncation_mode="keep_start", shuffle_dataset=False)
    args |= dict(loss_type="nll", average_tokens_across_devices=False)
    trainer = SimpleNamespace(
        args=SimpleNamespace(**args),
        completion_only_loss=mask == "completion_mask",
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        accelerator=SimpleNamespace(parallelism_config=None, gather_for_metrics=lambda x: x, num_processes=1),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    dataset = SFTTrainer._prepare_dataset(trainer, Dataset.from_list(records), None, trainer.args, False, None, "train")
    batch = DataCollatorForLanguageModeling(pad_token_id=EOS, padding_free=packed)(list(dataset))
    hidden, head = (torch.tensor(given[name]).requires_grad_() for name in ("hidden", "head"))
    rows = [row[:n] for n, row in zip(LENGTHS, hidden, strict=True)]
    model = module(torch.cat(rows)[None] if packed else hidden, head)
    loss = SFTTrainer.compute_loss(trainer, model, batch)
    loss.backward()
    metrics = trainer._metrics["train"]
    return {
        "labels": [record["labels"] for record in dataset],
        "loss": loss.item(),
        "by_hidden": hidden.grad.tolist(),
        "by_head": head.grad.tolist(),
        "accuracy": metrics["mean_token_accuracy"][0],
    }


def main(file: Path) -> None:
    """Write the record."""
    import trl

    record = {
        "trl": trl.__version__,
        "lengths": LENGTHS,
        **{name: array.tolist() for name, array in arrays().items()},
        "cases": {
            name: {"mask": mask, "packed": packed, **recorded(mask, packed)} for name, (mask, packed) in CASES.items()
        },
    }
    file.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
