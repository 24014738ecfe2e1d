"""What is damaged, missing, unknown or not supported: one line that names the file, and the tensor or the field."""

import json
import pickle
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certificates.cases import Case, array
from lm.pretrained import load
from lm.pretrained.checkpoint import open_checkpoint
from lm.pretrained.files import INDEX, SINGLE, TensorToWrite, write
from lm.text.tokenizer import ByteTokenizer
from tests.pretrained.small import BERT, BY_NAME, LLAMA, T5, checkpoint, recorded

CASE = BY_NAME[LLAMA]
QUERY = "model.layers.1.self_attn.q_proj.weight"


def cut(folder: Path) -> None:
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_the_header(folder: Path) -> None:
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:60])


def scrambled(folder: Path) -> None:
    file = folder / SINGLE
    data = bytearray(file.read_bytes())
    data[8:40] = b"x" * 32
    file.write_bytes(data)


def header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of the weights, whose values stay."""
    file = folder / SINGLE
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    found = json.loads(data[8 : 8 + length])
    change(found)
    new = json.dumps(found).encode()
    file.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: header(folder, lambda found: found.pop(name))


def reshaped(folder: Path) -> None:
    header(folder, lambda found: found[QUERY].update(shape=found[QUERY]["shape"][::-1]))


def one_more(folder: Path) -> None:
    header(folder, lambda found: found.update({"model.layers.9.extra.weight": found[QUERY]}))


def strange_numbers(folder: Path) -> None:
    header(folder, lambda found: found[QUERY].update(dtype="F8_E5M2"))


def only_a_pickle(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def nothing(folder: Path) -> None:
    (folder / SINGLE).unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, rf"{SINGLE} is cut off: tensor .* ends at byte \d+ of \d+"),
        (cut_in_the_header, rf"{SINGLE} is not a safetensors file, or is cut off"),
        (scrambled, rf"{SINGLE} is damaged: its header"),
        (without(QUERY), f"tensor {QUERY} is missing: it is layers/0/query"),
        (reshaped, rf"{SINGLE}: tensor {QUERY} has shape \[32, 80\]: the config has \[80, 32\]"),
        (one_more, "tensor model.layers.9.extra.weight is unexpected: LlamaForCausalLM with this config has none"),
        (strange_numbers, f"tensor {QUERY} is stored as F8_E5M2: expected one of F64, F32"),
        (only_a_pickle, "pytorch_model.bin is not read, since a pickle can run any program: expected safetensors"),
        (nothing, f"no weights in .*: expected {SINGLE}"),
        (no_config, "config.json is damaged"),
    ],
)
def test_damage(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    folder = checkpoint(CASE, tmp_path)
    damage(folder)
    refused(folder, said)


def refused(path: Path, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


SHAPES = recorded()[CASE.name]["tensors"]


def changed_or_as_is(changed: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`changed` for the last norm, else the tensor as it is in every small checkpoint."""
    return changed if name == "model.norm.weight" else array(name, shape)


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = checkpoint(CASE, tmp_path, shard_bytes=10_000)
    shards = sorted(folder.glob("model-*"))
    shards[1].rename(tmp_path / "away")
    refused(folder, rf"{shards[1].name} is missing: {INDEX} names it as one of {len(shards)} shards")


def test_a_model_beside_another_s_index(tmp_path: Path) -> None:
    """The one that transformers takes, and said."""
    folder = checkpoint(CASE, tmp_path, shard_bytes=10_000)
    one = checkpoint(CASE, tmp_path / "one")
    changed = array("model.norm.weight", (32,)) + 1
    write(one, [TensorToWrite(n, tuple(s), partial(changed_or_as_is, changed, n, tuple(s))) for n, s in SHAPES.items()])
    (one / SINGLE).rename(folder / SINGLE)
    with pytest.warns(UserWarning, match=rf"{SINGLE} is read, as transformers does, and not model-00001-of-.*{INDEX}"):
        model = load(folder)
    np.testing.assert_array_equal(model.params["head"]["norm_scale"], changed)
    for shard in folder.glob("model-*"):
        shard.unlink()
    with pytest.warns(UserWarning, match=rf"{SINGLE} is read"):
        assert load(folder).config == model.config


def test_shards_of_another_save(tmp_path: Path) -> None:
    folder = checkpoint(CASE, tmp_path, shard_bytes=10_000)
    (folder / "model-00001-of-00099.safetensors").write_bytes(next(folder.glob("model-*")).read_bytes())
    with pytest.warns(UserWarning, match=rf"{INDEX} is read, .* and not model-00001-of-00099.safetensors: remove"):
        load(folder)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = checkpoint(CASE, tmp_path, shard_bytes=10_000)
    shards = sorted(folder.glob("model-*"))
    shards[1].write_bytes(shards[0].read_bytes())
    refused(folder, rf"tensor \S+ is in \S*{shards[0].name} and in \S*{shards[1].name}: expected it in one")


@pytest.mark.parametrize("name", ["../away.safetensors", "model.bin"])
def test_an_index_names_files_beside_it(name: str, tmp_path: Path) -> None:
    folder = checkpoint(CASE, tmp_path / "model", shard_bytes=10_000)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][QUERY] = name
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "is not a safetensors file beside the index")


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (LLAMA, dict(architectures=["LamaForCausalLM"]), "unknown architecture 'LamaForCausalLM': did you mean Llama"),
        (LLAMA, dict(hidden_act="mish"), "hidden_act='mish' is not supported: expected"),
        (LLAMA, dict(new_trick=3), "field new_trick=3 is not known to the architecture"),
        (LLAMA, dict(quantization_config={"quant_method": "mxfp4"}), "field quantization_config="),
        (LLAMA, dict(num_key_value_heads=3), "4|heads"),
        (LLAMA, dict(hidden_size="32"), "hidden_size='32': expected an integer"),
        (LLAMA, dict(rope_parameters={"rope_type": "longrope"}), "rope_type='longrope' is not supported: expected"),
        (LLAMA, dict(rope_parameters={"rope_type": "linear"}), "factor is missing"),
        (LLAMA, dict(rope_parameters={"rope_type": "default", "mystery": 2}), "field mystery=2"),
        (BERT, dict(position_embedding_type="relative_key"), "position_embedding_type='relative_key' is not supported"),
        (T5, dict(feed_forward_proj="gated-mish"), "feed_forward_proj='gated-mish' is not supported"),
    ],
)
def test_a_field_that_would_change_the_numbers(name: str, fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(checkpoint(BY_NAME[name], tmp_path, **fields), f"config.json.*({said})")


def test_a_missing_size_is_that_of_its_class(tmp_path: Path) -> None:
    """Which the tensors then contradict."""
    said = r"tensor model.embed_tokens.weight has shape \[96, 32\]: the config has \[96, 4096\]"
    refused(checkpoint(CASE, tmp_path, hidden_size=None), said)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = checkpoint(CASE, tmp_path)
    for name, data in ByteTokenizer().hugging_face_files().items():
        (folder / name).write_bytes(data)
    refused(folder, r"the tokenizer has ids up to 257, but tensor model.embed_tokens.weight has 96 rows")


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.ckpt", "model.pkl"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"a": np.ones(3)}))
    refused(tmp_path / name, f"{name} is not read, since a pickle can run any program: expected safetensors or GGUF")
    with pytest.raises(ValueError, match=f"{name} is not read, since a pickle can run any program"):
        load(tmp_path)  # without a config.json beside it


def test_an_adapter_beside_a_model(tmp_path: Path) -> None:
    folder = checkpoint(CASE, tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, r"adapter_config.json is of an adapter, which is not applied: merge it .* or remove it")


def test_what_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path, "is not a run: it has no experiment.json.* nor a published model")
    refused(tmp_path / "nowhere", "nowhere is not a run: there is no such file or folder; `lm train` makes one$")
    for run in ("quickstart", "other"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "experiment.json").write_text("{}")
    refused(tmp_path / "runs" / "quickstar", "no such file or folder: did you mean .*runs/quickstart[?]$")
    refused(tmp_path / "runs", "it has no experiment.json, which `lm train` makes; runs in it: other, quickstart;")
    with pytest.raises(ValueError, match="gone.gguf: there is no such file or folder"):
        open_checkpoint(tmp_path / "gone.gguf")
    checkpoint(CASE, tmp_path)
    refused(tmp_path / SINGLE, "is the weights alone: give the directory that also holds its config.json")
    assert isinstance(CASE, Case)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    model = load(checkpoint(CASE, tmp_path / "model"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="full exists and is no model directory"):
        model.save(tmp_path / "full")
    with pytest.raises(ValueError, match=r"thesis.txt"):
        model.save(tmp_path / "full" / "thesis.txt")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    model.save(tmp_path / "model")  # a model is replaced
    assert load(tmp_path / "model").config == model.config
