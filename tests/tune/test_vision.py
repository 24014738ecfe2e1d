"""What is trained of a model with vision: its tower, all but its tower, or adapters in it; and what is exported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model.inputs import Inputs
from lm.model.transformer import Transformer
from lm.pretrained import load
from lm.pretrained.files import Safetensors
from lm.pretrained.peft import with_adapter
from lm.pretrained.peft_config import WEIGHTS
from lm.pretrained.peft_save import adapter_of, write_adapter
from lm.pretrained.rows import flatten
from lm.tune.lora import DoRA, LoRA
from lm.tune.paths import by_path
from lm.tune.pretrain import Pretrain
from lm.tune.trains import Freeze, Only
from tests.model.reference import SIMPLE, lively, trees_close
from tests.model.test_vision import IMAGES, MODEL, ROW
from tests.pretrained.test_images import checkpoint
from tests.tune.test_lora import disturbed

TOWER = "vision/layers/.*"
TRAINED = {  # what is trained -> whether the path of a parameter, or of the matrix of a factor, is among it
    "the tower's adapters": (LoRA(rank=2, where=TOWER), lambda path: path.startswith("vision/layers/")),
    "the text's adapters": (LoRA(rank=2, where="(?<!vision/)layers/.*"), lambda path: path.startswith("layers/")),
    "all adapters": (LoRA(rank=2), lambda path: "layers/" in path),
    "queries and the connector": (
        LoRA(rank=2, where="query", full="vision/connector/.*"),
        lambda path: "/query" in path or "/connector/" in path,
    ),
    "magnitudes": (DoRA(rank=2, where=TOWER), lambda path: path.startswith("vision/layers/")),
    "no tower": (Freeze("vision/stem/.*|vision/layers/.*"), lambda path: "vision" not in path or "connector" in path),
    "the connector": (Only("vision/connector/.*"), lambda path: "connector" in path),
}


def inputs() -> Inputs:
    return Inputs(jnp.asarray([ROW]), images=jnp.asarray(IMAGES))


QUICK = ("the tower's adapters", "queries and the connector", "no tower")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in TRAINED])
def test_what_is_frozen_has_no_gradient_and_the_rest_has(name: str) -> None:
    """Nor is it changed by whatever the rest becomes; merged parameters are the model that was trained."""
    trains, is_trained = TRAINED[name]
    model, start = Transformer(MODEL, SIMPLE), lively(MODEL)
    learner = trains.wrap(Pretrain().build(model))
    params, frozen = jax.jit(learner.init)(jax.random.key(0), start)
    assert params and all(map(is_trained, by_path(params)))
    params = disturbed(params)

    @jax.jit
    def run(params: Any) -> Any:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits = model(learner.join(params, frozen["base"]), inputs())
            return (logits**2).sum(), logits

        merged = learner.model_params(params, frozen)
        return jax.grad(loss, has_aux=True)(params), model(merged, inputs()), merged

    (slopes, logits), of_merged, merged = jax.device_get(run(params))
    silent = [p for p, slope in by_path(slopes).items() if not np.abs(slope).max() > 0 and "key_bias" not in p]
    assert not silent  # but for a bias of keys, which adds the same to all of a query's logits
    one, other = by_path(merged), by_path(start)
    moved = [path for path in one if not np.array_equal(one[path], other[path])]
    assert moved and all(map(is_trained, moved))
    np.testing.assert_allclose(of_merged, logits, atol=2e-4)


@pytest.mark.parametrize("case", ["Gemma3 pool 2", "PaliGemma"])
@pytest.mark.parametrize("where", ["layers/.*", "vision/.*/query|vision/.*/up|(?<!vision/)layers/.*/value"])
def test_an_adapter_of_the_tower_is_exported_and_read(case: str, where: str, tmp_path: Path) -> None:
    """By the names that transformers has in memory; those of the published files are read too."""
    own = load(checkpoint(case, tmp_path / "base"))
    lora = LoRA(rank=2, alpha=3.0, where=where)
    learner = lora.wrap(Pretrain().build(own.model))
    params, frozen = jax.jit(learner.init)(jax.random.key(0), own.params)
    params = disturbed(params)
    moving = {path: np.asarray(x) for path, x in flatten(params).items()}
    config, arrays = adapter_of(own.config, lora, moving)
    write_adapter(tmp_path / "adapter", config, arrays)
    names = list(Safetensors.of_file(tmp_path / "adapter" / WEIGHTS))
    at = "base_model.model.model.vision_tower.encoder.layers.1.self_attn.q_proj.lora_A.weight"
    assert at in names and "base_model.model.model.language_model.layers.0.self_attn.v_proj.lora_B.weight" in names
    assert "model.vision_tower.encoder.layers.1.mlp.fc1" in config["target_modules"]
    wanted = jax.jit(learner.model_params)(params, frozen)
    trees_close(with_adapter(own, tmp_path / "adapter").params, wanted, 1e-5)

    for tower, text in (  # of the published files, and of transformers before 5
        ("vision_tower.vision_model.", "language_model.model."),
        ("model.vision_tower.vision_model.", "model.language_model."),
    ):

        def renamed(name: str, tower: str = tower, text: str = text) -> str:
            return name.replace("model.vision_tower.", tower).replace("model.language_model.", text)

        old = {renamed(name): array for name, array in arrays.items()}
        write_adapter(tmp_path / tower, {**config, "target_modules": list(map(renamed, config["target_modules"]))}, old)
        trees_close(with_adapter(own, tmp_path / tower).params, wanted, 1e-5)


def test_what_peft_has_no_form_for_is_refused(tmp_path: Path) -> None:
    own = load(checkpoint("Gemma3 pool 2", tmp_path / "base"))
    lora = LoRA(rank=2, where="vision/connector/projector")
    params, _ = jax.jit(lora.wrap(Pretrain().build(own.model)).init)(jax.random.key(0), own.params)
    moving = {path: np.asarray(x) for path, x in flatten(params).items()}
    with pytest.raises(ValueError, match="PEFT has no form for an adapter of vision/connector/projector"):
        adapter_of(own.config, lora, moving)
    whole = replace(lora, where="query", full="vision/connector/projector")
    params, _ = jax.jit(whole.wrap(Pretrain().build(own.model)).init)(jax.random.key(0), own.params)
    moving = {path: np.asarray(x) for path, x in flatten(params).items()}
    with pytest.raises(ValueError, match="PEFT saves model.multi_modal_projector as a whole"):
        adapter_of(own.config, whole, moving)
