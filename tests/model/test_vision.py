"""Images in the residual stream: who sees whom, what a batch may hold, that every field of Vision does something."""

from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model.config import LayerKind, ModelConfig, Vision
from lm.model.count import flops_per_image
from lm.model.families import llama, siglip
from lm.model.inputs import Inputs
from lm.model.parts import RMSNorm
from lm.model.transformer import Transformer
from lm.model.vision import Patches, placed, runs, soft_tokens
from lm.sharding.mesh import make_mesh
from lm.sharding.shardings import shardings
from lm.sharding.tracing import use_mesh
from tests.model.reference import SIMPLE, close, extend, lively, run

IMAGE, SIZE = 9, 8
TOWER = siglip(layers=2, width=8, heads=2, mlp=12, patches=16)
VISION = Vision(tower=TOWER, image_size=SIZE, patch_size=2, image_token=IMAGE, pool=2, projector_norm=RMSNorm())
MODEL = llama(vocab=12, layers=2, width=16, heads=4, kv_heads=2, mlp=24, context=32, vision=VISION)
ROW = [1, 3, *[IMAGE] * 4, 5, 2, *[IMAGE] * 4, 7]
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (1, 2, SIZE, SIZE, 3)).astype(np.uint8)


def logits(cfg: ModelConfig = MODEL, row: list[int] = ROW, images: Any = IMAGES) -> np.ndarray:
    return run(Transformer(cfg, SIMPLE), lively(cfg), np.array([row], np.int32), images=images)[0]


def changed(a: np.ndarray, b: np.ndarray) -> list[int]:
    return np.flatnonzero(np.abs(a - b).max(-1) > 1e-7).tolist()


def test_an_image_sees_itself_and_what_was_before() -> None:
    """The last corner of the first image changes all of its soft tokens and what comes later, no text before it."""
    other = IMAGES.copy()
    other[0, 0, -1, -1] ^= 255
    assert changed(logits(), logits(images=other)) == list(range(2, len(ROW)))
    other = IMAGES.copy()
    other[0, 1, -1, -1] ^= 255
    assert changed(logits(), logits(images=other)) == list(range(8, len(ROW)))


def test_a_later_token_changes_no_image() -> None:
    assert changed(logits(), logits(row=[*ROW[:6], 6, *ROW[7:]])) == list(range(6, len(ROW)))


def test_an_image_s_own_window_is_behind_it() -> None:
    """In one layer with a window of two: a soft token sees all later ones of its image and one before it."""
    cfg = replace(
        MODEL, layers=1, pattern=(LayerKind(window=2),), vision=replace(VISION, tower=replace(TOWER, layers=1))
    )
    params = lively(cfg)

    def from_soft(soft: jax.Array) -> jax.Array:
        model = Transformer(cfg, SIMPLE)
        inputs = Inputs(jnp.asarray([ROW]), blocks=runs(jnp.asarray([ROW]) == IMAGE))
        x, shared = model._begin(cfg, params["stem"], params["stem"], inputs, None, None, soft)
        from lm.model.stack import Stack

        return Stack(cfg.scaled, SIMPLE)(params["layers"], x, shared)[0][0]

    soft = jnp.asarray(RNG.standard_normal((1, 8, 16)), jnp.float32)
    slopes = np.asarray(jax.jit(jax.jacobian(from_soft))(soft))  # [T, D, 1, n, D]
    seen = [np.flatnonzero(np.abs(slopes[t][:, 0]).max((0, 2)) > 1e-9).tolist() for t in range(len(ROW))]
    assert seen[2:6] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3], [2, 3]]
    assert seen[6] == [3] and seen[7] == [] and seen[8] == [4, 5, 6, 7]


def test_rows_with_fewer_images_ignore_the_last() -> None:
    row = [1, 3, *[IMAGE] * 4, 5]
    black = np.concatenate([IMAGES[:, :1], IMAGES[:, :1] * 0], 1)
    close(logits(row=row, images=IMAGES), logits(row=row, images=black), 1e-6)
    close(logits(row=row, images=IMAGES[:, :1]), logits(row=row, images=IMAGES), 1e-6)


def test_cached_after_an_image_is_full() -> None:
    model, params = Transformer(MODEL, SIMPLE), lively(MODEL)
    read = Inputs(np.array([ROW[:7]], np.int32), images=IMAGES[:, :1])
    _, cache = extend(model, params, model.empty_cache(1, 32), read)
    for token in (2, 4, 6):
        last, cache = extend(model, params, cache, Inputs(np.array([[token]], np.int32)))
    whole = logits(row=[*ROW[:7], 2, 4, 6], images=IMAGES[:, :1])
    close(last[0, 0], whole[-1], 1e-5)


def test_patches_are_a_convolution() -> None:
    module, images = Patches(VISION, SIMPLE), RNG.standard_normal((3, SIZE, SIZE, 3)).astype(np.float32)
    boxed = jax.jit(module.init)(jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda a: a.value, boxed, is_leaf=lambda a: hasattr(a, "value"))
    found = jax.jit(module.apply)({"params": params}, images)
    wanted = jax.lax.conv_general_dilated(
        images, params["patches"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    params = jax.device_get(params)
    close(found, np.asarray(wanted).reshape(3, 16, -1) + params["patches_bias"] + params["positions"], 1e-5)


def test_soft_tokens_have_their_places() -> None:
    marks = jnp.asarray([[0, 1, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
    x, soft = jnp.zeros((2, 5, 1)), jnp.arange(1.0, 7).reshape(2, 3, 1)
    assert placed(x, soft, marks)[..., 0].tolist() == [[0, 1, 2, 0, 3], [4, 0, 0, 0, 0]]
    assert runs(marks).tolist() == [[0, 1, 1, 0, 2], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("mesh", [{"data": 2, "tensor": 2, "fsdp": 2}, {"fsdp": 8}], ids=str)
def test_eight_devices_are_one(mesh: dict[str, int]) -> None:
    model, params = Transformer(MODEL, SIMPLE), lively(MODEL)
    tokens, images = np.array([ROW] * 8, np.int32), np.repeat(IMAGES, 8, 0)
    over = make_mesh(mesh)
    placed_params = jax.device_put(params, shardings(model.shapes(), model.axes(), over))
    with use_mesh(over):
        found = jax.jit(model.__call__)(placed_params, Inputs(tokens, images=images))
    close(np.asarray(found)[3], logits(), 1e-4)


CHANGES: dict[str, dict[str, Any]] = {
    "tower": dict(tower=replace(TOWER, layers=1)),
    "image_size": dict(image_size=4, pool=1),
    "patch_size": dict(patch_size=1, tower=replace(TOWER, context=64), pool=4),
    "image_token": dict(image_token=5),
    "pool": dict(pool=1),
    "projector_norm": dict(projector_norm=RMSNorm(eps=1.0)),
    "projector_bias": dict(projector_bias=True),
    "pixel_mean": dict(pixel_mean=0.1),
    "pixel_std": dict(pixel_std=0.1),
    "channels": dict(channels=1),
    "blocks": dict(blocks=False),
}
OF_PROMPTS = {"begin_token", "end_token", "separator", "prefix", "resample"}  # tests/pretrained/test_images.py


def test_every_field_changes_the_soft_tokens() -> None:
    """Or their places, or what parameters they need."""
    assert set(CHANGES) | OF_PROMPTS == {field.name for field in fields(Vision)}
    params, soft = lively(MODEL), jax.jit(soft_tokens, static_argnums=(0, 1, 2))
    was = np.asarray(soft(VISION, 16, SIMPLE, params["vision"], IMAGES))
    for name, change in CHANGES.items():
        other = replace(VISION, **change)
        shapes = Transformer(replace(MODEL, vision=other), SIMPLE).shapes()["vision"]
        if jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params["vision"]) and name not in (
            "image_token",
            "blocks",
        ):
            size = other.image_size
            now = soft(other, 16, SIMPLE, params["vision"], IMAGES[:, :, :size, :size])
            assert now.shape != was.shape or np.abs(np.asarray(now) - was).max() > 1e-4, name
    assert changed(logits(), logits(replace(MODEL, vision=replace(VISION, image_token=5)))) != []
    assert changed(logits(), logits(replace(MODEL, vision=replace(VISION, blocks=False)))) == list(range(2, len(ROW)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(patch_size=3), "image_size=8 to be a multiple of patch_size=3 times pool=2"),
        (dict(tower=replace(TOWER, context=9)), "tower.context=9: expected the patches of an image, 16"),
        (dict(tower=replace(TOWER, causal=True)), "model.vision.tower is to have causal=False"),
        (dict(image_token=12), "image_token=12: expected less than 12"),
        (dict(resample="nearest"), "resample='nearest'"),
    ],
)
def test_what_cannot_be_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MODEL, vision=replace(VISION, **change))


def test_a_model_without_vision_is_given_no_image() -> None:
    model = Transformer(replace(MODEL, vision=None), SIMPLE)
    params = lively(model.cfg)
    with pytest.raises(ValueError, match="this model has no vision tower: give it text alone, or set model.vision"):
        model(params, Inputs(jnp.asarray([ROW]), images=jnp.asarray(IMAGES)))


def test_flops_of_an_image_are_those_of_its_products() -> None:
    """Six FLOPs a weight and token, and twelve a head size and pair of patches; four where a weight is frozen."""
    S, D, width, n = VISION.patches, TOWER.width, MODEL.width, VISION.soft_tokens
    layer = 4 * D * D + 2 * D * 12 + 2 * S * D
    wanted = 6 * (S * 12 * D + 2 * S * layer + n * D * width)
    assert flops_per_image(MODEL) == wanted
    stem = frozenset({"vision/stem/patches"})
    assert flops_per_image(MODEL, stem) == wanted - 2 * S * 12 * D
    assert flops_per_image(replace(MODEL, vision=None)) == 0
