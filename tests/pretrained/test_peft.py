"""Adapters in PEFT's layout: what we write gives the same model again; what PEFT accepts without a word is refused."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lm.model.families import bert, gpt, t5
from lm.model.hybrids import gemma4_moe
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained
from lm.pretrained.files import Safetensors, TensorToWrite, write_file
from lm.pretrained.peft import read_adapter, with_adapter
from lm.pretrained.peft_config import CONFIG, WEIGHTS, read_config
from lm.pretrained.peft_save import adapter_of, write_adapter
from lm.pretrained.rows import flatten
from lm.tune.lora import DoRA, LoRA
from tests.model.reference import LLAMA, MODELS, SIMPLE, lively, trees_close
from tests.tune.test_lora import wrapped

GPT2 = gpt(vocab=31, layers=2, width=12, heads=2, context=16)
T5 = t5(vocab=29, layers=2, width=12, heads=2, mlp=10, head_dim=6, context=24)
GEMMA4 = gemma4_moe(
    **dict(
        vocab=29, layers=3, width=12, heads=2, kv_heads=1, mlp=10, context=24, head_dim=4, full_head_dim=6, window=5
    ),
    **dict(every=2, experts=3, top_k=2, expert_mlp=8),
)
BERT = bert(vocab=29, layers=2, width=12, heads=2, mlp=10, context=24)
AT = "base_model.model.model.layers.0.self_attn.q_proj."


def plain(cfg: Any) -> Pretrained:
    return Pretrained(cfg, lively(cfg), None, Transformer(cfg, SIMPLE))


def written(cfg: Any, lora: LoRA, folder: Path) -> Any:
    """Write what training may leave of `lora`; returns the merged parameters."""
    learner = wrapped(cfg, lora)
    fresh, frozen = jax.jit(learner.init)(jax.random.key(0), lively(cfg))
    rng = np.random.default_rng(7)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), jax.device_get(fresh))
    write_adapter(folder, *adapter_of(cfg, lora, flatten(params), "there"))
    return jax.device_get(jax.jit(learner.model_params)(params, frozen))


CASES: dict[str, tuple[Any, LoRA]] = {
    "llama": (LLAMA, LoRA(rank=2, alpha=3.0, where="query|mlp|stem/tokens", full="head/.*")),
    "rslora, dora": (LLAMA, DoRA(rank=4, where="out|value|kernel", rslora=True)),
    "fused": (GPT2, LoRA(rank=2, where="query|value|mlp")),
    "fused, rslora": (GPT2, LoRA(rank=2, where="query|key|value", rslora=True)),
    "fused, dora": (GPT2, DoRA(rank=2, where="layers/.*")),
    "gemma 2": (MODELS["gemma 2"], LoRA(rank=2)),
    "t5": (T5, DoRA(rank=2)),
    "mixtral": (MODELS["mixtral"], LoRA(rank=2, alpha=3.0, rslora=True)),
    "mixtral, a part": (MODELS["mixtral"], LoRA(rank=2, where="up|router")),
    "gpt-oss": (MODELS["gpt-oss"], LoRA(rank=3, where="mlp|router|value")),
    "gemma 4": (GEMMA4, LoRA(rank=2, alpha=3.0, where="mlp|router|query")),
    "gemma 4, a part": (GEMMA4, LoRA(rank=3, where="up")),
    "bert": (BERT, LoRA(rank=2, where="query|out", full="ffn_norm_.*")),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_read_and_merged(name: str, tmp_path: Path) -> None:
    cfg, lora = CASES[name]
    merged = written(cfg, lora, tmp_path / "adapter")
    again = with_adapter(plain(cfg), tmp_path / "adapter")
    trees_close(again.params, merged, 1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max(), merged, lively(cfg))
    assert max(jax.tree.leaves(moved)) > 0.1


def test_names_shapes_and_config_are_peft_s(tmp_path: Path) -> None:
    written(LLAMA, DoRA(rank=2, alpha=3.0, where="query|stem/tokens", full="head/kernel"), tmp_path)
    source = Safetensors.of_file(tmp_path / WEIGHTS)
    assert {name: source.shape(name) for name in source if "layers.1" not in name and "layers.2" not in name} == {
        f"{AT}lora_A.weight": (2, 16),
        f"{AT}lora_B.weight": (16, 2),
        f"{AT}lora_magnitude_vector": (16,),
        "base_model.model.model.embed_tokens.lora_embedding_A": (2, 41),
        "base_model.model.model.embed_tokens.lora_embedding_B": (16, 2),
        "base_model.model.model.embed_tokens.lora_magnitude_vector": (16,),
        "base_model.model.lm_head.weight": (41, 16),
    }
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["peft_type"] == "LORA" and (config["r"], config["lora_alpha"], config["use_dora"]) == (2, 3, True)
    assert config["modules_to_save"] == ["lm_head"] and config["base_model_name_or_path"] == "there"
    assert config["target_modules"][:2] == ["model.embed_tokens", "model.layers.0.self_attn.q_proj"]


def test_matrices_that_are_one_of_theirs_have_their_ranks_added(tmp_path: Path) -> None:
    written(GPT2, LoRA(rank=2, alpha=3.0, where="query|value|down"), tmp_path)
    source, config = Safetensors.of_file(tmp_path / WEIGHTS), read_config(tmp_path)
    fused = "transformer.h.0.attn.c_attn"
    up = source.read(f"base_model.model.{fused}.lora_B.weight")
    assert source.shape(f"base_model.model.{fused}.lora_A.weight") == (4, 12) and up.shape == (36, 4)
    assert not up[:12, 2:].any() and not up[12:24].any() and not up[24:, :2].any()
    assert (config.rank_of(fused), config.scale_of(fused)) == (4, 1.5)
    assert (config.rank_of("transformer.h.0.mlp.c_proj"), config.scale_of("transformer.h.0.mlp.c_proj")) == (2, 1.5)
    assert json.loads((tmp_path / CONFIG).read_text())["fan_in_fan_out"] is True


def test_experts_have_one_pair_of_factors_a_parameter(tmp_path: Path) -> None:
    """A by expert, B by rank; a gate and an up of twice the rank; the last parameter has the module's name."""
    cfg = MODELS["mixtral"]
    written(cfg, LoRA(rank=2, alpha=3.0, where="mlp"), tmp_path)
    source, config = Safetensors.of_file(tmp_path / WEIGHTS), read_config(tmp_path)
    module, (E, D, F) = "model.layers.0.mlp.experts", (cfg.ffn.experts, cfg.width, cfg.ffn.mlp)
    at = f"base_model.model.{module}"
    assert source.shape(f"{at}.lora_A.weight") == (E * 2, F) and source.shape(f"{at}.lora_B.weight") == (D, E * 2)
    assert source.shape(f"{at}.base_layer.lora_A.weight") == (E * 4, D)
    up = source.read(f"{at}.base_layer.lora_B.weight").reshape(2, F, 4, E)
    assert not up[0, :, 2:].any() and not up[1, :, :2].any() and up[0, :, :2].all() and up[1, :, 2:].all()
    assert config.scale_of(f"{module}.gate_up_proj") == config.scale_of(f"{module}.down_proj") == 1.5
    assert config.rank_of(f"{module}.gate_up_proj") == 4


def test_an_expert_s_own_factors_are_read_too(tmp_path: Path) -> None:
    """As files from before transformers 5 have them."""
    cfg = MODELS["mixtral"]
    at = "base_model.model.model.layers.0.block_sparse_moe.experts.1.w1."
    w1 = np.asarray(lively(cfg)["layers"]["0"]["gate"])
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, w1.shape[2]), (w1.shape[3], 2)))
    arrays = {f"{AT}lora_A.weight": None, f"{AT}lora_B.weight": None}
    own = {f"{at}lora_A.weight": a, f"{at}lora_B.weight": b}
    folder = adapter(tmp_path, dict(target_modules=["w1"]), **arrays, **own)
    change = np.asarray(with_adapter(plain(cfg), folder).params["layers"]["0"]["gate"]) - w1
    np.testing.assert_allclose(change[0, 1], 2 * (b @ a).T, rtol=1e-4, atol=1e-5)
    assert not change[0, 0].any() and not change[1:].any()


@pytest.mark.parametrize(
    ("cfg", "lora", "message"),
    [
        (MODELS["mixtral"], DoRA(rank=2, where="gate"), "PEFT has no DoRA of experts"),
        (replace(LLAMA, tied=True), LoRA(rank=2, where="stem/tokens"), "an embedding that is the output too"),
        (GPT2, DoRA(rank=2, where="query"), "PEFT's DoRA is of all of layers/0/query, layers/0/key, layers/0/value"),
        (GPT2, LoRA(rank=2, where="down", full="query"), "PEFT saves transformer.h.0.attn.c_attn.weight whole, and"),
        (GPT2, LoRA(rank=2, where="down", full="down_bias"), "PEFT saves transformer.h.0.mlp.c_proj as a whole"),
    ],
)
def test_what_peft_has_no_form_for_is_refused(cfg: Any, lora: LoRA, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        written(cfg, lora, tmp_path / "adapter")


def test_a_tied_embedding_s_adapter_leaves_the_output_as_peft_does(tmp_path: Path) -> None:
    untied = replace(LLAMA, tied=False)
    written(untied, LoRA(rank=2, where="stem/tokens"), tmp_path / "adapter")
    cfg = replace(LLAMA, tied=True)
    model = with_adapter(plain(cfg), tmp_path / "adapter")
    table = np.asarray(lively(cfg)["stem"]["tokens"])
    assert not model.config.tied
    np.testing.assert_array_equal(model.params["head"]["kernel"], table.T)
    assert np.abs(np.asarray(model.params["stem"]["tokens"]) - table).max() > 1e-3
    assert model.logits([[1, 2, 3]]).shape == (1, 3, 41)


# ---------------------------------------------------------------- reading


def adapter(folder: Path, config: dict[str, Any] | None = None, **arrays: Any) -> Path:
    """An adapter of q_proj of the first layer, with other fields (...: none) and tensors (None: without it)."""
    rng = np.random.default_rng(0)
    known = {"lora_A.weight": rng.normal(size=(2, 16)), "lora_B.weight": rng.normal(size=(16, 2))}
    tensors = {f"{AT}{name}": x for name, x in known.items()}
    tensors = {n: np.asarray(x, np.float32) for n, x in (tensors | arrays).items() if x is not None}
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS, [TensorToWrite(n, x.shape, partial(np.asarray, x)) for n, x in tensors.items()])
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]} | (config or {})
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))
    return folder


def test_patterns_are_of_ends_and_the_first_that_matches_counts(tmp_path: Path) -> None:
    patterns = {"q_proj": 2, "layers.0.self_attn.q_proj": 3, "proj": 4, ".*_proj": 5}
    config = read_config(adapter(tmp_path, {"rank_pattern": patterns, "alpha_pattern": {"k_proj": 10}}))
    ranks = {name: config.rank_of(f"model.layers.0.self_attn.{name}") for name in ("q_proj", "k_proj", "qproj")}
    assert ranks == {"q_proj": 2, "k_proj": 5, "qproj": 2}
    assert config.scale_of("model.layers.0.self_attn.k_proj") == 2.0 and config.scale_of("q_proj") == 2.0
    stable = replace(config, rslora=True)
    assert stable.scale_of("q_proj") == pytest.approx(4 / math.sqrt(2))


def test_a_plain_adapter_is_merged(tmp_path: Path) -> None:
    folder = adapter(tmp_path, **{"base_model.model.model.norm.weight": np.arange(16.0)})
    a, b = (Safetensors.of_file(folder / WEIGHTS).read(f"{AT}lora_{x}.weight") for x in "AB")
    model = with_adapter(plain(LLAMA), folder)
    query, before = (np.asarray(params["layers"]["0"]["query"]) for params in (model.params, lively(LLAMA)))
    np.testing.assert_allclose(query[0], before[0] + 2.0 * (b @ a).T.reshape(16, 4, 4), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(query[1], before[1])
    np.testing.assert_array_equal(model.params["head"]["norm_scale"], np.arange(16.0))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no rank": (dict(r=...), {}, "r is missing, for which PEFT takes a default"),
    "no alpha": (dict(lora_alpha=...), {}, "lora_alpha is missing"),
    "no targets": (dict(target_modules=...), {}, "target_modules is missing"),
    "lower case": (dict(peft_type="lora"), {}, "peft_type='lora': expected 'LORA'"),
    "another method": (dict(peft_type="IA3"), {}, "peft_type='IA3'"),
    "another rank": (dict(r=4), {}, r"A \[2, 16\] and B \[16, 2\], and adapter_config.json says rank 4"),
    "a rank of zero": (dict(r=0), {}, "r=0: expected a number above 0"),
    "a changed base": (dict(init_lora_weights="pissa"), {}, "init_lora_weights='pissa' changes the base"),
    "an unknown field": (dict(layer_replication=[[0, 2]]), {}, r"layer_replication=\[\[0, 2\]\] is not supported"),
    "a target without factors": (dict(target_modules=["q_proj", "v_proj"]), {}, "has 'v_proj', of which"),
    "part of a name": (dict(target_modules=["proj"]), {}, "has 'proj', of which"),
    "a plain string": (dict(target_modules="q_proj"), {}, "has 'q_proj', of which"),
    "a broken pattern": (dict(rank_pattern={"(": 2}), {}, "which is no regular expression"),
    "an unknown parameter": (dict(target_parameters=["down_proj"]), {}, "target_parameters has 'down_proj', of which"),
    "experts of no parameter": (
        dict(target_parameters=["router.weight"]),
        {"base_model.model.model.layers.0.mlp.experts.lora_A.weight": np.ones((4, 16))},
        "has factors of one parameter of gate_up_proj and down_proj, and target_parameters names neither",
    ),
    "no prefix": ({}, {"model.layers.1.self_attn.q_proj.lora_A.weight": np.ones((2, 16))}, "a name that begins with"),
    "half": ({}, {f"{AT}lora_B.weight": None}, "q_proj has A: expected A, B, with use_dora=False"),
    "no magnitude": (dict(use_dora=True), {}, "q_proj has A, B: expected A, B, magnitude"),
    "a magnitude": ({}, {f"{AT}lora_magnitude_vector": np.ones(16)}, "q_proj has A, B, magnitude: expected A, B"),
    "an embedding's with .weight": ({}, {f"{AT}lora_embedding_A.weight": np.ones((2, 41))}, "is unexpected: .lora_A"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_takes_without_a_word_is_refused(name: str, tmp_path: Path) -> None:
    config, arrays, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        read_adapter(adapter(tmp_path, config, **arrays))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no adapter: expected adapter_config.json"):
        with_adapter(plain(LLAMA), tmp_path)
    with pytest.raises(ValueError, match="the model has no tensor model.layers.0.self_attn.q_proj.weight"):
        with_adapter(plain(GPT2), adapter(tmp_path / "a"))
    wider = replace(LLAMA, width=20)
    with pytest.raises(ValueError, match=r"is of shape \[16, 16\], and \[16, 20\] in this model: is it its base?"):
        with_adapter(plain(wider), adapter(tmp_path / "b"))
