"""Saving: what other tools find in the folder, which is whole or not there; and a run of ours on its way out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from tokenizers.normalizers import NFC

from lm.model.config import LayerKind
from lm.model.families import gpt, llama, t5_v1_1
from lm.model.parametrisation import MuP
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, files, load
from lm.pretrained.architecture import canonical
from lm.pretrained.files import INDEX, SINGLE
from lm.pretrained.sentences import Vectors
from lm.run.folder import claim
from lm.text.export import byte_alphabet
from lm.text.headers import read_safetensors_header
from lm.text.published import GPT2_PATTERN, QWEN2_PATTERN, Published, byte_level_bpe
from lm.text.tokenizer import ByteTokenizer, load_tokenizer
from lm.train.checkpoint import Checkpoints
from lm.train.state import new_state
from tests.model.reference import SIMPLE, lively
from tests.tiny import experiment

SIZES: dict[str, Any] = dict(vocab=258, layers=2, width=16, heads=2, mlp=24, context=48)


LLAMA = llama(**SIZES)


def model(cfg: Any = LLAMA, **more: Any) -> Pretrained:
    return Pretrained(cfg, lively(cfg), ByteTokenizer(), Transformer(cfg, SIMPLE), **more)


def said(folder: Path, file: str = "config.json") -> dict[str, Any]:
    return dict(json.loads((folder / file).read_text()))


def test_what_is_in_the_folder(tmp_path: Path) -> None:
    model().save(tmp_path / "m")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {"config.json", "generation_config.json", SINGLE, "tokenizer.json", "tokenizer_config.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    config = said(tmp_path / "m")
    assert config.items() >= dict(architectures=["LlamaForCausalLM"], model_type="llama", dtype="float32").items()
    assert config.items() >= dict(hidden_size=16, num_hidden_layers=2, tie_word_embeddings=False).items()
    for file in ("config.json", "generation_config.json"):
        assert said(tmp_path / "m", file).items() >= dict(bos_token_id=256, eos_token_id=257).items()


@pytest.mark.parametrize("own", [True, False])
def test_a_tokenizer_that_transformers_takes_for_qwens_is_told_of(
    own: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    vocab = {character: id for id, character in enumerate(byte_alphabet().values())}
    backend = byte_level_bpe(vocab, [], [QWEN2_PATTERN if own else GPT2_PATTERN])
    backend.normalizer = NFC()
    attention: Any = LLAMA.attention
    cfg = replace(LLAMA, attention=replace(attention, bias=True, out_bias=False))
    replace(model(cfg), tokenizer=Published(backend, {})).save(tmp_path / "m")
    assert said(tmp_path / "m")["model_type"] == "qwen2"
    told = [str(one.message) for one in recwarn if "AutoTokenizer" in str(one.message)]
    assert len(told) == (0 if own else 1) and all("every qwen2 model" in one for one in told)


def test_the_ids_of_its_files_go_with_it(tmp_path: Path) -> None:
    model(ids={"eos_token_id": [5, 7], "pad_token_id": 3}).save(tmp_path / "m")
    found = said(tmp_path / "m", "generation_config.json")
    assert found.items() >= dict(eos_token_id=[5, 7, 257], pad_token_id=3, bos_token_id=256).items()
    assert load(tmp_path / "m").stop_ids == (5, 7, 257)


def test_a_decoder_with_an_encoder_knows_how_it_starts(tmp_path: Path) -> None:
    cfg = t5_v1_1(vocab=258, layers=1, width=8, heads=2, head_dim=4, mlp=8, context=32)
    model(cfg, ids={"pad_token_id": 4}).save(tmp_path / "m")
    assert said(tmp_path / "m")["decoder_start_token_id"] == 4
    assert load(tmp_path / "m").generate("ab", 4) == model(cfg, ids={"pad_token_id": 4}).generate("ab", 4)


@pytest.mark.parametrize("most", [1, 6_000, 20_000, 1 << 40])
def test_shards(most: int, tmp_path: Path) -> None:
    model().save(tmp_path / "m", shard_bytes=most)
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    if most == 1 << 40:
        assert [p.name for p in shards] == [SINGLE]
    else:
        index = said(tmp_path / "m", INDEX)
        assert index["metadata"]["total_size"] == sum(4 * leaf.size for leaf in jax.tree.leaves(model().params))
        assert set(index["weight_map"].values()) == {p.name for p in shards}
        assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
        tensors = [read_safetensors_header(p) for p in shards]
        assert all(len(t) == 1 or sum(4 * int(np.prod(s.shape)) for s in t.values()) <= most for t in tensors)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "m").params, model().params)


def test_a_save_that_fails_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model().save(tmp_path / "m")
    before = (tmp_path / "m" / "config.json").read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        model(llama(**{**SIZES, "layers": 1})).save(tmp_path / "m")
    with pytest.raises(OSError, match="No space left"):
        model().save(tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "config.json").read_bytes() == before and load(tmp_path / "m").config.layers == 2


@pytest.mark.parametrize("other", ["notes.md", "pytorch_model.bin"])
def test_what_else_is_there_stays(other: str, tmp_path: Path) -> None:
    model().save(tmp_path)
    (tmp_path / other).write_text("mine")
    with pytest.raises(ValueError, match=f"exists and is no model directory .{other} is in it.: choose a new one"):
        model().save(tmp_path)
    assert (tmp_path / other).read_text() == "mine"


def test_named_templates_go_with_it(tmp_path: Path) -> None:
    """Those of additional_chat_templates/ too, with which a directory is replaced as without."""
    model().save(tmp_path / "m")
    config = said(tmp_path / "m", "tokenizer_config.json") | {"chat_template": "{{ 0 }}"}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    named = tmp_path / "m" / "additional_chat_templates"
    named.mkdir()
    (named / "tool_use.jinja").write_text("{{ 2 }}")
    assert load(tmp_path / "m").tokenizer.chat_template == {"default": "{{ 0 }}", "tool_use": "{{ 2 }}"}
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ 1 }}")
    loaded = load(tmp_path / "m")
    for _ in range(2):
        loaded.save(tmp_path / "out")
    assert load(tmp_path / "out").tokenizer.chat_template == {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    loaded.tokenizer.save(tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path / "tokenizer").chat_template == {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    (tmp_path / "out" / "additional_chat_templates" / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match=r"no model directory .notes.md is in it."):
        loaded.save(tmp_path / "out")


def test_files_of_processors_and_modules_go_with_it(tmp_path: Path) -> None:
    """As they are, into another folder and in place, where a module's weights are no model's."""
    model().save(tmp_path / "m")
    said = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
    paths = [{"type": "sentence_transformers.models.Transformer", "path": ""}, said]
    beside = {
        "modules.json": json.dumps(paths),
        "1_Pooling/config.json": '{"pooling_mode": "lasttoken"}',
        "config_sentence_transformers.json": '{"prompts": {"query": "?"}}',
        "preprocessor_config.json": '{"size": 24}',
        "processor_config.json": "{}",
        "chat_template.json": '{"chat_template": "{{ 0 }}"}',
    }
    (tmp_path / "m" / "1_Pooling").mkdir()
    for name, content in beside.items():
        (tmp_path / "m" / name).write_text(content)
    for folder in (tmp_path / "out", tmp_path / "m"):
        loaded = load(tmp_path / "m")
        loaded.save(folder)
        assert {name: (folder / name).read_text() for name in beside} == beside
        assert load(folder).vectors == loaded.vectors != Vectors() and load(folder).tokenizer.chat_template == "{{ 0 }}"
    paths[1]["path"] = "../elsewhere"
    (tmp_path / "m" / "modules.json").write_text(json.dumps(paths))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"modules.json: a module is in .*elsewhere: expected a folder inside of .*m$"):
        load(tmp_path / "m")


def test_a_model_that_no_architecture_says(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can express this model, so it cannot be exported"):
        model(gpt(vocab=258, layers=1, width=8, heads=2, context=8, bias=False)).save(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_what_was_trained_under_mup_goes_out_as_an_ordinary_model(tmp_path: Path) -> None:
    """Where its multipliers are those of the standard one; a tied output's 1/m is a field of Granite's."""
    cfg = replace(LLAMA, parametrisation=MuP(4))
    Pretrained(cfg, lively(LLAMA), ByteTokenizer(), Transformer(cfg, SIMPLE)).save(tmp_path / "mup")
    model().save(tmp_path / "standard")
    assert said(tmp_path / "mup") == said(tmp_path / "standard")
    assert (tmp_path / "mup" / SINGLE).read_bytes() == (tmp_path / "standard" / SINGLE).read_bytes()
    tied = model(llama(**SIZES, tied=True, parametrisation=MuP(4)))
    tied.save(tmp_path / "tied")
    assert said(tmp_path / "tied").items() >= dict(architectures=["GraniteForCausalLM"], logits_scaling=4.0).items()
    assert canonical(load(tmp_path / "tied").config) == canonical(tied.config.scaled)


def test_layers_have_their_numbers_wherever_they_are_stacked(tmp_path: Path) -> None:
    """First layers, then two that repeat: the same tensors as of five layers in one stack."""
    one = llama(**SIZES | dict(layers=5))
    parts = replace(one, first_layers=(LayerKind(),), pattern=(LayerKind(), LayerKind()))
    params = jax.jit(Transformer(one, SIMPLE).init)(jax.random.key(0))
    assert set(parts.slots) == {"first0", "0", "1"}
    transformer = Transformer(parts, SIMPLE)
    Pretrained(parts, jax.jit(transformer.init)(jax.random.key(0)), ByteTokenizer(), transformer).save(tmp_path / "m")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "m").params, params)


def test_a_run_goes_out(tmp_path: Path) -> None:
    """What a run leaves, without running it."""
    # a run computes as it was trained, in bfloat16 on some CPUs; what it is saved as, in float32
    run, tiny = tmp_path / "run", experiment(tmp_path).replace(compute=dict(matmul="float32"))
    claim(run, tiny, "tests.tiny")
    ByteTokenizer().save(run / "tokenizer")
    params = lively(tiny.model)
    checkpoints = Checkpoints(run / "checkpoints", tiny.keep_last, tiny.keep_best)
    checkpoints.save(new_state(params, optax.sgd(1.0), ema=True))
    checkpoints.close()
    ours = load(run)
    assert ours.config == tiny.model
    ours.save(tmp_path / "out")
    other = load(tmp_path / "out")
    assert other.stop_ids == ours.stop_ids and other.encode("the ") == ours.encode("the ")
    jax.tree.map(np.testing.assert_array_equal, other.params, ours.params)
    np.testing.assert_allclose(other.logits([[1, 2, 3]]), ours.logits([[1, 2, 3]]), rtol=1e-5, atol=1e-5)
