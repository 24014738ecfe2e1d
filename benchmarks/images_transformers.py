"""transformers' side of benchmarks/images.py."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from benchmarks.worker import Train, serve


def decode(settings: dict[str, Any]) -> Train:
    """Files to what Gemma 3's default processor makes of them, by a thread a core, each with one of torch's."""
    torch.set_num_threads(1)
    files = [file.read_bytes() for file in sorted(Path(settings["folder"]).glob("*.jpg"))]
    pool, size = ThreadPoolExecutor(settings["threads"]), dict(height=settings["size"], width=settings["size"])
    processor = transformers.Gemma3ImageProcessor(size=size, do_pan_and_scan=False)

    def one(file: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        return processor(image, return_tensors="pt")["pixel_values"][0]

    def train(steps: int) -> float:
        for _ in range(steps):
            pixels = torch.stack(list(pool.map(one, files)))
        return float(pixels[0, 0, 0, 0])

    return train


def tower(settings: dict[str, Any]) -> Train:
    """A tower's passes."""
    torch.set_num_threads(settings["threads"])
    sizes = settings["tower"]
    config = transformers.SiglipVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=sizes["mlp"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        image_size=settings["size"],
        patch_size=settings["patch"],
        vision_use_head=False,
    )
    model = transformers.SiglipVisionModel(config).eval()
    images = torch.zeros(settings["batch"], 3, settings["size"], settings["size"])

    def train(steps: int) -> float:
        with torch.inference_mode():
            for _ in range(steps):
                hidden = model(images).last_hidden_state
        return float(hidden[0, 0, 0])

    return train


if __name__ == "__main__":
    packages = ("torch", "torchvision", "transformers", "pillow")
    serve(lambda settings: {"decode": decode, "tower": tower}[settings["part"]](settings), packages)
