"""T5Gemma's config.json and tensors: windows of its encoder, tables of embeddings, what is refused."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.model.config import ModelConfig
from lm.model.merged import MergedAttention
from lm.model.output import NoOutput
from lm.pretrained import load
from lm.pretrained.files import Safetensors, TensorToWrite, write
from lm.pretrained.known import architecture_of
from tests.pretrained.small import BY_NAME, checkpoint, recorded

FIRST = "T5GemmaForConditionalGeneration-plain"
SECOND = "T5Gemma2ForConditionalGeneration-even-windows"


def config(name: str, **changes: Any) -> dict[str, Any]:
    """A recorded config.json, with fields of both sides changed."""
    values = copy.deepcopy(recorded()[name]["config"])
    for side in (values["encoder"].get("text_config", values["encoder"]), values["decoder"]):
        side |= changes
    return dict(values)


def read(values: dict[str, Any]) -> ModelConfig:
    architecture = architecture_of(values, Path("file"))
    return architecture.read(architecture.fields(values, "file"))


@pytest.mark.parametrize(
    ("name", "window", "kinds"),
    [(FIRST, 8, (9, 8)), (FIRST, 5, (6, 5)), (SECOND, 8, (4, 4)), (SECOND, 7, (4, 3)), (SECOND, 1, (1, 0))],
)
def test_the_encoder_sees_in_both_directions(name: str, window: int, kinds: tuple[int, int]) -> None:
    """Of T5Gemma as many tokens on each side as the window says; of T5Gemma 2 they are half, one more behind."""
    cfg = read(config(name, sliding_window=window))
    assert cfg.encoder is not None and not cfg.encoder.causal and isinstance(cfg.encoder.output, NoOutput)
    slot = next(slot for slot in cfg.encoder.by_layer if slot.window)
    assert (slot.window, slot.window_after) == kinds
    assert {slot.window for slot in cfg.by_layer} == {0, window}


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_what_is_written_is_read_again(name: str) -> None:
    cfg = read(config(name, sliding_window=6))
    architecture = architecture_of(recorded()[name]["config"], Path("file"))
    assert architecture.can_express(cfg)
    assert isinstance(cfg.attention, MergedAttention) == (name == SECOND)


def test_tables_are_one_two_or_three() -> None:
    """T5Gemma 2's is one, unless its output is its own; T5Gemma's are one a side."""
    first, second = (read(config(name)) for name in (FIRST, SECOND))
    assert (first.tied, first.one_embedding, second.tied, second.one_embedding) == (True, None, True, True)
    apart = read({**config(SECOND), "tie_word_embeddings": False})
    assert (apart.tied, apart.one_embedding) == (False, None)
    architecture = architecture_of(config(SECOND), Path("file"))
    tables = [row.theirs for row in architecture.rows(apart) if "embed_tokens" in row.theirs]
    assert tables == ["model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight"]
    assert len([row for row in architecture.rows(second) if "embed_tokens" in row.theirs]) == 1


def test_an_earlier_file_has_the_text_in_a_module_of_its_own(tmp_path: Path) -> None:
    """And copies of the table; its images are told to be left out."""
    folder = checkpoint(BY_NAME[SECOND], tmp_path)
    wanted = load(folder)
    source = Safetensors(folder)
    renamed = {re.sub(r"encoder\.(layers|norm|embed)", r"encoder.text_model.\1", name): name for name in source}
    renamed["model.decoder.embed_tokens.weight"] = "model.encoder.embed_tokens.weight"
    tensors = {new: np.array(source.read(old)) for new, old in renamed.items()}
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text((folder / "config.json").read_text())
    write(old, [TensorToWrite(n, a.shape, lambda a=a: a) for n, a in tensors.items()], 1 << 40)  # type: ignore[misc]
    with pytest.warns(UserWarning, match="not read, since T5Gemma2ForConditionalGeneration has none: .*vision_tower"):
        found = load(old)
    np.testing.assert_array_equal(found.params["stem"]["tokens"], wanted.params["stem"]["tokens"])
    assert found.config == wanted.config


def test_an_output_begins_with_the_bos_where_nothing_else_is_said(tmp_path: Path) -> None:
    model = load(checkpoint(BY_NAME[FIRST], tmp_path))
    assert model.ids["pad_token_id"] == 0 and model.decoder_start == model.ids["bos_token_id"] == 1
    model.save(tmp_path / "export")
    assert load(tmp_path / "export").decoder_start == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**config(FIRST), "encoder": 3}, "encoder=3 is not supported: expected an object"),
        ({**config(FIRST), "is_encoder_decoder": False}, "is_encoder_decoder=False is not supported"),
        ({**config(SECOND), "encoder": {**config(SECOND)["encoder"], "loud": 1}}, "field loud=1 is not known"),
        (config(SECOND, hidden_act="relu"), "hidden_act='relu' is not supported"),
    ],
)
def test_what_is_not_read_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(values)
