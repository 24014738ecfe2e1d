"""Modules of multi-token prediction in files: DeepSeek-V3's are read and written under their published names, and are
left out of files that have none."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from certificates.cases import array
from lm.decode.sampling import Sampling
from lm.decode.self_draft import SelfDraft
from lm.model.config import MultiToken
from lm.model.transformer import Transformer
from lm.pretrained import Pretrained, load, read_config
from lm.pretrained.files import Safetensors, TensorToWrite, write
from tests.model.reference import LLAMA, SIMPLE, lively
from tests.pretrained.small import recorded

CASE = "DeepseekV3ForCausalLM-low-rank-queries--one-group--weights-as-they-are--YaRN"
LAYERS, D, V = 3, 32, 96
AT = f"model.layers.{LAYERS}."
OWN = {  # beside those of a layer, as the published model.layers.61 has them
    "enorm.weight": (D,),
    "hnorm.weight": (D,),
    "eh_proj.weight": (D, 2 * D),
    "shared_head.norm.weight": (D,),
    "shared_head.head.weight": (V, D),
    "embed_tokens.weight": (V, D),
}
COPIES = {f"{AT}embed_tokens.weight": "model.embed_tokens.weight", f"{AT}shared_head.head.weight": "lm_head.weight"}


def checkpoint(folder: Path, without: tuple[str, ...] = (), **fields: Any) -> Path:
    """The certificate's model with a module whose layer has the numbers of the last one."""
    known = recorded()[CASE]
    shapes = {name: tuple(shape) for name, shape in known["tensors"].items()}
    last = f"model.layers.{LAYERS - 1}."
    layer = {name.replace(last, AT): name for name in shapes if name.startswith(last)}
    source = {name: name for name in shapes} | layer | COPIES
    shapes |= {name: shapes[of] for name, of in layer.items()} | {AT + name: shape for name, shape in OWN.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**known["config"], **fields}))
    names = [name for name in shapes if not name.startswith(without)] if without else list(shapes)
    write(folder, [TensorToWrite(n, shapes[n], partial(array, source.get(n, n), shapes[n])) for n in names])
    return folder


def test_a_module_is_read_from_the_published_names(tmp_path: Path) -> None:
    model = load(checkpoint(tmp_path))
    assert model.config.multi_token == MultiToken(1)
    own, params = Safetensors(tmp_path), model.params
    module = params["multi_token"]["1"]
    for name, path in (("enorm", "embedding_norm_scale"), ("hnorm", "hidden_norm_scale")):
        np.testing.assert_array_equal(module[path], own.read(f"{AT}{name}.weight"))
    np.testing.assert_array_equal(module["projection"], own.read(f"{AT}eh_proj.weight").T)
    np.testing.assert_array_equal(module["head"]["norm_scale"], own.read(f"{AT}shared_head.norm.weight"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[-1]), module["layers"]["0"], params["layers"]["0"])
    assert "2 that the config or another tensor says" in model.summary  # the copies of embedding and output


def test_out_and_in_again_every_bit_is_the_same(tmp_path: Path) -> None:
    model = load(checkpoint(tmp_path / "given"))
    model.save(tmp_path / "saved")
    files = [Safetensors(tmp_path / name) for name in ("given", "saved")]
    assert set(files[0]) == set(files[1])
    for name in files[0]:
        np.testing.assert_array_equal(files[0].read(name), files[1].read(name))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    again = load(tmp_path / "saved")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_it_drafts_what_the_model_says(tmp_path: Path) -> None:
    model = load(checkpoint(tmp_path))
    plain, drafted = (
        [id for rows in model.stream_ids([[3, 1, 4]], 12, Sampling(0), 0, drafter) for id in rows[0]]
        for drafter in (None, SelfDraft.of(model.model, 2))
    )
    assert plain == drafted and len(plain) == 12


def test_embedding_and_output_may_be_the_module_s_alone(tmp_path: Path) -> None:
    """What is missing is read from its copy."""
    whole, part = load(checkpoint(tmp_path / "whole")), checkpoint(tmp_path / "part", ("lm_head.weight",))
    np.testing.assert_array_equal(load(part).params["head"]["kernel"], whole.params["head"]["kernel"])


def test_a_file_without_the_tensors_has_no_module(tmp_path: Path) -> None:
    """As transformers writes it, whatever the field says; and one that has some lacks the others."""
    assert recorded()[CASE]["config"]["num_nextn_predict_layers"] == 1
    assert read_config(checkpoint(tmp_path / "none", (AT,))).multi_token is None
    assert read_config(checkpoint(tmp_path / "two", num_nextn_predict_layers=1)).multi_token == MultiToken(1)
    with pytest.raises(ValueError, match=rf"tensor {AT}self_attn.o_proj.weight is missing: it is multi_token/1/layers"):
        load(checkpoint(tmp_path / "some", (f"{AT}self_attn.o_proj",)))
    with pytest.raises(ValueError, match=rf"tensor model.layers.{LAYERS + 1}.* is missing"):
        load(checkpoint(tmp_path / "more", num_nextn_predict_layers=2))
    with pytest.raises(ValueError, match="num_nextn_predict_layers=-1: expected an integer of at least 1"):
        load(checkpoint(tmp_path / "less", num_nextn_predict_layers=-1))
    with pytest.raises(ValueError, match=f"{AT}.* is unexpected: DeepseekV3ForCausalLM with this config has none"):
        load(checkpoint(tmp_path / "zero", num_nextn_predict_layers=0))


def test_formats_without_modules_leave_them_out_and_say_so(tmp_path: Path) -> None:
    cfg = replace(LLAMA, multi_token=MultiToken())
    model = Pretrained(cfg, lively(cfg), None, Transformer(cfg, SIMPLE))
    with pytest.warns(UserWarning, match="modules of multi-token prediction are not written: this format has none"):
        model.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.config.multi_token is None
    own = {name: tree for name, tree in model.params.items() if name != "multi_token"}
    jax.tree.map(np.testing.assert_array_equal, again.params, own)
