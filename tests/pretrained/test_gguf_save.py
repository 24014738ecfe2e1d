"""GGUF files of ours: read back they are the same model, they have the keys that llama.cpp needs, and what none of its
architectures computes is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Kind

from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig
from lm.model.experts import Experts
from lm.model.families import gemma, gemma2, gemma3, gpt, gpt_oss, llama, mistral, mixtral, palm, qwen3, t5
from lm.model.output import Output
from lm.model.parametrisation import MuP
from lm.model.parts import JointRMSNorm
from lm.model.positions import PartialRotary, Positions
from lm.model.scaling import Dynamic, Linear, Llama3, LongRoPE, YaRN
from lm.model.shared_experts import SharedExperts
from lm.model.transformer import Transformer
from lm.model.wiring import ReorderedNorm, ScaledPreNorm
from lm.pretrained import Pretrained, load
from lm.pretrained.architecture import canonical
from lm.pretrained.gguf import GGUF, layer_types
from lm.pretrained.rows import flatten
from lm.text.tokenizer import Bytes, Characters
from tests.model.reference import SIMPLE, lively, tokens

SIZES: dict[str, Any] = dict(vocab=258, layers=2, width=32, context=48)
HEADS: dict[str, Any] = dict(heads=2, kv_heads=1, head_dim=20, mlp=24)
BIASED = Attention(2, 16, 1, bias=True)
JOINT = Attention(2, 16, 1, qk_norm=JointRMSNorm(1e-5))
QWEN2 = Attention(2, 16, 1, bias=True, out_bias=False)
SHARED = SharedExperts(24, "silu", gated=True, experts=5, top_k=2, renormalize=False, shared=32, shared_gate=True)
NOWHERE = LayerKind(positions=Positions())
MULTIPLIED: dict[str, Any] = dict(embed_scale=12.0, output=Output(scale=0.125), attention=Attention(2, 16, scale=0.06))
LONG = LongRoPE((1.0, 1.1, 1.25, 1.5, 2.0, 3.0), (1.0, 2.0, 4.0, 8.0, 9.0, 9.5), 12, 1.25)
FAMILIES: dict[str, ModelConfig] = {
    "gpt2": gpt(**SIZES, heads=2),
    "gpt2 untied": replace(gpt(**SIZES, heads=2), tied=False),
    "llama": llama(**SIZES, **HEADS),
    "llama tied": llama(**SIZES, **HEADS, tied=True),
    "llama biases": llama(**SIZES, heads=2, mlp=24, attention=BIASED),
    "llama linear": llama(**SIZES, **HEADS, scaling=Linear(4.0)),
    "llama YaRN": llama(**SIZES, **HEADS, scaling=YaRN(4.0, original_context=12)),
    "llama llama3": llama(**SIZES, heads=2, mlp=24, theta=500000.0, scaling=Llama3(8.0)),
    "llama muP": llama(**SIZES, **HEADS, parametrisation=MuP(base_width=16)),
    "qwen2": llama(**SIZES, heads=2, mlp=24, attention=replace(BIASED, out_bias=False)),
    "qwen3": qwen3(**SIZES, **HEADS),
    "gemma": gemma(**SIZES, **HEADS),
    "gemma2": gemma2(**SIZES, **HEADS, window=8),
    "gemma3": gemma3(**SIZES | {"layers": 7}, **HEADS, window=8),
    "gemma3 every other": gemma3(**SIZES | {"layers": 4}, **HEADS, window=8, every=2),
    "mixtral": mixtral(**SIZES, **HEADS, experts=4),
    "qwen3moe": qwen3(**SIZES, **HEADS, ffn=Experts(24, "silu", gated=True, experts=5, top_k=3)),
    "qwen2moe": llama(**SIZES, heads=2, mlp=24, attention=QWEN2, ffn=SHARED),
    "olmo2": llama(**SIZES, mlp=24, heads=2, attention=JOINT, wiring=ReorderedNorm()),
    "smollm3": llama(**SIZES | {"layers": 5}, **HEADS, pattern=(LayerKind(),) * 3 + (NOWHERE,), tied=True),
    "granite": replace(llama(**SIZES, heads=2, mlp=24, wiring=ScaledPreNorm(0.25)), **MULTIPLIED),
    "phi3": llama(**SIZES, heads=2, mlp=24, positions=PartialRotary(1e4, fraction=0.5)),
    "phi3 LongRoPE": llama(**SIZES, heads=2, mlp=24, positions=PartialRotary(1e4, LONG, fraction=0.75)),
    "gpt-oss": gpt_oss(**SIZES | {"context": 4096 * 32}, **HEADS, experts=4, top_k=2, window=8),
}
TYPES = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}


def model(cfg: ModelConfig, **more: Any) -> Pretrained:
    return Pretrained(cfg, lively(cfg), Bytes().make([]), Transformer(cfg, SIMPLE), **more)


@pytest.mark.parametrize("name", FAMILIES)
def test_read_back_it_is_the_same_model(name: str, tmp_path: Path) -> None:
    cfg, params = FAMILIES[name], flatten(lively(FAMILIES[name]))
    model(cfg).save_gguf(tmp_path / "x.gguf")
    again = load(tmp_path / "x.gguf")
    assert canonical(again.config) == canonical(cfg.scaled) and again.config.context == cfg.context
    found = flatten(again.params)
    assert set(found) == set(params)
    for path, values in params.items():
        stored = 1 if name.startswith("gemma") and path.endswith("_scale") else 0  # and so used: the bits are the same
        ours, theirs = (np.asarray(x) + np.float32(stored) for x in (found[path], values))
        np.testing.assert_array_equal(ours, theirs, path)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "llama muP"])
def test_out_and_back_it_is_the_same_file(name: str, tmp_path: Path) -> None:
    """Through a model directory too."""
    model(FAMILIES[name]).save_gguf(tmp_path / "x.gguf")
    load(tmp_path / "x.gguf").save(tmp_path / "directory")
    load(tmp_path / "directory").save_gguf(tmp_path / "y.gguf")
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


@pytest.mark.parametrize("name", ["llama muP", "gemma"])
def test_read_back_it_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    cfg = FAMILIES[name]
    model(cfg).save_gguf(tmp_path / "x.gguf")
    again, ids = load(tmp_path / "x.gguf"), tokens(cfg, 1, 12)
    ours = jax.jit(Transformer(cfg.scaled, SIMPLE).__call__)(lively(cfg), ids)
    np.testing.assert_array_equal(jax.jit(Transformer(again.config, SIMPLE).__call__)(again.params, ids), ours)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("name", ["gpt2", "llama llama3", "qwen2", "gemma2"])
def test_matrices_are_rounded_to_the_type_and_vectors_are_not(name: str, type: str, tmp_path: Path) -> None:
    """As the gguf package rounds, and as it reads the file."""
    whole = model(FAMILIES[name])
    whole.save_gguf(tmp_path / "whole.gguf")
    left = whole.save_gguf(tmp_path / "x.gguf", type)
    exact, found = GGUF(tmp_path / "whole.gguf"), GGUF(tmp_path / "x.gguf")
    theirs = {t.name: t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert list(found) == list(theirs) == list(exact)
    for tensor in exact:
        values, kind = exact.read(tensor), theirs[tensor].tensor_type
        kept = values.ndim == 1 or tensor == "position_embd.weight"
        assert kind == (Kind.F32 if kept else Kind.F16 if tensor in left else TYPES[type]), tensor
        rounded = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        np.testing.assert_array_equal(np.asarray(found.read(tensor), np.float32), rounded.reshape(values.shape))
        np.testing.assert_array_equal(theirs[tensor].data, gguf.quants.quantize(values, kind))
    odd = [t for t in exact if exact.shape(t)[-1] % 32 and len(exact.shape(t)) == 2]
    assert left == (odd if type == "q8_0" else []) and load(tmp_path / "x.gguf").params


COMMON = {"block_count": 2, "context_length": 48, "embedding_length": 32, "attention.head_count": 2, "vocab_size": 258}
ROTARY = {"attention.key_length": 20, "attention.value_length": 20, "rope.dimension_count": 20}
RMS = {"attention.layer_norm_rms_epsilon": 1e-6, "attention.head_count_kv": 1, "feed_forward_length": 24}


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("gpt2", {**COMMON, "attention.layer_norm_epsilon": 1e-5, "feed_forward_length": 128}),
        ("llama linear", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0, "context_length": 48}),
        ("llama YaRN", {"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 12, "context_length": 48}),
        ("qwen3", {**COMMON, **ROTARY, **RMS, "rope.freq_base": 1e6}),
        ("gemma", {**COMMON, **ROTARY, **RMS, "rope.freq_base": 10000.0}),
        ("gemma2", {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 8}),
        ("gemma3", {"rope.freq_base": 1e6, "rope.freq_base_swa": 10000.0, "attention.sliding_window": 8}),
        ("gemma3 every other", {"attention.sliding_window_pattern": [True, False, True, False]}),
    ],
)
def test_the_keys_that_llama_cpp_needs(name: str, keys: dict[str, Any], tmp_path: Path) -> None:
    model(FAMILIES[name]).save_gguf(tmp_path / "x.gguf", "q8_0")
    found = GGUF(tmp_path / "x.gguf").metadata
    architecture = name.split()[0]
    assert {key: found[f"{architecture}.{key}"] for key in keys} == keys
    about = {"architecture": architecture, "type": "model", "file_type": 7, "quantization_version": 2}
    assert {key: found[f"general.{key}"] for key in about} == about
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert {k: v.contents() for k, v in fields.items() if not k.startswith("GGUF.") and "freq" not in k} == {
        k: pytest.approx(v) if isinstance(v, float) else v for k, v in found.items() if "freq" not in k
    }


def test_the_usual_windows_need_no_key(tmp_path: Path) -> None:
    """Which older versions of llama.cpp do not read."""
    for name in ("gemma2", "gemma3"):
        model(FAMILIES[name]).save_gguf(tmp_path / "x.gguf")
        assert not any("pattern" in key for key in GGUF(tmp_path / "x.gguf").metadata)


def test_a_pattern_of_windows_that_is_a_number() -> None:
    assert [t.startswith("sliding") for t in layer_types(5, 3)] == [True, True, False, True, True]
    with pytest.raises(
        ValueError, match="sliding_window_pattern is 'x': expected a number of layers, or true or false"
    ):
        layer_types(2, "x")


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    replace(model(FAMILIES["llama"]), tokenizer=None).save_gguf(tmp_path / "x.gguf")
    assert GGUF(tmp_path / "x.gguf").metadata["tokenizer.ggml.model"] == "none"
    assert load(tmp_path / "x.gguf").tokenizer is None


def test_the_ends_of_its_files_go_with_it(tmp_path: Path) -> None:
    model(FAMILIES["llama"], ids={"eos_token_id": [257, 7]}).save_gguf(tmp_path / "x.gguf")
    assert load(tmp_path / "x.gguf").stop_ids == (257, 7)


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        (
            mistral(**SIZES, **HEADS, window=8),
            "llama is the nearest, but has layer 0's window=0 where this model has 8",
        ),
        (llama(**SIZES, **HEADS, scaling=Dynamic(2.0, 48)), "llama.cpp has no scaling dynamic"),
        (llama(**SIZES, **HEADS, scaling=Llama3(8.0, original_context=16)), "is no scaling of Llama 3.1"),
        (qwen3(**SIZES, **HEADS, scaling=Llama3(8.0)), "llama.cpp reads no rope_freqs.weight there"),
        (replace(gemma(**SIZES, **HEADS), tied=False), "gemma is the nearest, but has tied=True where this model"),
        (gemma2(**SIZES, **HEADS, softcap=0.0), "gemma2 is the nearest, but has attention.softcap=50.0 where this"),
        (gemma3(**SIZES, **HEADS, query_scale=0.5), "gemma3 is the nearest, but has attention.scale=0.223.* has 0.5"),
        (replace(gpt(**SIZES, heads=2), attention=Attention(2, 16, 1, bias=True)), "has attention.kv_heads=2 where"),
        (gpt(**SIZES, heads=2, bias=False), "gpt2 is the nearest, but has attention.bias=True where this"),
        (palm(**SIZES, heads=2, head_dim=16), "computes what this model does"),
        (
            replace(FAMILIES["qwen3moe"], ffn=Experts(24, "silu", gated=True, renormalize=False)),
            "renormalize=True",
        ),
        (
            mixtral(**SIZES, **HEADS, pattern=(LayerKind(window=8),)),
            "mixtral is the nearest, but has layer 0's win",
        ),
        (replace(FAMILIES["smollm3"], pattern=(LayerKind(), NOWHERE)), "smollm3 is the nearest, but has layer 1's pos"),
        (t5(vocab=258, layers=1, width=32, heads=2, head_dim=16, mlp=24, context=48), "computes what this model does"),
    ],
)
def test_what_no_architecture_computes_is_refused(cfg: ModelConfig, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        model(cfg).save_gguf(tmp_path / "x.gguf")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_context_that_is_read_as_another_is_refused(tmp_path: Path) -> None:
    cfg = llama(**SIZES, **HEADS, scaling=YaRN(4.0, original_context=48))
    with pytest.raises(ValueError, match="llama is the nearest, but has context=192 where this model has 48"):
        model(cfg).save_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize(("type", "value"), [("f16", 70000.0), ("f16", np.nan), ("q8_0", 1e7)])
def test_numbers_beyond_a_type_are_refused_and_the_old_file_stays(type: str, value: float, tmp_path: Path) -> None:
    whole, file = model(FAMILIES["llama"]), tmp_path / "x.gguf"
    whole.save_gguf(file)
    before = file.read_bytes()
    whole.params["layers"]["0"]["down"] = whole.params["layers"]["0"]["down"].at[0, 0, 0].set(value)
    with pytest.raises(ValueError, match=r"x.gguf: tensor blk.0.ffn_down.weight has .*, which .* take bf16"):
        whole.save_gguf(file, type)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    whole.save_gguf(file, "bf16")
    assert GGUF(file).metadata["general.file_type"] == 32


def test_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("mine")
    (tmp_path / "folder.gguf").mkdir()
    for name, says in (("notes", "exists and is no GGUF file"), ("folder", "is a directory: expected a new GGUF file")):
        with pytest.raises(ValueError, match=f"{name}.gguf {says}"):
            model(FAMILIES["llama"]).save_gguf(tmp_path / f"{name}.gguf")
    with pytest.raises(ValueError, match="type 'q4' of a GGUF file: expected one of f32, f16, bf16, q8_0"):
        model(FAMILIES["llama"]).save_gguf(tmp_path / "x.gguf", "q4")


def test_a_tokenizer_that_cannot_be_said_leaves_no_file(tmp_path: Path) -> None:
    whole = replace(model(FAMILIES["llama"]), tokenizer=Characters().make(["é"]))
    with pytest.raises(ValueError, match="no vocabulary of single characters"):
        whole.save_gguf(tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_windows_of_every_kind_are_layers_of_their_own(tmp_path: Path) -> None:
    kinds = (LayerKind(window=8), LayerKind(), LayerKind())
    cfg = replace(gemma2(**SIZES | {"layers": 3}, **HEADS), pattern=kinds)
    model(cfg).save_gguf(tmp_path / "x.gguf")
    assert [slot.window for slot in load(tmp_path / "x.gguf").config.by_layer] == [8, 0, 0]
