"""Images in Parquet and TFDS, and the files that records name: read as they were written, and in the fingerprint."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from lm.data import image_records, source
from lm.data.captions import Captions
from lm.data.loader import prepare
from lm.data.mixture import Data, Mixture
from lm.data.objective import Replies
from lm.data.pack import Pack
from lm.data.records import Jsonl, Parquet
from lm.text.image_tokens import ImageTokens
from lm.text.tokenizer import Bytes

TOKENS = ImageTokens(255, 4)
HF_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # as HF's datasets writes its Image


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(file: Path, kind: Any, images: list[Any], name: str = "image") -> Captions:
    """Captions over a table of `images`, whose number is the answer."""
    answers = pa.array([str(i) for i in range(len(images))])
    prompts = pa.array(["a?"] * len(images), pa.binary() if kind == pa.binary() else pa.string())
    table = {name: pa.array(images, kind), "prompt": prompts, "completion": answers}
    pyarrow.parquet.write_table(pa.table(table), file, row_group_size=3)
    return Captions(Parquet(str(file), heldout=0.2), TOKENS, size=8, folder=str(file.parent))


def read(captions: Captions) -> dict[int, np.ndarray]:
    """The images of each record, by its number."""
    documents = [d for split in ("train", "heldout") for d in captions.documents(split)]
    return {int(json.loads(d)["completion"]): captions.read(d) for d in documents}


@pytest.mark.parametrize("kind", [HF_IMAGE, pa.binary()], ids=["struct", "binary"])
def test_images_of_parquet_are_those_that_were_written(kind: Any, tmp_path: Path) -> None:
    files = [png(picture(i)) for i in range(20)]
    rows = files if kind == pa.binary() else [{"bytes": file, "path": f"{i}.png"} for i, file in enumerate(files)]
    found = read(captions := parquet(tmp_path / "a.parquet", kind, rows))
    assert len(found) == 20 and all(np.array_equal(images[0], picture(i)) for i, images in found.items())
    data = Data(mixture=Mixture({"a": captions}, {"a": 1.0}), tokenizer=Bytes(), packing=Pack())
    batch = prepare(data, 16, 4, objective=Replies()).batch(0)
    seen = {image.tobytes() for image in batch["images"].reshape(-1, 8, 8, 3)}
    assert seen - {bytes(192)} <= {picture(i).tobytes() for i in range(20)} and len(seen) > 2


def test_lists_of_images_and_of_paths(tmp_path: Path) -> None:
    """Of several a row; a struct without bytes names a file."""
    (tmp_path / "9.png").write_bytes(png(picture(9)))
    inside = [{"bytes": png(picture(i)), "path": None} for i in range(6)]
    rows = [inside[:2], [inside[2]], [{"bytes": None, "path": "9.png"}, inside[3]], [], inside[4:]]
    found = read(parquet(tmp_path / "a.parquet", pa.list_(HF_IMAGE), rows * 4, "images"))
    wanted = [[0, 1], [2], [9, 3], [], [4, 5]]
    for i, images in found.items():
        assert np.array_equal(images, np.array([picture(j) for j in wanted[i % 5]]).reshape(-1, 8, 8, 3))


def test_what_is_no_image_is_one_line(tmp_path: Path) -> None:
    captions = Captions(Jsonl(str(tmp_path / "n.jsonl")), TOKENS, size=8, folder=str(tmp_path))
    for image, message in (
        ([[[1, 2, 3]]], r"an image is '\[\[\[1, 2, 3\]\]\]': expected a path, or"),
        ({"bytes": None, "path": None}, "an image is .*: expected a path, or"),
        ({"bytes": None, "path": "b.png"}, "b.png is no image that can be read: there is no such file"),
        ({"bytes": "bm8=", "path": "a.png"}, "the image is no image that can be read"),
    ):
        with pytest.raises(ValueError, match=message):
            captions.read(json.dumps({"image": image, "prompt": "", "completion": ""}))


# A data set with images as TFDS stores them; read in a fresh process to see what gets imported.
TFDS = """
import io, json, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from lm.data.captions import Captions
from lm.data.records import Tfds
from lm.text.image_tokens import ImageTokens

def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)

def png(seed):  # of an array TFDS makes one by TensorFlow
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "PNG")
    return io.BytesIO(buffer.getvalue())

class Pairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        image = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({NAME: KIND, "prompt": text, "completion": text})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)
    def _split_generators(self, dl_manager):
        return {s: self._generate_examples(n) for s, n in (("train", 5), ("validation", 2))}
    def _generate_examples(self, n):
        for i in range(n):
            yield i, {NAME: VALUE, "prompt": "é?", "completion": str(i)}

folder = sys.argv[1]
Pairs(data_dir=folder, file_format="array_record").download_and_prepare()
captions = Captions(Tfds("pairs", data_dir=folder), ImageTokens(255, 4), size=8)
for split, count in (("train", 5), ("heldout", 2)):
    documents = captions.documents(split)
    assert len(documents) == count
    for document in documents:
        record, images = json.loads(document), captions.read(document)
        i = int(record["completion"])
        assert record["prompt"] == "é?" and np.array_equal(images, [picture(j) for j in (i, i + 1)[: len(images)]])
        assert len(images) == COUNT
captions.fingerprint()
assert not {"tensorflow", "torch"} & set(sys.modules)
"""


@pytest.mark.parametrize(
    ("name", "kind", "value", "count"),
    [
        ("image", "image", "png(i)", 1),
        ("images", "tfds.features.Sequence(image)", "[png(i), png(i + 1)]", 2),
    ],
)
def test_images_of_tfds_are_those_that_were_stored(
    name: str, kind: str, value: str, count: int, tmp_path: Path
) -> None:
    script = TFDS.replace("NAME", repr(name)).replace("KIND", kind).replace("VALUE", value).replace("COUNT", str(count))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the files that records name


def named(folder: Path, images: list[Any]) -> Captions:
    lines = [json.dumps({"image": image, "prompt": "?", "completion": str(i)}) for i, image in enumerate(images)]
    (folder / "r.jsonl").write_text("\n".join(lines))
    return Captions(Jsonl(str(folder / "r.jsonl"), heldout=0.2), TOKENS, size=8, folder=str(folder))


def test_another_image_under_the_same_path_is_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(picture(i)))
    captions = named(tmp_path, [f"{i % 2}.png" for i in range(30)])
    before = captions.fingerprint()
    (tmp_path / "2.png").write_bytes(png(picture(7)))  # which no record names
    assert captions.fingerprint() == before
    (tmp_path / "1.png").write_bytes(png(picture(8)))
    assert (after := captions.fingerprint()) != before
    monkeypatch.setattr(source, "HASHED_BYTES", 1)  # as of many: by their sizes and times
    large = captions.fingerprint()
    os.utime(tmp_path / "1.png", ns=(0, 1))
    assert captions.fingerprint() not in (large, after)
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match="cannot read .*0.png: No such file"):
        captions.fingerprint()


def test_the_files_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at all where images are in the records."""
    (tmp_path / "0.png").write_bytes(png(picture(0)))
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    captions = named(tmp_path, ["0.png"] * 30)
    first = captions.fingerprint()
    image_records._named.cache_clear()
    monkeypatch.setattr(image_records, "_write", None)
    assert captions.fingerprint() == first
    monkeypatch.undo()
    inside = named(tmp_path, [{"bytes": ""}] * 30)
    assert inside.fingerprint() == Jsonl(str(tmp_path / "r.jsonl"), field="", heldout=0.2).fingerprint()
