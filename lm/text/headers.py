"""Headers of model files: where each tensor of a safetensors or GGUF file lies, and the metadata of a GGUF file.

    safetensors (github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the header (name ->
    dtype, shape, data_offsets), the data. Nothing in it is executed.
    GGUF (github.com/ggml-org/ggml, docs/gguf.md): metadata as typed key-value pairs, tensor infos, the data, aligned.

Both are read here and not by their packages: `gguf` takes seconds for the strings of a vocabulary, and neither names
what is damaged. `gguf` also leaves out empty arrays when it writes, such as the merges of single bytes. lm/pretrained/
reads and writes the tensors.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {  # of safetensors
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "U8": np.uint8,
    "I64": np.int64,
    "I32": np.int32,
    "BOOL": np.bool_,
}
MAX_HEADER_BYTES = 100_000_000  # as safetensors' own reader has it
MAX_AXES = 8  # more is damage; GGUF has at most 4

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32  # of tensors in bytes, where general.alignment does not say otherwise
MAX_DEPTH = 8  # arrays of arrays: more is damage
MAX_ITEMS = 1 << 22  # of an array; the longest are vocabularies and their merges


class SafetensorsInfo(NamedTuple):
    """Where a tensor lies: its file, dtype (a key of DTYPES), shape and first byte in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


def read_safetensors_header(file: Path) -> dict[str, SafetensorsInfo]:
    """Where each tensor of `file` lies. Raises ValueError for a file that is damaged, cut off, or of another kind."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = struct.unpack("<Q", opened.read(8).ljust(8, b"\xff"))[0]
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(
                f"{file} is not a safetensors file, or is cut off: its header would end beyond its {size} bytes"
            )
        try:
            header = json.loads(opened.read(length))
            infos = {name: _info(file, 8 + length, entry) for name, entry in header.items() if name != "__metadata__"}
        except RecursionError:
            raise ValueError(f"{file} is damaged: its header is nested too deeply") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged: its header does not say where tensors lie ({error})") from None
    for name, (_, dtype, shape, start) in infos.items():
        if dtype not in DTYPES:
            raise ValueError(f"{file}: tensor {name} is stored as {dtype}: expected one of {', '.join(DTYPES)}")
        end = start + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        if end > size:
            raise ValueError(f"{file} is cut off: tensor {name} ends at byte {end} of {size}")
    return infos


def _info(file: Path, data_start: int, entry: Mapping[str, Any]) -> SafetensorsInfo:
    """Where the tensor of one `entry` lies, in a file whose data begin at `data_start`. Raises ValueError."""
    (start, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), str(entry["dtype"])
    if not all(type(n) is int and n >= 0 for n in (start, end, *shape)) or len(shape) > MAX_AXES:
        raise ValueError(f"data_offsets={entry['data_offsets']!r:.40} and shape={entry['shape']!r:.40}")
    if dtype in DTYPES and end - start != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
        raise ValueError(f"{end - start} bytes for shape {list(shape)} of {dtype}")
    return SafetensorsInfo(file, dtype, shape, data_start + start)


class GGUFInfo(NamedTuple):
    """Where a tensor lies: its type by GGML's code, its shape and its first byte in the file."""

    ggml_type: int
    shape: tuple[int, ...]
    start: int


class GGUFHeader(NamedTuple):
    """What comes before the data of a GGUF file: the metadata, and name -> where that tensor lies."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFInfo]


def read_gguf_header(file: Path) -> GGUFHeader:
    """The header of `file`. Raises ValueError for a file that is damaged, cut off, or of another kind.

    That a tensor's data end within the file is for the reader of the data to check: it knows the size of its type."""
    data: np.ndarray = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
    cursor = _Cursor(file, data[:MAX_HEADER_BYTES].data)
    if data[:4].tobytes() != MAGIC:
        raise ValueError(f"{file} is not a GGUF file: it does not begin with GGUF")
    cursor.take(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise ValueError(f"{file} is GGUF version {version}: expected 2 or 3, little-endian")
    tensor_count, pairs = cursor.number("Q"), cursor.number("Q")
    metadata = {cursor.string(): cursor.value(cursor.number("I")) for _ in range(pairs)}
    infos = dict(cursor.tensor_info() for _ in range(tensor_count))
    align = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(align, int) or align < 1:
        raise ValueError(f"{file} is damaged: general.alignment={align!r}")
    data_start = -(-cursor.at // align) * align
    return GGUFHeader(metadata, {name: info._replace(start=data_start + info.start) for name, info in infos.items()})


class _Cursor:
    """A position in the bytes of a GGUF header, which are little-endian. Raises ValueError past their end."""

    def __init__(self, file: Path, data: memoryview):
        self.file, self.data, self.at = file, data, 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        if size > len(self.data) - self.at:
            raise ValueError(
                f"{self.file} is cut off or damaged: its header would end past its {len(self.data)} bytes"
                if len(self.data) < MAX_HEADER_BYTES
                else f"{self.file}: its header is longer than {MAX_HEADER_BYTES} bytes, which are read at most"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        """One number, by the code of `struct`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        """A length and as many bytes of UTF-8."""
        return str(self.take(self.number("Q")), "utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of the metadata, of GGUF's value type `kind`."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY and depth < MAX_DEPTH:
            inner, count = self.number("I"), self.number("Q")
            if count > MAX_ITEMS:
                raise ValueError(f"{self.file}: its metadata has an array of {count}: expected at most {MAX_ITEMS}")
            if inner in SCALARS:
                raw = self.take(count * struct.calcsize(f"<{SCALARS[inner]}"))
                return list(struct.unpack(f"<{count}{SCALARS[inner]}", raw))
            return [self.value(inner, depth + 1) for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"{self.file} is damaged: its metadata has a value of kind {kind}")
        number = self.number(SCALARS[kind])
        return float(str(np.float32(number))) if SCALARS[kind] == "f" else number  # 1e-05, not 9.999999747378752e-06

    def tensor_info(self) -> tuple[str, GGUFInfo]:
        """A tensor's name and where it lies, its start counted from that of the data."""
        name, axes = self.string(), self.number("I")
        if axes > MAX_AXES // 2:
            raise ValueError(f"{self.file} is damaged: tensor {name} has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        return name, GGUFInfo(self.number("I"), shape, self.number("Q"))


def gguf_header(metadata: Mapping[str, Any], tensors: Mapping[str, GGUFInfo]) -> bytes:
    """What comes before the data of a GGUF file, padded to where they begin; starts are counted from there.

    Values are bool, int (32 bits, unsigned), float (32 bits), str, lists of str or bool, and numpy arrays."""
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    parts += [part for key, value in metadata.items() for part in (_string(key), _typed(value))]
    for name, (kind, shape, start) in tensors.items():
        parts += [_string(name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])]
        parts.append(struct.pack("<IQ", kind, start))
    data = b"".join(parts)
    return data + bytes(-len(data) % ALIGNMENT)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    """A value of the metadata, after its type."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list) and value and isinstance(value[0], bool):
        value = np.asarray(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    codes = {code: kind for kind, code in SCALARS.items()}
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, codes[value.dtype.char], len(value)) + value.tobytes()
    code = {bool: "?", int: "I", float: "f"}[type(value)]
    return struct.pack(f"<I{code}", codes[code], value)
