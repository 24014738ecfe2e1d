"""The newest families, tuned from a checkpoint: whole and by adapters, then sampled, and decoded in fewer bits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.experiment import Experiment
from lm.model.config import ModelConfig, MultiToken
from lm.model.families import deepseek_v2
from lm.model.hybrids import gemma4, gemma4_moe, qwen3_5, qwen3_next
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, load, read_config
from lm.run import course
from lm.text.tokenizer import Bytes, SentencePieceSpec
from lm.tune.lora import LoRA
from lm.tune.start import Start
from lm.tune.trains import All
from tests.model.reference import SIMPLE, lively
from tests.tiny import experiment, lines, of, write_texts

SIZES: dict[str, Any] = dict(vocab=258, width=16, heads=4, mlp=20, context=32)
STATE: dict[str, Any] = dict(kv_heads=2, head_dim=8, key_heads=2, value_heads=4, key_dim=8, value_dim=4, every=2)
LATENT = dict(qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4, kv_lora_rank=8, q_lora_rank=8)
HEADS: dict[str, Any] = dict(kv_heads=2, head_dim=8, full_head_dim=16, window=5, every=2)
FAMILIES: dict[str, ModelConfig] = {
    "Qwen 3.5": qwen3_5(**SIZES, **STATE, layers=2),
    "Qwen3-Next": qwen3_next(**SIZES, **STATE, layers=2, experts=4, top_k=2, shared=8),
    "Gemma 4": gemma4(**SIZES, **HEADS, layers=4, shared=2, shared_mlp=40, per_layer=4),
    "Gemma 4 with experts": gemma4_moe(**SIZES, **HEADS, layers=2, experts=4, top_k=2, expert_mlp=12),
    "DeepSeek-V3": replace(deepseek_v2(**SIZES, **LATENT, layers=2), multi_token=MultiToken()),
}
CASES = [
    ("Qwen3-Next", LoRA(rank=2, where="layers/.*(?<!shared_router)", base="nf4")),  # one wide: no two fit in a byte
    *((name, trains) for name in FAMILIES for trains in (All(), LoRA(rank=2), LoRA(rank=2, base="int8"))),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    given = experiment(write_texts(tmp_path_factory.mktemp("texts")))
    return replace(given, steps=3, eval_every_steps=3, prompts=("the ",), sample_tokens=6, ema=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trains"), CASES, ids=str)
def test_a_checkpoint_is_tuned(name: str, trains: Any, base: Experiment, tmp_path: Path) -> None:
    cfg, there = FAMILIES[name], tmp_path / "published"
    began = Pretrained(cfg, lively(cfg), Bytes().make([]), Transformer(cfg, SIMPLE))
    began.save(there)
    data = replace(base.data, tokenizer=SentencePieceSpec())  # the checkpoint's own is taken
    tuned = replace(base, data=data, model=read_config(there), start=Start(str(there)), trains=trains)
    course.train(tuned, tmp_path / "run")
    losses = of(lines(tmp_path / "run"), "loss")
    assert len(losses) == 3 and np.isfinite(list(losses.values())).all()
    model, first = load(tmp_path / "run"), load(there)
    changed = jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), model.params, first.params))
    assert max(changed) > 1e-4 and (isinstance(trains, LoRA) or min(changed) > 0)
    (sample,) = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert sample["text"].startswith("the ")
    for weights in ("bfloat16", "int8"):
        assert load(tmp_path / "run", weights=weights).generate("the ", 3, temperature=0.0) is not None
