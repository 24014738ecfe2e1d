"""Whatever byte of a header is damaged, wherever a file ends: it is read, or refused in words that name the file."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.pretrained.files import INDEX, SINGLE, Safetensors, TensorToWrite, write
from lm.pretrained.gguf import GGUF, fields
from lm.text import headers
from tests.pretrained.test_gguf import llama_file


def safetensors(folder: Path) -> Path:
    """Three tensors in one file."""
    write(
        folder,
        [TensorToWrite(n, (4, 3), lambda: np.ones((4, 3), np.float32)) for n in ("a.weight", "b", "c.norm.bias")],
    )
    return folder / SINGLE


def read_all(source: Any) -> None:
    for name in source:
        assert source.read(name).shape == source.shape(name)


@contextmanager
def in_words(file: Path) -> Iterator[None]:
    """A ValueError with the name of the file, or nothing."""
    try:
        yield
    except ValueError as error:
        assert file.name in str(error)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 250), value=st.integers(0, 255), end=st.integers(0, 600))
def test_safetensors(at: int, value: int, end: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = safetensors(tmp_path_factory.mktemp("s"))
    data = bytearray(file.read_bytes())
    data[at] = value
    file.write_bytes(data[:end])
    with in_words(file):
        read_all(Safetensors(file.parent))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return llama_file(tmp_path_factory.mktemp("whole") / "x.gguf").read_bytes()


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 2300), value=st.integers(0, 255), cut=st.integers(0, 3000) | st.just(1 << 30))
def test_gguf(at: int, value: int, cut: int, whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("g") / "x.gguf"
    data = bytearray(whole)
    data[at] = value
    file.write_bytes(data[:cut])
    with in_words(file):
        found = GGUF(file)
        kind, said = fields(found)
        with in_words(file):
            read_all(found)
        with suppress(ValueError):  # without the name, which `open_checkpoint` adds
            kind.architecture.read(said)


def metadata(path: Path, value: bytes) -> Path:
    """A GGUF file without tensors, with one pair of metadata, "k" and `value`: its kind, then its bytes."""
    numbers = [3, 0, 1, 1]
    head = b"".join(n.to_bytes(size, "little") for n, size in zip(numbers, (4, 8, 8, 8), strict=True))
    path.write_bytes(b"GGUF" + head + b"k" + value)
    return path


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ((99).to_bytes(4, "little"), "is damaged: its metadata has a value of kind 99"),
        ((9).to_bytes(4, "little") + ((9).to_bytes(4, "little") + (1).to_bytes(8, "little")) * 40, "is damaged"),
        ((8).to_bytes(4, "little") + (1 << 60).to_bytes(8, "little"), "is cut off or damaged"),
        (b"", "is cut off or damaged"),
    ],
)
def test_metadata_that_are_none(value: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"x.gguf {said}"):
        GGUF(metadata(tmp_path / "x.gguf", value))


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"", "is not a GGUF file"),
        (b"PK\3\4" * 9, "is not a GGUF file"),
        (b"GGUF\0\0\0\3" * 9, "GGUF version 50331648"),
    ],
)
def test_another_file(start: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(start)
    with pytest.raises(ValueError, match=f"x.gguf is {said.removeprefix('is ')}"):
        GGUF(tmp_path / "x.gguf")


def test_an_alignment_that_is_none(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_uint32("general.alignment", 0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"x.gguf is damaged: general.alignment=0"):
        GGUF(tmp_path / "x.gguf")


def header(text: bytes, data: int = 8) -> bytes:
    """A safetensors file with this header, and `data` bytes after it."""
    return len(text).to_bytes(8, "little") + text + bytes(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 5000 + b"]" * 5000, "its header is nested too deeply"),
        (b'{"a":' * 2000 + b"0" + b"}" * 2000, "its header is nested too deeply"),
        (b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}', "does not say where tensors lie"),
        (b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 8]}}', "does not say where tensors lie"),
        (b'{"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}', "does not say where tensors lie"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0.0, 8.0]}}', "does not say where tensors lie"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}', "does not say where tensors lie"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"1," * 70 + b'2], "data_offsets": [0, 8]}}', "where tensors lie"),
        (b'{"a": 3}', "does not say where tensors lie"),
        (b"[]", "does not say where tensors lie"),
    ],
)
def test_headers_that_are_none(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(header(text))
    with pytest.raises(ValueError, match=f"{SINGLE} is damaged: .*{said}") as caught:
        Safetensors(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_index_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{INDEX} is damaged: expected JSON with a weight_map"):
        Safetensors(tmp_path)


def test_a_header_and_its_arrays_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_ITEMS", 3)
    array = [n.to_bytes(size, "little") for n, size in ((9, 4), (0, 4), (4, 8))]
    with pytest.raises(ValueError, match=r"x.gguf: its metadata has an array of 4: expected at most 3"):
        GGUF(metadata(tmp_path / "x.gguf", b"".join(array) + bytes(4)))
    monkeypatch.setattr(headers, "MAX_HEADER_BYTES", 30)
    with pytest.raises(ValueError, match=r"x.gguf: its header is longer than 30 bytes, which are read at most"):
        GGUF(tmp_path / "x.gguf")
