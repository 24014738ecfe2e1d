"""Worker of benchmarks/rl.py: TRL's GRPO with transformers' generate, and PEFT's LoRA."""

import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.rl_job import LEARNING_RATE, PARTS, RANK, prompts, worth
from benchmarks.worker import serve


class Steps(TrainerCallback):
    """Steps of the trainer's own loop, which waits between them, and the seconds of each part of the last ones."""

    def __init__(self, settings: dict[str, Any]):
        torch.set_num_threads(settings["threads"])
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.go, self.done, self.reward, self.begun = threading.Semaphore(0), threading.Semaphore(0), 0.0, 0.0
        self.folder = tempfile.TemporaryDirectory()
        self.trainer = trainer(settings, self.folder.name, self)
        for name, part in (("_generate", "rollout"), ("_calculate_rewards", "reward")):
            setattr(self.trainer, name, self.timed(part, getattr(self.trainer, name)))
        score = self.trainer._get_per_token_logps_and_entropies
        timed = self.timed("score", score)
        self.trainer._get_per_token_logps_and_entropies = lambda *args, **named: (
            score if torch.is_grad_enabled() else timed
        )(*args, **named)
        self.error: list[BaseException] = []
        threading.Thread(target=self._train, daemon=True).start()

    def _train(self) -> None:
        try:
            self.trainer.train()
        except BaseException as error:
            self.error.append(error)
            self.done.release()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            result = call(*args, **named)
            self.parts[part] += time.perf_counter() - begun
            return result

        return timing

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.go.acquire()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.done.release()

    def worth(self, completions: list[str], **_: Any) -> list[float]:
        """The reward function, which remembers its mean."""
        found = [worth(text) for text in completions]
        self.reward = sum(found) / len(found)
        return found

    def __call__(self, steps: int) -> float:
        self.parts.update(dict.fromkeys(self.parts, 0.0))
        begun = time.perf_counter()
        for _ in range(steps):
            self.go.release()
            self.done.acquire()
            if self.error:
                raise self.error[0]
        self.parts["update"] = time.perf_counter() - begun - sum(self.parts[part] for part in PARTS if part != "update")
        return self.reward


def trainer(settings: dict[str, Any], folder: str, steps: Steps) -> GRPOTrainer:
    """A trainer of its defaults but for what is held equal; every completion has all its tokens: it may not end."""
    rows, new = settings["groups"] * settings["group"], settings["new"]
    sizes = dict(per_device_train_batch_size=rows, gradient_accumulation_steps=1, num_generations=settings["group"])
    quiet = dict(report_to="none", logging_strategy="no", save_strategy="no", disable_tqdm=True, use_cpu=True)
    config = GRPOConfig(
        output_dir=folder,
        max_steps=1_000_000,
        max_completion_length=new,
        generation_kwargs={"min_new_tokens": new},
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        loss_type="grpo",
        bf16=settings["dtype"] == "bfloat16",
        gradient_checkpointing=settings["checkpointing"],
        model_init_kwargs={"dtype": "float32"},
        **sizes,
        **quiet,
    )
    return GRPOTrainer(
        model=settings["folder"],
        reward_funcs=steps.worth,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts()}),
        processing_class=AutoTokenizer.from_pretrained(settings["folder"]),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear") if settings["lora"] else None,
        callbacks=[steps],
    )


if __name__ == "__main__":
    serve(Steps, ["torch", "transformers", "peft", "trl"])
