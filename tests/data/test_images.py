"""Images of every kind that people have on their disks become uint8 [size, size, 3], or a line says why not."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lm.data import images
from lm.data.images import read_image, read_images

RED, WHITE = [255, 0, 0], [255, 255, 255]


def file(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def halves(mode: str = "RGB", left: Any = (255, 0, 0), right: Any = (0, 0, 255), size: tuple[int, int] = (8, 4)) -> Any:
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def test_an_image_is_squashed_to_a_square() -> None:
    found = read_image(file(halves()), 4)
    assert found.shape == (4, 4, 3) and found.dtype == np.uint8
    assert found[0, 0].tolist() == RED and found[-1, -1].tolist() == [0, 0, 255]
    same = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(read_image(same, 4), same)  # of its size already: as it is


@pytest.mark.parametrize("resample", images.RESAMPLING)
def test_what_is_made_smaller_is_averaged(resample: str) -> None:
    """A chequered pattern is grey, however fine: without this it is whatever is hit."""
    chequered = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert np.abs(read_image(chequered, 8, resample).astype(int) - 127).max() <= 2


def test_the_two_ways_of_resampling_differ() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    found = [read_image(noise, 8, how).astype(int) for how in images.RESAMPLING]
    assert np.abs(found[0] - found[1]).max() > 3


def test_what_is_transparent_lies_on_white() -> None:
    clear = halves("RGBA", (255, 0, 0, 255), (0, 0, 255, 0))
    palette = halves("RGBA", (255, 0, 0, 255), (0, 0, 255, 0)).quantize(4)
    for image in (clear, palette, halves("LA", (0, 255), (0, 0))):
        assert read_image(file(image), 4)[0, -1].tolist() == WHITE
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert np.abs(read_image(file(half), 4)[0, 0].astype(int) - [255, 127, 127]).max() <= 1


def test_other_modes_and_depths() -> None:
    assert read_image(file(halves("P", 0, 0)), 4).shape == (4, 4, 3)
    assert read_image(file(halves("L", 255, 0)), 4)[0, 0].tolist() == WHITE
    assert read_image(file(halves("1", 1, 0)), 4)[0, 0].tolist() == WHITE
    assert read_image(file(halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "TIFF"), 4)[0, 0].tolist() == RED
    deep = Image.fromarray(np.full((4, 4), 256 * 128 + 128, np.uint16))
    assert read_image(file(deep), 4)[0, 0].tolist() == [128, 128, 128]


def test_the_camera_s_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = read_image(file(halves(size=(8, 8)), "JPEG", exif=exif, quality=95), 8)
    assert turned[0, 0, 0] > 200 and turned[0, -1, 0] > 200 and turned[-1, 0, 2] > 200


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animated = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(animated, 4)[0, 0].tolist() == RED


def test_paths_and_several(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(file(halves()))
    found = read_images([tmp_path / "a.png", str(tmp_path / "a.png")], 4)
    assert found.shape == (2, 4, 4, 3) and np.array_equal(found[0], found[1])
    assert read_images([], 4).shape == (0, 4, 4, 3)


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("a cat")
    with pytest.raises(ValueError, match=r"text.png is no image that can be read: it is of none of the kinds"):
        read_image(tmp_path / "text.png", 4)
    with pytest.raises(ValueError, match=r"none.png is no image that can be read: there is no such file"):
        read_image(tmp_path / "none.png", 4)
    with pytest.raises(ValueError, match=r"can be read: Is a directory$"):
        read_image(tmp_path, 4)
    for url in ("https://a.org/cat.png", "data:image/png;base64,AAAA"):
        with pytest.raises(ValueError, match=r"can be read: URLs are not fetched, expected a file$"):
            read_image(url, 4)
    with pytest.raises(ValueError, match=r"^data:image/png;base64,A+… is no image"):
        read_image("data:image/png;base64," + "A" * 9999, 4)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    with pytest.raises(ValueError, match="the image is no image that can be read: image file is truncated"):
        read_image(file(noise)[:4000], 4)
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match=r"expected whole numbers from 0 to 255, uint8 \[height, width, 3\]"):
            read_image(array, 4)


@pytest.mark.parametrize("side", [11_000, 20_000])
def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded(side: int) -> None:
    """A header alone says so: behind it there is nothing."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    with pytest.raises(ValueError, match="the image has too many pixels: expected at most 100,000,000"):
        read_image(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0), 4)
