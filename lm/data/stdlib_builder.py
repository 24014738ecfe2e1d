"""The TFDS builder of the standard library's text: a config for each part, array_record files, split by file."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

ABOUT = {"code": "The .py files of Python's standard library.", "prose": "Its docstrings and the language reference."}


class StdlibText(tfds.core.GeneratorBasedBuilder):
    """Examples {name, text}, splits train and heldout: what `documents(split)` gives."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=part, description=about) for part, about in ABOUT.items()]

    def __init__(self, *, documents: Callable[[str], Iterable[tuple[str, str]]], **options: Any):
        self._documents = documents
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(
            builder=self, description=self.builder_config.description, features=features, disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {split: self._generate_examples(split) for split in ("train", "heldout")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        for i, (name, text) in enumerate(self._documents(split)):
            yield i, {"name": name, "text": text}

    def write(self) -> None:
        """Write the files, without a progress bar and without asking any server."""
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
            self.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def open_split(folder: Path, part: str, split: str) -> Any:
    """The examples of `split` by index, from the files that `write` made under `folder`."""
    found = next((folder / "stdlib_text" / part).iterdir())
    return tfds.builder_from_directory(found).as_data_source(split=split)
