"""What is loaded of a model whose class has more than ours reads: BERT's two biases and pooler; the text's own ids."""

from pathlib import Path

import numpy as np
import pytest

from lm.pretrained import load
from lm.pretrained.files import SINGLE, Safetensors, TensorToWrite, write
from tests.pretrained.small import BY_NAME, checkpoint, recorded

HALF = BY_NAME["Gemma3ForConditionalGeneration-text-half"]
UNTIED = BY_NAME["BertForMaskedLM-untied"]


def renamed(folder: Path, *pairs: tuple[str, str], without: str = "(none)") -> None:
    """Write the tensors of `folder` with other names, but for those that hold `without`."""
    source = Safetensors(folder)
    tensors = {name: np.array(source.read(name)) for name in source if without not in name}
    (folder / SINGLE).unlink()
    for old, new in pairs:
        tensors = {name.replace(old, new): array for name, array in tensors.items()}
    write(folder, [TensorToWrite(name, array.shape, lambda a=array: a) for name, array in tensors.items()])


def test_the_ids_of_the_text_half_s_config(tmp_path: Path) -> None:
    config = recorded()[HALF.name]["config"]
    text = {**config["text_config"], "eos_token_id": [3, 7]}
    assert load(checkpoint(HALF, tmp_path / "a", text_config=text)).stop_ids == (3, 7)
    assert load(checkpoint(HALF, tmp_path / "b", text_config=text, eos_token_id=5)).stop_ids == (5,)


def test_an_untied_output_has_the_bias_that_transformers_adds(tmp_path: Path) -> None:
    """Which an earlier version saved under the other name alone."""
    source = Safetensors(checkpoint(UNTIED, tmp_path / "a"))
    first, second = (np.array(source.read(f"cls.predictions.{name}")) for name in ("bias", "decoder.bias"))
    assert not np.array_equal(first, second)
    model = load(tmp_path / "a")
    np.testing.assert_array_equal(model.params["head"]["bias"], second)
    renamed(checkpoint(UNTIED, tmp_path / "b"), without="decoder.bias")
    np.testing.assert_array_equal(load(tmp_path / "b").params["head"]["bias"], first)
    model.save(tmp_path / "c")
    written = Safetensors(tmp_path / "c")
    for name in ("bias", "decoder.bias"):
        np.testing.assert_array_equal(written.read(f"cls.predictions.{name}"), second)


def test_a_pooler_is_written_back_where_there_was_one(tmp_path: Path) -> None:
    bare = BY_NAME["BertModel-bare"]
    model = load(checkpoint(bare, tmp_path / "a"))
    assert sorted(model.unused) == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    assert model.summary.startswith("BertModel: ") and model.summary.endswith("computed in float32")
    assert "stored as F32; tensors not read: 2 that no result depends on (kept for export); " in model.summary
    model.save(tmp_path / "b")
    again = load(tmp_path / "b")
    for name, array in model.unused.items():
        np.testing.assert_array_equal(again.unused[name], array)
    renamed(checkpoint(bare, tmp_path / "c"), without="pooler")
    assert not load(tmp_path / "c").unused


def test_heads_of_other_tasks_are_told(tmp_path: Path) -> None:
    """As in the hub's BERT, whose config names the masked LM and whose file has all that was trained."""
    both = BY_NAME["BertForPreTraining-three-token-types--relu"]
    folder = checkpoint(both, tmp_path, architectures=["BertForMaskedLM"])
    said = "not read, since BertForMaskedLM has none: bert.pooler.dense.bias, bert.pooler.dense.weight, cls.seq_relat"
    with pytest.warns(UserWarning, match=said):
        assert not load(folder).unused
    folder = checkpoint(both, tmp_path, architectures=["BertModel"])
    with pytest.warns(UserWarning, match=r"since BertModel has none: cls.predictions.bias, .*cls.seq_relationship"):
        assert len(load(folder).unused) == 2
