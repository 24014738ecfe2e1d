"""Records that hold images, whose bytes a document keeps in base64; and those that name the files of images."""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.records import Parquet, Tfds, extra
from lm.data.source import SPLITS, Source, content, text_of
from lm.machine.cache import cache_dir, is_complete, locked, write_folder


def with_images(records: Source) -> Source:
    """The records of a Parquet or Tfds with their images, {"bytes": in base64}; other sources as they are."""
    kinds: dict[type, type[Source]] = {Parquet: _ParquetImages, Tfds: _TfdsImages}
    kind = kinds.get(type(records))
    return kind(**{field.name: getattr(records, field.name) for field in fields(records)}) if kind else records


class _ParquetImages(Parquet):
    """Rows as HF's `datasets` writes them, whose images are structs of "bytes" and "path", or binary columns."""

    def _document(self, record: dict[str, Any], where: str) -> str:
        return text_of(_in_base64(record), self.field, where)


class _TfdsImages(Tfds):
    """Examples whose Image features are read as the files that they were stored as."""

    def _records(self, builder: Any, split: str) -> Any:
        return builder.as_data_source(split=split, decoders=_undecoded(builder.info.features))

    def _document(self, record: dict[str, Any], where: str) -> str:
        return text_of(_in_base64(record), self.field, where)


def _undecoded(features: Any) -> Any:
    """TFDS's decoders that leave the images of `features` as they are stored; None where there are none."""
    tfds = extra("tensorflow_datasets")
    if isinstance(features, tfds.features.Image):
        # of several images too, which TFDS's own has not for NumPy (findings/tfds-skip-decoding-list.sh)
        own = {"decode_batch_example_np": lambda self, example: example}
        return type("Stored", (tfds.decode.SkipDecoding,), own)()
    if isinstance(features, tfds.features.Sequence):
        return _undecoded(features.feature)
    if isinstance(features, tfds.features.FeaturesDict):
        inner = {name: found for name, one in features.items() if (found := _undecoded(one)) is not None}
        return inner or None
    return None


def _in_base64(value: Any) -> Any:
    """A record with the bytes of its images in base64, as in a line of JSON; bytes that are UTF-8 are texts."""
    if isinstance(value, Mapping):
        inner = {name: _in_base64(one) for name, one in value.items() if name != "bytes"}
        return inner | ({"bytes": _base64(value["bytes"])} if "bytes" in value else {})
    if isinstance(value, list | tuple) or isinstance(value, np.ndarray) and value.dtype == object:
        return [_in_base64(one) for one in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"bytes": _base64(value)}
    return value


def _base64(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


# ---------------------------------------------------------------- files that records name


def path_of(image: Any) -> str:
    """The path in a record's image, where it is a file's; else ""."""
    if isinstance(image, Mapping) and image.get("bytes") is None:
        image = image.get("path")
    return image if isinstance(image, str) else ""


def named_files(records: Source, folder: str) -> list[str]:
    """The identity of the content of the files that records name (`content`): a hash of each, or where they have more
    than 64 MiB together, size and mtime. Which they are is read of all records once, and kept in the cache."""
    return content([Path(folder) / path for path in _named(records, records.fingerprint())])


@functools.lru_cache(maxsize=16)
def _named(records: Source, fingerprint: str) -> tuple[str, ...]:
    key = hashlib.sha256(json.dumps(["image paths 1", type(records).__name__, fingerprint]).encode()).hexdigest()[:16]
    folder = cache_dir() / "images" / key
    with locked(folder):
        if not is_complete(folder):
            write_folder(folder, lambda at: _write(at / "paths.json", records))
    return tuple(json.loads((folder / "paths.json").read_text()))


def _write(file: Path, records: Source) -> None:
    found = set()
    for split in SPLITS:
        try:
            documents = records.documents(split)
        except ValueError:  # a split that is empty, or is not there, and is told of where it is read
            continue
        for document in documents:
            try:
                record = json.loads(document)
                images = record["images"] if "images" in record else [record.get("image")]
            except (ValueError, TypeError, AttributeError):  # told of by its number, where it becomes tokens
                continue
            found |= {path_of(image) for image in images if isinstance(images, list)} - {""}
    file.write_text(json.dumps(sorted(found)))
