"""Images as a vision tower reads them: square, of whole numbers from 0 to 255, red, green and blue.

Any file that Pillow reads is one, under a limit of pixels; what else it may have is defined: its orientation is
applied, an animation is its first frame, 16 bits become 8, a palette colours, and what is transparent lies on white.
"""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_PIXELS = 100_000_000  # of a file: more is refused before it is decoded
RESAMPLING = ("bilinear", "bicubic")
ImageLike = Any  # a path, the bytes of a file, an array [height, width, 3] of uint8, or an image of Pillow's


def read_image(image: ImageLike, size: int, resample: str = "bilinear") -> np.ndarray:
    """An image squashed to `size` by `size` pixels: uint8 [size, size, 3].

    Args:
      image: a file's path or bytes, an array of whole numbers, or an image of Pillow's.
      size: in pixels.
      resample: one of RESAMPLING; both average over what is made smaller.

    Raises ValueError for a file that is no image, is cut off or too large, and for arrays of another kind."""
    from PIL import Image

    how = Image.Resampling.BILINEAR if resample == "bilinear" else Image.Resampling.BICUBIC
    image = opened(image)
    if image.size != (size, size):
        image = image.resize((size, size), how)
    return np.asarray(image)


def read_images(images: Sequence[ImageLike], size: int, resample: str = "bilinear") -> np.ndarray:
    """Several: uint8 [M, size, size, 3]."""
    each = [read_image(image, size, resample) for image in images]
    return np.stack(each) if each else np.zeros((0, size, size, 3), np.uint8)


def opened(image: ImageLike) -> Any:
    """An image as Pillow's, in RGB, upright. Raises ValueError as `read_image`."""
    from PIL import Image, ImageOps

    if isinstance(image, np.ndarray):
        return Image.fromarray(_checked(image))
    what = f"{image}" if isinstance(image, str | Path) else "the image"
    what = what if len(what) <= 200 else f"{what[:199]}…"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            found = image if isinstance(image, Image.Image) else Image.open(_file(image))
            if found.width * found.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            found.load()
            if found is image:
                return _rgb(ImageOps.exif_transpose(found))
            ImageOps.exif_transpose(found, in_place=True)  # where nothing is to be turned, a copy less
            return _rgb(found)
    except Image.DecompressionBombError:  # Pillow's own, from 179 million pixels on, or ours
        raise ValueError(f"{what} has too many pixels: expected at most {MOST_PIXELS:,}") from None
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{what} is no image that can be read: {_reason(what, error)}") from None


def _file(image: Any) -> Any:
    return io.BytesIO(image) if isinstance(image, bytes) else Path(image)


def _reason(what: str, error: Exception) -> str:
    if re.match("https?:|data:", what):
        return "URLs are not fetched, expected a file"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if "cannot identify" in str(error):
        return "it is of none of the kinds that are known, as PNG, JPEG, WebP and GIF are"
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _checked(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(
            f"an image of {array.dtype} {list(array.shape)}: expected whole numbers from 0 to 255, "
            "uint8 [height, width, 3]"
        )
    return array


def _rgb(image: Any) -> Any:
    """An image of any mode in RGB."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        levels = np.asarray(image.convert("I") if image.mode.startswith("I") else image)
        if image.mode == "F":
            raise ValueError("an image of floating-point numbers: expected whole numbers, of 8 or 16 bits")
        return Image.fromarray(np.clip(levels // 257, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" or image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
