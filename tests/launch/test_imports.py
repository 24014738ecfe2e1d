"""What a command imports: only what it uses, since each import is time before the first line of output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JAX = ("jax", "flax", "optax", "orbax", "tensorstore")
TOKENIZERS = ("tokenizers", "tiktoken", "sentencepiece", "jinja2")
DATA = ("pyarrow", "tensorflow_datasets", "array_record")
# used by one part of the library each: charts, GGUF's quantised blocks, TensorBoard, statistics, searches, buckets, GKE
PARTS = ("matplotlib", "gguf", "tensorboardX", "scipy.stats", "scipy.optimize", "optuna", "fsspec")
EXPERIMENT = (*DATA, *PARTS, "orbax", "tensorstore")


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has imported after `code`."""
    code = f"import sys, json\n{code}\nprint()\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("command", "forbidden"),
    [
        (["--help"], (*JAX, *TOKENIZERS, *DATA, *PARTS, "numpy", "yaml")),
        (["train", "--help"], (*JAX, *TOKENIZERS, *DATA, *PARTS, "numpy", "yaml")),
        (["launch", "gke", "--help"], (*JAX, *TOKENIZERS, *DATA, *PARTS, "numpy", "yaml")),
        (["show", "experiments.quickstart"], (*EXPERIMENT, "sentencepiece", "tiktoken")),
        (["serve", "--help"], (*JAX, *TOKENIZERS, *DATA, *PARTS, "numpy", "yaml", "starlette", "uvicorn")),
        (["study", "--help"], (*JAX, *TOKENIZERS, *DATA, *PARTS, "numpy", "yaml")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_verb(command: list[str], forbidden: tuple[str, ...]) -> None:
    modules = modules_after(f"from launch.__main__ import main\nassert main({command!r}) == 0")
    assert not modules & set(forbidden)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("lm.value", (*JAX, *TOKENIZERS, *DATA, *PARTS, "numpy", "rich")),
        ("lm.text.tokenizer", (*JAX, *DATA, *PARTS)),
        ("lm.data.loader", (*JAX, *DATA, *PARTS)),
        (
            "lm.model.transformer",
            (*TOKENIZERS, *DATA, *PARTS, "optax", "orbax", "tensorstore", "jax.experimental.pallas"),
        ),
        ("lm.page.run_report", (*JAX, *TOKENIZERS, *DATA, *PARTS)),
        ("lm.pretrained", EXPERIMENT),
        ("lm.study.report", EXPERIMENT),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_module(module: str, forbidden: tuple[str, ...]) -> None:
    assert not modules_after(f"import {module}") & set(forbidden)


def test_to_declare_an_experiment_starts_no_device() -> None:
    """Whose number may be part of it, and which several processes start together."""
    lines = (
        "from experiments.tune.dpo import experiment",
        "from lm.tune.lora import LoRA",
        "experiment.replace(trains=LoRA())",
        "import jax",
        "jax.config.update('jax_num_cpu_devices', 3)",  # refused once they have started
    )
    modules_after("\n".join(lines))
