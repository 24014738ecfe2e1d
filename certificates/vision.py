"""Gemma 3 and PaliGemma with images against transformers: tower, connector, masks, logits, continuation.

python -m certificates.vision make FOLDER     transformers' side: checkpoints and what they give
python -m certificates.vision ours FOLDER     ours: the differences, and our exports
python -m certificates.vision check FOLDER    transformers reads the exports
python -m certificates.vision record FOLDER   a few of the numbers, for the tests
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from certificates.cases import array

IMAGE, BEGIN, END, V = 90, 88, 89, 96
SIZE, PATCH, NEW = 24, 4, 6
TOWER = dict(
    model_type="siglip_vision_model",
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=SIZE,
    patch_size=PATCH,
    vision_use_head=False,
)
TEXT = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=56,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
)
GEMMA3 = dict(**TEXT, num_hidden_layers=4, sliding_window=5, query_pre_attn_scalar=12, sliding_window_pattern=3)
MARKS = dict(image_token_index=IMAGE, boi_token_index=BEGIN, eoi_token_index=END)
CASES: dict[str, dict[str, Any]] = {
    "Gemma3 pool 2": dict(
        architecture="Gemma3ForConditionalGeneration",
        config=dict(text_config=GEMMA3, vision_config=TOWER, mm_tokens_per_image=9, **MARKS),
    ),
    "Gemma3 pool 3, eps, untied": dict(
        architecture="Gemma3ForConditionalGeneration",
        config=dict(
            text_config=GEMMA3,
            vision_config={**TOWER, "layer_norm_eps": 1e-3, "num_attention_heads": 2},
            mm_tokens_per_image=4,
            tie_word_embeddings=False,
            **MARKS,
        ),
    ),
    "PaliGemma": dict(
        architecture="PaliGemmaForConditionalGeneration",
        config=dict(
            text_config=dict(model_type="gemma", num_hidden_layers=3, **TEXT),
            vision_config={**TOWER, "image_size": 12, "projection_dim": 32},
            image_token_index=IMAGE,
            projection_dim=32,
            hidden_size=32,
        ),
    ),
    "PaliGemma 2": dict(
        architecture="PaliGemmaForConditionalGeneration",
        config=dict(
            text_config=dict(
                model_type="gemma2", num_hidden_layers=2, sliding_window=12, query_pre_attn_scalar=12, **TEXT
            ),
            vision_config={**TOWER, "image_size": 8, "projection_dim": 32},
            image_token_index=IMAGE,
            projection_dim=32,
            hidden_size=32,
        ),
    ),
}


def sizes(name: str) -> tuple[int, int, bool]:
    """(pixels on a side, soft tokens of an image, whether the prompt is a prefix) of a case."""
    config = CASES[name]["config"]
    size = config["vision_config"]["image_size"]
    return size, config.get("mm_tokens_per_image", (size // PATCH) ** 2), "PaliGemma" in name


def batch(name: str) -> tuple[list[list[int]], list[list[np.ndarray]]]:
    """Rows of tokens and their images: none, one, two with text between, two that touch; for a prefix one each."""
    size, n, prefix = sizes(name)
    rng = np.random.default_rng(7)
    text = lambda k: [1, *rng.integers(3, 80, k).tolist()]  # noqa: E731
    image = lambda: rng.integers(0, 256, (size, size, 3)).astype(np.uint8)  # noqa: E731
    seen = [BEGIN, *[IMAGE] * n, END]
    if prefix:
        return [[*[IMAGE] * n, *text(5)], [*[IMAGE] * n, *text(2)]], [[image()], [image()]]
    rows = [text(12), [*text(2), *seen, *text(4)], [*text(1), *seen, *text(3), *seen, *text(2)]]
    return [*rows, [*text(2), *[IMAGE] * (2 * n), *text(3)]], [
        [],
        [image()],
        [image(), image()],
        [image(), image()],
    ]


def make(folder: Path) -> None:
    """transformers' side: for each case a checkpoint with our values, and what it gives of each row alone, of all
    padded on the left, and its greedy continuation of each."""
    import transformers
    from safetensors import safe_open
    from safetensors.numpy import save_file

    for name, case in CASES.items():
        here, kind = folder / name, getattr(transformers, case["architecture"])
        config = kind.config_class(**json.loads(json.dumps(case["config"])))
        model = kind(config)
        model.save_pretrained(here)
        with safe_open(here / "model.safetensors", "np") as file:
            shapes = {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
        save_file({n: array(n, s) for n, s in shapes.items()}, here / "model.safetensors", {"format": "pt"})
        model = kind.from_pretrained(here, attn_implementation="eager").eval()
        np.savez(here / "reference.npz", **reference(name, model))


def reference(name: str, model: Any) -> dict[str, np.ndarray]:
    """What transformers' model gives for the batch of a case."""
    import torch

    rows, images = batch(name)
    given: dict[str, np.ndarray] = {}
    with torch.no_grad():
        whole = torch.tensor(np.stack([pixels(p) for each in images for p in each]))
        given["tower"] = model.model.vision_tower(whole).last_hidden_state.numpy()
        given["soft"] = model.model.get_image_features(whole).pooler_output.numpy()
        for i, (row, each) in enumerate(zip(rows, images, strict=True)):
            given[f"logits{i}"] = model(**arguments([row], [each]), use_cache=False).logits[0].numpy()
            found = model.generate(**arguments([row], [each]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
            given[f"greedy{i}"] = found[0, -NEW:].numpy()
        given["padded"] = model(**arguments(rows, images), use_cache=False).logits.numpy()
    return given


def pixels(image: np.ndarray) -> np.ndarray:
    """An image as transformers' processors hand it on."""
    return ((image.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


def arguments(rows: list[list[int]], images: list[list[np.ndarray]]) -> dict[str, Any]:
    """The arguments of transformers' models, rows padded on the left; the token types of an image are 1, and of the
    prompt, which a prefix-LM reads in both directions, 0."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    prefix = rows[0][0] == IMAGE
    given["token_type_ids"] = torch.zeros_like(ids) if prefix else (ids == IMAGE).long()
    every = [pixels(p) for each in images for p in each]
    return given | ({"pixel_values": torch.tensor(np.stack(every))} if every else {})


def ours(folder: Path) -> None:
    """Our side: the largest differences, in standard deviations of what is compared, and an export of each."""
    import jax
    import jax.numpy as jnp

    from lm.model.inputs import Inputs
    from lm.model.vision import soft_tokens
    from lm.pretrained import load

    for name in CASES:
        here = folder / name
        given, m = np.load(here / "reference.npz"), load(here, dtype="float32")
        vision, (rows, images) = m.config.vision, batch(name)
        logits = jax.jit(m.model.__call__)
        _, n, prefix = sizes(name)
        assert vision is not None and vision.soft_tokens == n
        every = np.stack([p for each in images for p in each])[None]
        soft = soft_tokens(vision, m.config.width, m.model.compute, m.params["vision"], jnp.asarray(every))
        worst = {"soft": far(soft[0].reshape(given["soft"].shape), given["soft"])}
        most = max(map(len, images))
        size = sizes(name)[0]
        for i, (row, each) in enumerate(zip(rows, images, strict=True)):
            blocks = jnp.ones((1, len(row)), jnp.int32) if prefix else None
            seen = jnp.asarray(np.stack(each))[None] if each else None
            found = logits(m.params, Inputs(jnp.asarray([row]), blocks=blocks, images=seen))
            worst[f"row {i}"] = far(found[0], given[f"logits{i}"])
        width = max(map(len, rows))
        tokens = np.array([[*row, *[0] * (width - len(row))] for row in rows])
        segments = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        stacked = np.zeros((len(rows), most, size, size, 3), np.uint8)
        for i, each in enumerate(images):
            stacked[i, : len(each)] = each if each else stacked[i, :0]
        blocks = jnp.asarray(segments) if prefix else None
        both = Inputs(jnp.asarray(tokens), segments=jnp.asarray(segments), blocks=blocks, images=jnp.asarray(stacked))
        found = np.asarray(logits(m.params, both))
        for i, row in enumerate(rows):
            worst[f"padded {i}"] = far(found[i, : len(row)], given["padded"][i, width - len(row) :])
        print(f"{name}: {', '.join(f'{k} {v:.1e}' for k, v in worst.items())}")
        assert max(worst.values()) < 2e-5
        m.save(here / "export")
        again = load(here / "export", dtype="float32")
        assert again.config == m.config
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (m.params, again.params)), strict=True))


def far(found: Any, wanted: np.ndarray) -> float:
    """The largest difference in standard deviations."""
    return float(np.abs(np.asarray(found) - wanted).max() / wanted.std())


def check(folder: Path) -> None:
    """transformers reads our exports, to the same numbers."""
    import transformers

    for name, case in CASES.items():
        here, kind = folder / name, getattr(transformers, case["architecture"])
        model, info = kind.from_pretrained(here / "export", attn_implementation="eager", output_loading_info=True)
        odd = [*info["missing_keys"], *info["unexpected_keys"]]
        given, found = np.load(here / "reference.npz"), reference(name, model.eval())
        same = all(np.array_equal(given[k], found[k]) for k in given)
        print(f"{name}: {'bitwise' if same else 'DIFFERENT'}; {odd or 'every tensor'}")
        assert same and not odd


RECORDED = Path(__file__).parent.parent / "tests" / "pretrained" / "recorded_images.json"


def record(folder: Path) -> None:
    """Of two cases the config, the shapes of the tensors, and some of what transformers gave."""
    from safetensors import safe_open

    found = {}
    for name in ("Gemma3 pool 2", "PaliGemma"):
        here, few = folder / name, slice(3, None, 11)
        given, rows = np.load(here / "reference.npz"), range(len(batch(name)[0]))
        with safe_open(here / "model.safetensors", "np") as file:
            shapes = {n: list(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
        found[name] = {
            "config": json.loads((here / "config.json").read_text()),
            "tensors": shapes,
            "std": float(given["logits0"].std()),
            "logits": [given[f"logits{i}"][-4:, few].round(6).tolist() for i in rows],
            "greedy": [given[f"greedy{i}"].tolist() for i in rows],
        }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    {"make": make, "ours": ours, "check": check, "record": record}[sys.argv[1]](Path(sys.argv[2]))
