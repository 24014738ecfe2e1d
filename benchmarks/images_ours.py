"""Our side of benchmarks/images.py."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.worker import Train, serve
from lm.data.images import read_image
from lm.model.compute import Compute
from lm.model.config import Vision
from lm.model.families import llama, siglip
from lm.model.transformer import Transformer
from lm.model.vision import soft_tokens


def decode(settings: dict[str, Any]) -> Train:
    """Files to pixels, by a thread a core."""
    files = [file.read_bytes() for file in sorted(Path(settings["folder"]).glob("*.jpg"))]
    pool = ThreadPoolExecutor(settings["threads"])

    def train(steps: int) -> float:
        for _ in range(steps):
            pixels = np.stack(list(pool.map(lambda file: read_image(file, settings["size"]), files)))
        return float(pixels[0, 0, 0, 0])

    return train


def tower(settings: dict[str, Any]) -> Train:
    """A tower's passes, with its connector to a text of its own width."""
    patches = (settings["size"] // settings["patch"]) ** 2
    own = siglip(**settings["tower"], patches=patches)
    vision = Vision(tower=own, image_size=settings["size"], patch_size=settings["patch"], image_token=1)
    cfg = llama(vocab=8, layers=1, width=own.width, heads=6, mlp=8, context=16, vision=vision)
    compute = Compute(dtype="float32", matmul="float32", unroll=1).resolve()  # as `load` has it
    model = Transformer(cfg, compute)
    params = jax.jit(model.init)(jax.random.key(0))["vision"]
    images = jnp.zeros((1, settings["batch"], settings["size"], settings["size"], 3), jnp.uint8)
    run = jax.jit(lambda params, images: soft_tokens(vision, cfg.width, model.compute, params, images))

    def train(steps: int) -> float:
        for _ in range(steps):
            soft = run(params, images).block_until_ready()
        return float(soft[0, 0, 0])

    return train


if __name__ == "__main__":
    serve(lambda settings: {"decode": decode, "tower": tower}[settings["part"]](settings), ("jax", "jaxlib", "pillow"))
