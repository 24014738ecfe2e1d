"""Models with a vision tower: what transformers gave for images, files of other versions, prompts with images."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from certificates.cases import array
from certificates.vision import BEGIN, END, IMAGE, RECORDED, batch, sizes
from lm.decode.sampling import Sampling
from lm.model.count import parameters
from lm.model.families import gemma3, gemma3_vision
from lm.model.scaling import Linear
from lm.pretrained import Pretrained, load
from lm.pretrained.files import SINGLE, Safetensors, TensorToWrite, write
from lm.pretrained.gemma import GEMMA3_WITH_VISION
from lm.text.tokenizer import ByteTokenizer
from lm.tune.vision import image_tokens

CASES = ("Gemma3 pool 2", "PaliGemma")


def recorded(name: str) -> dict[str, Any]:
    return dict(json.loads(RECORDED.read_text())[name])


def checkpoint(name: str, folder: Path, *renamed: tuple[str, str], without: str = "(none)") -> Path:
    """The model directory of a case, its tensors' names changed."""
    known = recorded(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(known["config"]))
    tensors = []
    for own, shape in known["tensors"].items():
        other = own
        for old, new in renamed:
            other = other.replace(old, new)
        if without not in own:
            tensors.append(TensorToWrite(other, tuple(shape), partial(array, own, tuple(shape))))
    write(folder, tensors, 1 << 40)
    return folder


@pytest.fixture(scope="module", params=CASES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Pretrained]:
    return request.param, load(checkpoint(request.param, tmp_path_factory.mktemp("seeing") / "model"))


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, rows))
    ids = np.array([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def stacked(images: list[list[np.ndarray]], size: int) -> np.ndarray:
    """[B, M, size, size, 3]: rows with fewer end in black."""
    out = np.zeros((len(images), max(map(len, images)), size, size, 3), np.uint8)
    for row, each in zip(out, images, strict=True):
        row[: len(each)] = each if each else row[:0]
    return out


def test_logits_are_transformers_s(loaded: tuple[str, Pretrained]) -> None:
    """Rows with no, one and two images, and two that touch, in one batch; windows are shorter than an image."""
    name, model = loaded
    (rows, images), known, size = batch(name), recorded(name), sizes(name)[0]
    ids, mask = padded(rows)
    found = np.asarray(model.logits(ids, mask, images=stacked(images, size)))
    for row, logits, wanted in zip(rows, found, known["logits"], strict=True):
        here = logits[: len(row)][-4:, 3::11]
        np.testing.assert_allclose(here, wanted, atol=3e-5 * known["std"])


def test_greedy_continuations_are_transformers_s(loaded: tuple[str, Pretrained]) -> None:
    name, model = loaded
    (rows, images), known, size = batch(name), recorded(name), sizes(name)[0]
    for i in range(len(rows)):
        if images[i]:
            seen = stacked([images[i]], size)
            chunks = model.stream_ids([rows[i]], len(known["greedy"][i]), Sampling(0), images=seen)
            assert [id for chunk in chunks for id in chunk[0]] == known["greedy"][i]


def test_text_alone_is_the_text_model_bit_for_bit(loaded: tuple[str, Pretrained]) -> None:
    from dataclasses import replace

    _, model = loaded
    blind = replace(model.model, cfg=replace(model.config, vision=None))
    ids = np.array([[1, 5, 9, 33, 7, 12, 54, 8]])
    params = {name: tree for name, tree in model.params.items() if name != "vision"}
    wanted = jax.jit(blind.__call__)(params, ids)
    np.testing.assert_array_equal(jax.jit(model.model.__call__)(model.params, ids), wanted)


def test_out_and_back_keeps_bits_and_config(loaded: tuple[str, Pretrained], tmp_path: Path) -> None:
    name, model = loaded
    model.save(tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.config == model.config and again.prefix == model.prefix == (name == "PaliGemma")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    names = list(Safetensors(tmp_path / "out"))
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in names  # as the published files have them
    assert "language_model.model.embed_tokens.weight" in names


@pytest.mark.parametrize(
    "pairs",
    [
        [("model.vision_tower.", "vision_tower."), ("model.language_model.", "language_model.model.")],
        [("vision_tower.vision_model.", "vision_tower."), ("language_model.model.", "model.language_model.")],
    ],
)
def test_the_names_of_other_versions(pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    model = load(checkpoint(CASES[0], tmp_path / "one"))
    other = load(checkpoint(CASES[0], tmp_path / "other", *pairs))
    jax.tree.map(np.testing.assert_array_equal, other.params, model.params)


def test_a_file_of_the_text_alone_is_told(tmp_path: Path) -> None:
    folder = checkpoint(CASES[0], tmp_path / "text", without="vision_tower")
    source = Safetensors(folder)
    tensors = {name: np.array(source.read(name)) for name in source if "multi_modal" not in name}
    (folder / SINGLE).unlink()
    write(folder, [TensorToWrite(n, a.shape, lambda a=a: a) for n, a in tensors.items()])
    with pytest.warns(UserWarning, match="no tensors of the vision tower: the text model alone is read"):
        model = load(folder)
    assert model.config.vision is None
    model.save(tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.architecture is not None and again.architecture.name == "Gemma3ForCausalLM"


def test_gemma_3_4b_of_the_hub() -> None:
    """Whose config leaves most to its class."""
    text = dict(hidden_size=2560, intermediate_size=10240, model_type="gemma3_text", num_hidden_layers=34)
    text |= dict(sliding_window=1024, rope_scaling={"factor": 8.0, "rope_type": "linear"})
    vision = dict(hidden_size=1152, image_size=896, intermediate_size=4304, model_type="siglip_vision_model")
    vision |= dict(num_attention_heads=16, num_hidden_layers=27, patch_size=14, vision_use_head=False)
    config = dict(architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", text_config=text)
    config |= dict(vision_config=vision, mm_tokens_per_image=256, boi_token_index=255999, eoi_token_index=256000)
    cfg = GEMMA3_WITH_VISION.read(GEMMA3_WITH_VISION.fields(config, "file"))
    assert cfg == gemma3(
        **dict(vocab=262208, layers=34, width=2560, heads=8, kv_heads=4, head_dim=256, mlp=10240, context=131072),
        **dict(window=1024, query_scale=256**-0.5, scaling=Linear(8.0), vision=gemma3_vision()),
    )
    assert parameters(cfg) == 4_300_079_472  # as published


def test_a_prompt_has_a_place_for_each_image(loaded: tuple[str, Pretrained]) -> None:
    name, model = loaded
    vision, tokenizer = model.config.vision, ByteTokenizer()
    assert vision is not None
    soft, encode = [IMAGE] * vision.soft_tokens, partial(image_tokens(vision).encode, tokenizer=tokenizer)
    if vision.prefix:
        assert encode("ab", 2) == [*soft, *soft, *tokenizer.encode_prompt("ab\n")]
        return
    seen, n = [BEGIN, *soft, END], tokenizer.encode("\n\n")
    first = tokenizer.encode_prompt("a\n\n")
    assert encode("a<image>b", 1) == [*first, *seen, *n, *tokenizer.encode("b")]
    assert encode("b", 1) == [*tokenizer.encode_prompt("\n\n"), *seen, *n, *tokenizer.encode("b")]
    assert encode("a<image><image>", 2) == [*first, *seen, *n, *n, *seen, *n]
    with pytest.raises(ValueError, match="1 images and 2 marks <image> in the prompt: expected as many, or none"):
        encode("a<image><image>", 1)


def test_mistakes_are_told(loaded: tuple[str, Pretrained]) -> None:
    name, model = loaded
    size, n, _ = sizes(name)
    image = np.zeros((1, 1, size, size, 3), np.uint8)
    with pytest.raises(ValueError, match=f"prompt 0 has 1 tokens {IMAGE} for images of {n}: expected {n} an image"):
        next(model.stream_ids([[1, IMAGE, 3]], 2, images=image))
    with pytest.raises(ValueError, match=f"row 0 has 1 tokens {IMAGE} for images of {n}"):
        model.logits([[1, IMAGE, 3]], images=image)
