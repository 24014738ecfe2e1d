"""Images and what is said of them: records become tokens, of which the answer's carry loss, and rows get images.

A record has an `image` (or several, `images`), a `prompt`, with <image> where an image stands (or none: they come
first), and a `completion`. Images are read with the rows that have them, by the loader's threads.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lm.bounds import Count, check
from lm.data.conversations import SHOWN, check_known, read_object
from lm.data.encoded import BadDocument, Encoded, checked
from lm.data.image_records import named_files, path_of, with_images
from lm.data.images import RESAMPLING, ImageLike, read_images
from lm.data.objective import Rows
from lm.data.pack import PackingPlan
from lm.data.records import WholeRecords
from lm.data.source import Source
from lm.data.store import TokenStore
from lm.text.image_tokens import ImageTokens
from lm.text.tokenizer import Tokenizer
from lm.value import suggest

VERSION = "captions 1"  # raise it when the same records give other tokens
FIELDS = ("prompt", "completion")
Key = tuple[str, str]  # of a source and a split


@dataclass(frozen=True)
class Captions(WholeRecords):
    """The records of a Jsonl, Parquet or Tfds, or of a source that draws them, as questions about images.

    An image is a file's path, under `folder` unless it is absolute, or a file's bytes: {"bytes": in base64}, a struct
    of "bytes" and "path" or a binary column of Parquet (HF's `datasets`), an Image of TFDS. It takes the place of
    `image_tokens`, after it was squashed to `size` by `size` pixels by `resample`, as the model's `vision` says.
    `other_fields` are those that records may have besides."""

    image_tokens: ImageTokens = ImageTokens(0, 1)
    size: Count = 224
    resample: str = "bilinear"
    folder: str = ""
    other_fields: tuple[str, ...] = ()

    document_name: ClassVar[str] = "caption"
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"resample": RESAMPLING}

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)
        if self.resample not in RESAMPLING:
            raise ValueError(f"resample={self.resample!r}: {suggest(self.resample, RESAMPLING)}")

    @property
    def _whole(self) -> Source:
        return with_images(super()._whole)

    def fingerprint(self) -> str:
        """Of the records, and of the files of images that they name."""
        whole, records = self._whole, super()._whole.fingerprint()
        files = [] if hasattr(whole, "draw_image") else named_files(whole, self.folder)
        return hashlib.sha256(json.dumps([records, *files]).encode()).hexdigest()[:16] if files else records

    def comparable(self) -> Source:
        return replace(self, records=self.records.comparable())

    def encoding(self, tokenizer: Tokenizer) -> list[str]:
        return [VERSION, repr(self.image_tokens), json.dumps(self.other_fields)]

    def plain_text(self, document: str) -> str:
        """The question and its answer."""
        record = self.parse(document)
        return f"{record['prompt']}\n{record['completion']}"

    def encode(self, texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
        for text in texts:
            try:
                yield self._encode(self.parse(text), tokenizer)
            except ValueError as error:
                raise BadDocument(str(error)) from None

    def parse(self, document: str) -> dict[str, Any]:
        """The record in `document`, its images under `images`. Raises ValueError for another one."""
        record = read_object(document, "an image, a prompt and a completion", self.other_fields)
        for name in FIELDS:
            if not isinstance(record.get(name), str):
                raise ValueError(f"{name} is {str(record.get(name))[:SHOWN]!r}: expected a text")
        if ("image" in record) == ("images" in record):
            raise ValueError("expected an image, or a list of images")
        if "image" in record:
            record["images"] = [record.pop("image")]
        if not isinstance(record["images"], list):
            raise ValueError(f"images is {str(record['images'])[:SHOWN]!r}: expected a list")
        check_known(record, FIELDS, ("images",), "Captions")
        return record

    def _encode(self, record: Mapping[str, Any], tokenizer: Tokenizer) -> Encoded:
        before = self.image_tokens.encode(record["prompt"], len(record["images"]), tokenizer)
        end = [] if tokenizer.eos is None else [tokenizer.eos]
        after = [*tokenizer.encode_after(record["completion"]), *end]
        ids = checked([*before, *after], tokenizer)
        loss = np.arange(len(ids)) >= len(before)
        return Encoded(ids, loss, len((record["prompt"] + record["completion"]).encode()), 0)

    def read(self, document: str) -> np.ndarray:
        """The images of a record, uint8 [M, size, size, 3]. Raises ValueError for one that cannot be read."""
        images = [self._image(one) for one in self.parse(document)["images"]]
        return read_images(images, self.size, self.resample)

    def _image(self, one: Any) -> ImageLike:
        draw = getattr(self.records, "draw_image", None)  # of a source that makes its images
        if draw is not None:
            return draw(one)
        if isinstance(one, dict) and isinstance(one.get("bytes"), str):
            try:
                return base64.b64decode(one["bytes"], validate=True)
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"an image's bytes are no base64: {error}") from None
        if not (path := path_of(one)):
            raise ValueError(f'an image is {str(one)[:SHOWN]!r}: expected a path, or {{"bytes": in base64}}')
        return Path(self.folder) / path


class ImagesOfRows:
    """The images of packed rows: of each document in a row, in their order.

    Args:
      sources: by name.
      plans: of each (source, split).
      most: images of a row, at most."""

    def __init__(self, sources: Mapping[str, Source], plans: Mapping[Key, PackingPlan], most: int):
        self.sources, self.plans, self.most = sources, plans, most  # the plans' rows hold whole documents
        self.size = max(s.size for s in sources.values() if isinstance(s, Captions))
        seeing = [key for key in plans if isinstance(sources[key[0]], Captions)]
        self._documents = {key: sources[key[0]].documents(key[1]) for key in seeing}

    @classmethod
    def of_sources(
        cls,
        sources: Mapping[str, Source],
        stores: Mapping[Key, TokenStore],
        plans: Mapping[Key, PackingPlan],
        width: int,
    ) -> "ImagesOfRows | None":
        """Those of a mixture; None where no source has images. Raises ValueError where sources differ in their
        size."""
        seeing = [source for source in sources.values() if isinstance(source, Captions)]
        if not seeing:
            return None
        if len(kinds := {(source.size, source.image_tokens) for source in seeing}) > 1:
            raise ValueError(
                f"sources with images of {len(kinds)} kinds: expected one size, and the same tokens, in all"
            )
        for (name, split), store in stores.items():
            if not isinstance(sources[name], Captions):
                continue
            if len(documents := sources[name].documents(split)) != len(store):
                raise ValueError(
                    f"source {name!r}, {split}: {len(documents) - len(store):,} of {len(documents):,} records have no "
                    "answer, so that images cannot be told by their numbers: remove them"
                )
        return cls(sources, plans, max(_most(sources[key[0]], store, width) for key, store in stores.items()))

    def of(self, keys: Sequence[Key], numbers: np.ndarray, seed: int | None, rows: Rows) -> dict[str, np.ndarray]:
        """{"images": uint8 [R, M, size, size, 3]} of rows; those of a row that has fewer than M end in black.

        Args:
          keys: the source and split of each row.
          numbers: of the rows in their plans.
          seed: of the order of documents; None is that of the held-out rows.
          rows: their tokens.

        Raises ValueError where a document's images are not whole in a row."""
        out = np.zeros((len(keys), self.most, self.size, self.size, 3), np.uint8)
        for row, (key, number) in enumerate(zip(keys, numbers, strict=True)):
            source = self.sources[key[0]]
            if not isinstance(source, Captions):
                continue
            inside = self.plans[key].documents(np.array([number]), seed)[0]
            found = [source.read(self._documents[key][int(n)]) for n in dict.fromkeys(inside[inside >= 0].tolist())]
            images = np.concatenate(found) if found else out[row, :0]
            places = int((rows.tokens[row] == source.image_tokens.image).sum())
            if places != len(images) * source.image_tokens.count:
                raise ValueError(
                    f"source {key[0]!r}: a row has {places:,} places for {len(images)} images of "
                    f"{source.image_tokens.count:,}: expected documents shorter than seq_len, and packing=Pack()"
                )
            out[row, : len(images)] = images
        return {"images": out}


def _most(source: Source, store: TokenStore, width: int) -> int:
    """The most images that a row of `width` tokens can have: by the document with the most for its length."""
    if not isinstance(source, Captions):
        return 0
    ends = np.cumsum(np.asarray(store.tokens) == source.image_tokens.image)
    counts = np.diff(np.concatenate([[0], ends])[store.offsets]) / source.image_tokens.count
    return int(max(1, (width * counts / store.lengths).max()))
