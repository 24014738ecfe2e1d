"""GGUF, llama.cpp's format: metadata and tensors, often quantised, in one file.

Blocks of quantised numbers are unpacked by the `gguf` package. Metadata becomes the fields of the config.json that says
the same, so that it is read, and refused, as that is.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from lm.pretrained.fields import Fields
from lm.pretrained.gguf_tables import (
    ARCHITECTURES,
    FACTORS,
    HEAD_SIZES,
    INERT,
    OFF,
    OLD,
    PATTERN,
    ROPE,
    GGUFArchitecture,
    architecture_of,
)
from lm.pretrained.mapped import MappedFile
from lm.pretrained.rope import longrope_size
from lm.text.gguf import check_whole
from lm.text.headers import read_gguf_header

HALVES = {"F32": "<f4", "F16": "<f2"}  # kinds that NumPy reads where they are
PIECE = 1 << 18  # numbers that are dequantized at a time


class Extent(NamedTuple):
    """The bytes of a tensor: the first one, and how many there are."""

    start: int
    bytes: int


class GGUF:
    """A GGUF file: its metadata, and names to tensors, dequantized to float32 when they are read.

    Raises ValueError for a file that is none, cut off or damaged."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata, self.tensors = read_gguf_header(path)
        check_whole(self.metadata, path)
        self._file = MappedFile(path)
        self._extents = {name: self._extent(name) for name in self.tensors}
        self._last: tuple[str, np.ndarray] | None = None

    def _extent(self, name: str) -> Extent:
        from gguf.constants import GGML_QUANT_SIZES

        code, shape, start = self.tensors[name]
        if code not in list(GGML_QUANT_SIZES):
            raise ValueError(f"{self.where(name)} is stored as kind {code}, which gguf does not know")
        block, size = GGML_QUANT_SIZES[_ggml_type(code)]
        if math.prod(shape[-1:]) % block:
            raise ValueError(f"{self.where(name)} is damaged: rows of {shape[-1:]} are no blocks of {block}")
        end = start + math.prod(shape) // block * size
        if end > len(self._file.bytes):
            raise ValueError(f"{self.where(name)} ends at byte {end} of {len(self._file.bytes)}: the file is cut off")
        return Extent(start, end - start)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def where(self, name: str) -> str:
        """File and tensor, for a message."""
        return f"{self.path}: tensor {name}"

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.tensors[name].shape

    def kind(self, name: str) -> str:
        """How the tensor is stored: GGML's name of its type."""
        return str(_ggml_type(self.tensors[name].ggml_type).name)

    def read(self, name: str) -> np.ndarray:
        """The tensor in float32, or float16 as it is stored. The last one dequantized is kept: it may be read again, in
        parts."""
        kind, raw = self._stored(name)
        if kind.name in HALVES:
            return raw.view(HALVES[kind.name]).reshape(self.shape(name))
        if self._last is None or self._last[0] != name:
            self._last = None  # before there are two
            out = np.empty(self.shape(name), np.float32)
            self.read_into(name, out)
            self._last = name, out
        return self._last[1]

    def read_into(self, name: str, out: np.ndarray) -> None:
        """Write the tensor into `out`, a contiguous float32 array of its shape; blocks are dequantized some at a
        time."""
        from gguf.constants import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        kind, raw = self._stored(name)
        if kind.name in HALVES:
            out[...] = self.read(name)
            return
        (numbers, size), flat = GGML_QUANT_SIZES[kind], out.reshape(-1)
        step = max(1, PIECE // numbers)
        try:
            for block in range(0, len(raw) // size, step):
                piece = dequantize(raw[block * size : (block + step) * size][None], kind)[0]
                flat[block * numbers : block * numbers + len(piece)] = piece
        except NotImplementedError:
            raise ValueError(f"{self.where(name)} is stored as {kind.name}, which gguf does not unpack") from None

    def drop(self, name: str) -> None:
        """Give back the memory of what was read of a tensor, but for the last one dequantized."""
        start, size = self._extents[name]
        self._file.drop(start, start + size)

    def _stored(self, name: str) -> tuple[Any, np.ndarray]:
        """The kind and the bytes of a tensor."""
        start, size = self._extents[name]
        return _ggml_type(self.tensors[name].ggml_type), self._file.bytes[start : start + size]


def _ggml_type(code: int) -> Any:
    from gguf.constants import GGMLQuantizationType

    return GGMLQuantizationType(code)


class Header(Protocol):
    """What `fields` reads: a GGUF file, or one that is to be written."""

    @property
    def path(self) -> Path: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    def __contains__(self, name: object) -> bool: ...
    def where(self, name: str) -> str: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> np.ndarray: ...


def fields(file: Header) -> tuple[GGUFArchitecture, Fields]:
    """The architecture of `file`, and its metadata as the fields of a config.json. Raises ValueError for an
    architecture that is unknown, or a key that is not supported."""
    name = str(file.metadata.get("general.architecture"))
    start = f"{name}."
    architecture = architecture_of(name, bool(file.metadata.get(start + "expert_count")))
    if architecture is None:
        raise ValueError(f"{file.path}: unknown architecture {name!r}: known: {', '.join(ARCHITECTURES)}")
    named = {key.removeprefix(start): value for key, value in file.metadata.items() if key.startswith(start)}
    own = {OLD.get(key, key): value for key, value in named.items()}
    return architecture, architecture.architecture.fields(
        _config_fields(file, architecture, own), f"{file.path} (as config.json)"
    )


def _config_fields(file: Header, architecture: GGUFArchitecture, own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json; `own` are the keys of the architecture."""
    own = {key: value for key, value in own.items() if (key, value) != ("attention.sliding_window", 0)}  # none
    config = {field: own[key] for key, field in architecture.keys.items() if key in own}
    checked = Fields(config, f"{file.path} (as config.json)")
    for field in architecture.required:
        checked.take(field)
    expected, known = dict(OFF), {*architecture.keys, *INERT}
    if architecture.rotary:
        config |= _rotary_fields(file, architecture, own, checked)
        turned = config.get("partial_rotary_factor", 1) * config["head_dim"]
        expected |= dict.fromkeys(HEAD_SIZES, config["head_dim"]) | {"rope.dimension_count": round(turned)}
        known |= {*ROPE, PATTERN} if architecture.windows_of else set(ROPE)
        known |= {"rope.scaling.attn_factor"} if architecture.longrope else set()
    for key, value in own.items():
        if key not in known and expected.get(key) != value:
            raise ValueError(f"{file.path}: {key}={value!r} is not supported: it could change the results")
    if "token_embd.weight" not in file:
        raise ValueError(f"{file.path}: tensor token_embd.weight is missing: it is stem/tokens")
    config |= architecture.constants
    config["vocab_size"] = file.shape("token_embd.weight")[0]
    config["tie_word_embeddings"] = "output.weight" not in file
    config |= {field: True for field, tensor in architecture.biases.items() if tensor in file}
    return config


def _rotary_fields(
    file: Header, architecture: GGUFArchitecture, own: Mapping[str, Any], checked: Fields
) -> dict[str, Any]:
    """The fields of heads and of rotary positions, of which `checked` has those that are keys."""
    config: dict[str, Any] = {}
    width, heads = checked.integer("hidden_size"), checked.integer("num_attention_heads")
    head_dim = config["head_dim"] = checked.integer("head_dim", width // heads)
    config["num_key_value_heads"] = checked.take("num_key_value_heads", heads)
    config["rope_theta"] = checked.take("rope_theta", 10000.0)  # llama.cpp's default for all
    if architecture.largest:
        is_largest = checked.integer("num_hidden_layers") == architecture.largest
        config["query_pre_attn_scalar"] = width // heads if is_largest else head_dim
    if architecture.windows_of and PATTERN in own:
        config["layer_types"] = layer_types(checked.integer("num_hidden_layers"), own[PATTERN])
    if architecture.longrope:
        return config | _longrope(file, own, checked.integer("max_position_embeddings"), head_dim)
    scaling = {field: own[key] for key, field in ROPE.items() if key in own}
    if scaling.setdefault("rope_type", "linear" if "factor" in scaling else "none") != "none":
        config["rope_scaling"] = {**scaling, **architecture.scaling_constants}
    if "rope_freqs.weight" in file:
        config["rope_scaling"] = _llama3(file, checked.number("rope_theta", 10000.0, above=1), head_dim)
    return config


def _longrope(file: Header, own: Mapping[str, Any], context: int, head_dim: int) -> dict[str, Any]:
    """The fields of partial rotary positions and of LongRoPE, whose factors are tensors."""
    turned = own.get("rope.dimension_count", head_dim)
    config: dict[str, Any] = {"partial_rotary_factor": turned / head_dim}
    original = own.get("rope.scaling.original_context_length", context)
    config["original_max_position_embeddings"] = original
    if all(tensor in file for tensor in FACTORS.values()):
        short_and_long = {name: _decimals(file.read(tensor)) for name, tensor in FACTORS.items()}
        config["rope_scaling"] = {"type": "longrope", **short_and_long}
        size = own.get("rope.scaling.attn_factor", 1.0)
        if abs(size - longrope_size(context / original, original)) > 1e-6:
            config["rope_scaling"]["attention_factor"] = size
    return config


def _decimals(values: np.ndarray) -> list[float]:
    """Float32 numbers by their shortest decimals, as a config.json had them."""
    return [float(str(value)) for value in np.asarray(values, np.float32)]


def layer_types(layers: int, pattern: Any) -> list[str]:
    """The field of this name for a value of the key PATTERN. Raises ValueError for another value."""
    if type(pattern) is int and pattern > 0:
        pattern = [(i + 1) % pattern != 0 for i in range(layers)]
    if not isinstance(pattern, list) or not all(isinstance(windowed, bool | int) for windowed in pattern):
        raise ValueError(f"{PATTERN} is {pattern!r:.40}: expected a number of layers, or true or false for each")
    return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]


def _llama3(file: Header, theta: float, head_dim: int) -> dict[str, Any]:
    """The scaling of Llama 3.1, which GGUF stores as the divisors of the frequencies in the tensor rope_freqs.weight.

    Raises ValueError for divisors of another scaling."""
    divisors = np.asarray(file.read("rope_freqs.weight"), np.float64)
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    factor = round(float(divisors.max(initial=1)), 3)
    keep = np.clip((8192 * frequencies / (2 * math.pi) - 1) / 3, 0, 1)
    if divisors.shape != keep.shape or not np.allclose(1 / divisors, (1 - keep) / factor + keep, rtol=1e-3):
        raise ValueError(f"{file.where('rope_freqs.weight')} is no scaling of Llama 3.1: it is not supported")
    limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_type": "llama3", "factor": factor, **limits}
