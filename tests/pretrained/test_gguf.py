"""GGUF: the header as the gguf package reads it, every kind of numbers as it unpacks them, and a model as from its
safetensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from certificates.cases import array, inputs
from lm.model.families import llama
from lm.model.positions import PartialRotary
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, load
from lm.pretrained.architecture import canonical
from lm.pretrained.gguf import GGUF, fields
from lm.pretrained.gguf_tables import ARCHITECTURES
from tests.model.reference import SIMPLE, lively
from tests.pretrained.small import BY_NAME, checkpoint, recorded

KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q4_K, Kind.Q6_K, Kind.MXFP4]
RNG = np.random.default_rng(0)


def blocks(kind: Kind, rows: int, columns: int) -> np.ndarray:
    """Random numbers as `kind` keeps them: of the k-quants, which the package only unpacks, random bits with small
    scales."""
    values = RNG.standard_normal((rows, columns)).astype(np.float32)
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        block, size = GGML_QUANT_SIZES[kind]
        raw = RNG.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
        scales = np.float16(RNG.random((rows, columns // block, 2))).view(np.uint8)
        where = slice(0, 4) if kind is Kind.Q4_K else slice(208, 210)
        raw[..., where] = scales[..., : where.stop - where.start]
        return raw.reshape(rows, -1)


def written(path: Path, fill: Callable[[gguf.GGUFWriter], Any], architecture: str = "llama") -> Path:
    """A GGUF file that `fill` puts things in."""
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_numbers(kind: Kind, tmp_path: Path) -> None:
    data = blocks(kind, 6, 512)

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("first", np.ones((3, 2), np.float32))
        writer.add_tensor("second", data, raw_dtype=kind)

    found = GGUF(written(tmp_path / "x.gguf", fill))
    assert list(found) == ["first", "second"] and found.shape("second") == (6, 512)
    np.testing.assert_array_equal(found.read("first"), np.ones((3, 2)))
    given = np.asarray(found.read("second"), np.float32)
    np.testing.assert_array_equal(given, gguf.quants.dequantize(data, kind).reshape(6, 512))
    assert np.isfinite(given).all() and given.std() > 0


VALUES = st.one_of(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.text(min_size=1, max_size=20),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
    st.lists(st.text(max_size=5), min_size=1, max_size=5),
)


@settings(max_examples=40, deadline=None)
@given(values=st.dictionaries(st.from_regex(r"[a-z_.]{1,12}", fullmatch=True), VALUES, max_size=5))
def test_the_metadata_are_read_as_the_package_reads_them(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"

    def fill(writer: gguf.GGUFWriter) -> None:
        for key, value in values.items():
            {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}[
                type(value)
            ](f"own.{key}", value)
        writer.add_tensor("t", np.zeros(4, np.float32))

    written(path, fill)
    found = GGUF(path).metadata
    theirs = {k: v.contents() for k, v in gguf.GGUFReader(path).fields.items() if not k.startswith("GGUF.")}
    assert found == theirs and {k: found[f"own.{k}"] for k in values} == values


# ---------------------------------------------------------------- a model

LLAMA = BY_NAME["LlamaForCausalLM-as-many-kv-heads"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def llama_file(path: Path, **more: Any) -> Path:
    """The certificates' Llama as llama.cpp's converter writes it: rotary pairs side by side in queries and keys."""
    config = recorded()[LLAMA.name]["config"]

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(10000.0)
        for key, value in more.items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(key if key.startswith("split.") else f"llama.{key}", value)
        for name, shape in recorded()[LLAMA.name]["tensors"].items():
            values = array(name, tuple(shape))
            if "q_proj" in name or "k_proj" in name:
                N, shape = config["num_attention_heads"], values.shape
                values = values.reshape(N, 2, shape[0] // N // 2, -1).swapaxes(1, 2).reshape(shape)
            for theirs, short in NAMES.items():
                name = name.replace(theirs, short)
            writer.add_tensor(name, np.ascontiguousarray(values))

    return written(path, fill)


def test_a_model_is_that_of_its_safetensors(tmp_path: Path) -> None:
    model, other = load(llama_file(tmp_path / "x.gguf")), load(checkpoint(LLAMA, tmp_path / "hf"))
    assert model.config == other.config and model.tokenizer is None
    given = inputs(LLAMA)
    np.testing.assert_array_equal(model.logits(**given), other.logits(**given))
    model.save(tmp_path / "out")
    assert load(tmp_path / "out").config == model.config


@pytest.mark.parametrize("size", [3, 40, 400, -100])
def test_a_file_that_is_cut_off(size: int, tmp_path: Path) -> None:
    path = llama_file(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        ValueError, match=r"x.gguf(: tensor .*)? (is cut off|is not a GGUF file|ends at .*: the file is cut off)"
    ):
        load(path)


def test_a_window_of_0_is_none_and_gpt_oss_s_names_are_llama_cpp_s(tmp_path: Path) -> None:
    """As the converter writes Phi-3 without a window; and gpt-oss's norm before the feed-forward."""
    cfg = llama(vocab=96, layers=1, width=32, heads=2, mlp=24, context=48, positions=PartialRotary(fraction=0.5))
    Pretrained(cfg, lively(cfg), None, Transformer(cfg, SIMPLE)).save_gguf(tmp_path / "x.gguf")
    file = GGUF(tmp_path / "x.gguf")
    file.metadata["phi3.attention.sliding_window"] = 0
    kind, said = fields(file)
    assert canonical(kind.architecture.read(said)) == canonical(cfg)
    names = {row.theirs for row in ARCHITECTURES["gpt-oss"].rows}
    assert "blk.{i}.post_attention_norm.weight" in names and "blk.{i}.ffn_norm.weight" not in names


def test_what_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x.gguf: trick=3 is not supported: it could change the results"):
        load(llama_file(tmp_path / "x.gguf", trick=3))
    path = written(tmp_path / "y.gguf", lambda w: w.add_tensor("t", np.zeros(4, np.float32)), "mamba")
    with pytest.raises(ValueError, match=r"y.gguf: unknown architecture 'mamba': known: gpt2, llama"):
        load(path)


def test_a_part_of_a_split_file(tmp_path: Path) -> None:
    path = llama_file(tmp_path / "x-00002-of-00003.gguf", **{"split.no": 1, "split.count": 3})
    said = r"x-00002-of-00003.gguf is part 2 of 3 of a split GGUF file: .*--merge \S*/x-00001-of-00003.gguf whole.gguf"
    with pytest.raises(ValueError, match=said):
        load(path)
    assert load(llama_file(tmp_path / "one.gguf", **{"split.count": 1})).config


@pytest.mark.parametrize(
    ("keys", "context"),
    [
        ({"type": "yarn", "factor": 4.0, "original_context_length": 64}, 256),
        ({"type": "yarn", "factor": 4.0, "original_context_length": 16}, 64),
        ({"type": "linear", "factor": 4.0}, 256),
        ({"type": "linear", "factor": 4.0, "original_context_length": 16}, 64),
        ({"type": "none"}, 64),
    ],
)
def test_a_scaling_makes_the_context_longer(keys: dict[str, Any], context: int, tmp_path: Path) -> None:
    model = load(llama_file(tmp_path / "x.gguf", **{f"rope.scaling.{key}": value for key, value in keys.items()}))
    assert model.config.context == context
    model.save(tmp_path / "out")
    assert load(tmp_path / "out").config.context == context


def test_a_scaling_by_its_old_name(tmp_path: Path) -> None:
    old = load(llama_file(tmp_path / "old.gguf", **{"rope.scale_linear": 4.0})).config
    new = load(llama_file(tmp_path / "new.gguf", **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})).config
    assert old == new


@pytest.mark.parametrize("key", ["block_count", "context_length", "attention.layer_norm_rms_epsilon"])
def test_what_llama_cpp_has_no_default_for(key: str, tmp_path: Path) -> None:
    """A missing size isn't that of transformers' class."""
    path = llama_file(tmp_path / "x.gguf")
    file = GGUF(path)
    del file.metadata[f"llama.{key}"]
    with pytest.raises(ValueError, match=r"x.gguf \(as config.json\): field \w+ is missing"):
        fields(file)


def test_defaults_are_llama_cpp_s(tmp_path: Path) -> None:
    file = GGUF(llama_file(tmp_path / "x.gguf"))
    whole = load(tmp_path / "x.gguf").config
    for key in ("rope.freq_base", "attention.head_count_kv"):
        del file.metadata[f"llama.{key}"]
    kind, said = fields(file)
    assert kind.architecture.read(said) == whole
