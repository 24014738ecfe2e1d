"""Worker of benchmarks/rl.py: this library's GRPO of a GGUF file, as `lm train` runs it."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rl_job import LEARNING_RATE, PARTS, RANK, WIDTH, prompts, worth
from benchmarks.worker import serve
from lm.tune.reward_functions import Completion, RewardFunction

WHERE = "query|key|value|out|mlp"  # PEFT's all-linear


@dataclass(frozen=True)
class Vowels(RewardFunction):
    """The reward of the job."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[Completion], records: Any) -> list[float | None]:
        return [worth(text) for text in completions]


class Steps:
    """Steps of training, and the seconds of each part of the last ones."""

    def __init__(self, settings: dict[str, Any]):
        from lm.machine import hardware

        hardware.prepare("cpu")
        hardware.use_compilation_cache(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
        hardware.run_steps_in_turn()
        from lm.run import course

        self.folder = tempfile.TemporaryDirectory()
        self.parts = dict.fromkeys((*PARTS, "idle"), 0.0)
        experiment = declared(settings, Path(self.folder.name))
        self.run = course.Run(experiment, course.claim(Path(self.folder.name) / "run", experiment, ""))
        self.state, self.stepper = self.run.initial_state(), course.Stepper(self.run)
        learner = self.run.prepared.learner
        self.batches, self.taken = learner.batches(0), 0
        own: Any = getattr(learner, "learner", learner)  # under adapters
        for name, part in (("sample", "rollout"), ("_reward", "reward"), ("score", "score")):
            setattr(own, name, self.timed(part, getattr(own, name)))
        time_program(self)

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            result = call(*args, **named)
            self.parts[part] += time.perf_counter() - begun
            return result

        return timing

    def __call__(self, steps: int) -> float:
        import jax

        self.parts.update(dict.fromkeys(self.parts, 0.0))
        begun = time.perf_counter()
        for _ in range(steps):
            batch = self.stepper.place(next(self.batches))
            rolled = self.run.rollout(self.taken, self.state, batch)
            self.state, metrics = self.stepper.step(self.state, rolled)
            self.taken += 1
        jax.block_until_ready(self.state)
        apart = sum(self.parts[part] for part in PARTS if part != "update")
        self.parts["update"] = time.perf_counter() - begun - apart
        self.parts["idle"] = self.parts["rollout"] - self.parts["idle"]
        return float(metrics["reward"])


def time_program(steps: Steps) -> None:
    """Add up the seconds in which the program that draws completions is at work."""
    import jax

    from lm.tune import on_policy

    drawn = steps.timed("idle", lambda *args: jax.block_until_ready(complete(*args)))
    complete, on_policy.complete = on_policy.complete, drawn  # type: ignore[assignment]


def declared(settings: dict[str, Any], folder: Path) -> Any:
    """The experiment: every completion has all its tokens, since it may not end."""
    from lm.data.mixture import Data, Mixture
    from lm.data.pack import OnePerRow
    from lm.data.prompts import Prompts
    from lm.data.records import Jsonl
    from lm.decode.sampling import Sampling
    from lm.experiment import Experiment
    from lm.model.compute import Compute
    from lm.pretrained import load
    from lm.train.optim import AdamW
    from lm.train.schedule import Constant
    from lm.tune.grpo import GRPO
    from lm.tune.lora import LoRA
    from lm.tune.start import Start
    from lm.tune.trains import All

    opened = load(settings["file"])
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts()))
    group, new = settings["group"], settings["new"]
    never = tuple((id, float("-inf")) for id in opened.tokenizer.stop_ids)
    return Experiment(
        name="rl",
        start=Start(settings["file"]),
        trains=LoRA(RANK, 2.0 * RANK, where=WHERE) if settings["lora"] else All(),
        model=opened.config,
        method=GRPO(rewards=(Vowels(),), group=group, max_new_tokens=new, sampling=Sampling(logit_bias=never)),
        data=Data(Mixture({"words": Prompts(Jsonl(str(file), heldout=0.1))}, {"words": 1.0}), packing=OnePerRow()),
        optimizer=AdamW(LEARNING_RATE, Constant(), 0.0, 0.0),
        compute=Compute(matmul=settings["dtype"], remat="full" if settings["checkpointing"] else "nothing"),
        seq_len=WIDTH + new,
        batch_tokens=settings["groups"] * group * (WIDTH + new),
        steps=1_000_000,
        prompts=(),
    )


if __name__ == "__main__":
    serve(Steps, ["jax", "jaxlib", "flax", "optax"])
