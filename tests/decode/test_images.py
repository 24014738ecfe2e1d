"""Images in the engine: to the bit what a request gets alone, no other's image, and what `generate` gives."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest

from lm.decode.engine import CHUNKS, Engine, Request
from lm.decode.generate import generate
from lm.decode.images import Part, parts_of
from lm.decode.layout import for_decoding
from lm.decode.sampling import Sampling
from lm.model.config import LayerKind, ModelConfig, Vision
from lm.model.families import llama, siglip
from lm.model.parts import RMSNorm
from lm.model.transformer import Transformer
from tests.decode.test_engine import bits, compilations, serve
from tests.model.reference import SIMPLE, lively, run

IMAGE, SIZE, V = 9, 8, 23
TOWER = siglip(layers=1, width=8, heads=2, mlp=12, patches=16)
VISION = Vision(tower=TOWER, image_size=SIZE, patch_size=2, image_token=IMAGE, pool=2, projector_norm=RMSNorm())
MODEL = llama(vocab=V, layers=1, width=16, heads=4, kv_heads=2, mlp=24, context=600, vision=VISION)
ZERO = replace(VISION, image_token=0)  # as padding is
WINDOWED = replace(MODEL, layers=3, pattern=(LayerKind(window=3), LayerKind(window=40), LayerKind()), vision=ZERO)
LARGE = replace(VISION, tower=replace(TOWER, context=324), image_size=36, pool=1)  # 324 soft tokens: more than a chunk
WITH_LARGE = replace(MODEL, vision=LARGE)
MODELS = {"whole": MODEL, "windows": WINDOWED, "large": WITH_LARGE}
GREEDY = Sampling(0.0)


@cache
def params(cfg: ModelConfig) -> Any:
    """Larger than at their birth, so that an image changes what is said."""
    found = dict(lively(cfg))
    found["vision"] = jax.jit(partial(jax.tree.map, lambda a: a * 4))(found["vision"])
    return found


def engine(cfg: ModelConfig = MODEL) -> Engine:
    return Engine(*for_decoding(Transformer(cfg, SIMPLE), params(cfg)), slots=4)


def images(count: int, seed: int, cfg: ModelConfig = MODEL) -> np.ndarray:
    size = cfg.vision.image_size if cfg.vision else SIZE
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def asking(cfg: ModelConfig, i: int, *parts: int, **options: Any) -> Request:
    """A prompt of texts of so many tokens, and of so many images where a part is negative."""
    assert cfg.vision is not None
    draw, image = np.random.default_rng(i), [cfg.vision.image_token] * cfg.vision.soft_tokens
    ids = [id for n in parts for id in (draw.integers(10, V, n).tolist() if n >= 0 else image * -n)]
    seen = images(-sum(n for n in parts if n < 0), i, cfg)
    return Request(ids, 6, seed=i, images=seen if len(seen) else None, **options)


def many(cfg: ModelConfig) -> list[Request]:
    """Requests with none, one and more images, some of which touch, behind texts of several chunks."""
    kinds = [(3,), (2, -1, 3), (40,), (-1, 2), (280, -1, 35), (5, -1, 1, -1), (2, -2, 3), (257,), (33, -1, 300)]
    kinds = [(3,), (2, -1, 3), (40,), (5, -1, 1), (257,), (-1,)] if cfg is WITH_LARGE else kinds
    samplings = (GREEDY, Sampling(), Sampling(1.3, top_k=5))
    options = [dict(sampling=samplings[i % 3], prompt_logprobs=i % 5 == 3) for i in range(len(kinds))]
    return [asking(cfg, i, *kind, **more) for i, (kind, more) in enumerate(zip(kinds, options, strict=True))]


@pytest.mark.parametrize("name", MODELS)
def test_what_a_request_gets_does_not_depend_on_its_company(name: str) -> None:
    cfg = MODELS[name]
    together, alone, requests = engine(cfg), engine(cfg), many(cfg)
    together.warm_up()
    with compilations() as compiled:
        outputs = serve(together, [r for r in requests if r.images is None or len(r.images) == 1], seed=1)
    assert not compiled and outputs
    outputs = serve(together, requests, seed=2)
    for i, got in outputs.items():
        assert bits(got) == bits(alone.generate([requests[i]])[0]), i


@pytest.mark.parametrize("name", MODELS)
def test_it_is_generate(name: str) -> None:
    """Which reads prompts at once: images are cut nowhere, and each stands in its own place."""
    cfg, by_count = MODELS[name], dict[int, list[Request]]()
    for request in many(cfg):
        if request.images is not None:
            by_count.setdefault(len(request.images), []).append(replace(request, sampling=GREEDY))
    for same in by_count.values():
        prompts, seen = [one.prompt for one in same], np.stack([one.images for one in same if one.images is not None])
        wanted = generate(Transformer(cfg, SIMPLE), params(cfg), prompts, 6, sampling=GREEDY, images=seen)
        for request, row in zip(same, wanted, strict=True):
            (got,) = engine(cfg).generate([request])
            assert [one.token for one in got] == row


def test_log_probabilities_of_a_prompt_with_images_are_the_trainer_s() -> None:
    cfg = WINDOWED
    request = replace(asking(cfg, 4, 38, -2, 3, -1, 2, -1), prompt_logprobs=True)
    (outputs,) = engine(cfg).generate([request])
    ids = np.array([request.prompt], np.int32)
    assert request.images is not None
    logits = run(Transformer(cfg, SIMPLE), params(cfg), ids, images=request.images[None]).astype(np.float64)[0, :-1]
    wanted = np.take_along_axis(logits, ids[0, 1:, None], 1)[:, 0] - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose([one.logprob for one in outputs[0].prompt], wanted, atol=2e-5)


def test_the_same_ids_of_another_image_share_nothing() -> None:
    """Behind a beginning that is kept for others, and before one."""
    busy, text = engine(), asking(MODEL, 1, CHUNKS[0] + 40)
    one = replace(asking(MODEL, 2, CHUNKS[0], -1, 20), prompt=[*text.prompt[: CHUNKS[0]], *[IMAGE] * 4, *[11] * 260])
    other = replace(one, images=images(1, 77))
    for request in (text, one, other, one):
        assert bits(busy.generate([request])[0]) == bits(engine().generate([request])[0])
    assert bits(busy.generate([one])[0]) != bits(busy.generate([other])[0])
    assert list(busy._saved) == [tuple(text.prompt[: CHUNKS[0]])]


def test_parts_of_a_prompt() -> None:
    assert parts_of([IMAGE, 3], None, MODEL) == [Part(2)]
    seen = images(3, 0)
    found = parts_of([1, *[IMAGE] * 8, 2, *[IMAGE] * 4], seen, MODEL)
    assert [part.end for part in found] == [1, 9, 10, 14]
    assert [None if p.images is None else p.images.shape[:2] for p in found] == [None, (1, 2), None, (1, 1)]
    assert found[3].images is not None and np.array_equal(found[3].images[0, 0], seen[2])


@pytest.mark.parametrize(
    ("cfg", "change", "message"),
    [
        (MODEL, dict(prompt=[1, *[IMAGE] * 3]), "prompt 0 has 3 tokens 9 for images of 4: expected 4 an image"),
        (MODEL, dict(prompt=[1, 2]), "prompt 0 has 0 tokens 9 for images of 4"),
        (MODEL, dict(images=images(1, 0)[:, :4]), r"images of uint8 \[1, 4, 8, 3\]: expected uint8 \[M, 8, 8, 3\]"),
        (MODEL, dict(images=images(1, 0) / 255.0), "images of float64"),
        (replace(MODEL, vision=replace(VISION, prefix=True)), {}, "reads a prompt in both directions"),
        (replace(MODEL, vision=None), {}, "this model reads text alone"),
    ],
)
def test_refusals(cfg: ModelConfig, change: dict[str, Any], message: str) -> None:
    request = replace(asking(MODEL, 0, 2, -1, 1), **change)
    busy = Engine(Transformer(cfg, replace(SIMPLE, unroll=0)), params(MODEL), slots=1)
    with pytest.raises(ValueError, match=message):
        busy.submit(request)
