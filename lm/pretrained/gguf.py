"""GGUF, llama.cpp's format: metadata and tensors, often quantised, in one file.

Blocks of quantised numbers are unpacked by the `gguf` package. Metadata becomes the fields of the config.json that says
the same, so that it is read, and refused, as that is.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from lm.pretrained import gemma, gpt2, llama
from lm.pretrained.architecture import Architecture, linear, same
from lm.pretrained.fields import Fields
from lm.pretrained.mapped import MappedFile
from lm.pretrained.rows import (
    Concatenated,
    Flattened,
    Identity,
    Kernel,
    PlusOne,
    RotaryInterleaved,
    RotaryInterleavedBias,
    Row,
    Transposed,
    row,
)
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


AT = "blk.{i}."
FLATTENED = Flattened()


def _rows(
    q_and_k: Callable[[str, str], Row],
    norm: Callable[[str, str], Row],
    sandwich: bool = False,
    bias: Identity = FLATTENED,
) -> list[Row]:
    """The table of an architecture, given the rows of its queries and keys, and of its norms, and the conversion of
    the `bias` of queries and keys."""
    post = [
        norm("layers/*/attention_post_norm_scale", AT + "post_attention_norm.weight"),
        norm("layers/*/ffn_post_norm_scale", AT + "post_ffw_norm.weight"),
    ]
    return [
        same("stem/tokens", "token_embd.weight"),
        norm("layers/*/attention_norm_scale", AT + "attn_norm.weight"),
        q_and_k("layers/*/query", AT + "attn_q.weight"),
        q_and_k("layers/*/key", AT + "attn_k.weight"),
        linear("layers/*/value", AT + "attn_v.weight"),
        *(row(f"layers/*/{n}_bias", f"{AT}attn_{n[0]}.bias", bias) for n in ("query", "key")),
        row("layers/*/value_bias", AT + "attn_v.bias", FLATTENED),
        linear("layers/*/out", AT + "attn_output.weight", inputs=2),
        same("layers/*/out_bias", AT + "attn_output.bias"),
        norm("layers/*/query_norm_scale", AT + "attn_q_norm.weight"),
        norm("layers/*/key_norm_scale", AT + "attn_k_norm.weight"),
        norm("layers/*/ffn_norm_scale", AT + "ffn_norm.weight"),
        *(linear(f"layers/*/{n}", f"{AT}ffn_{n}.weight") for n in ("gate", "up", "down")),
        *(same(f"layers/*/{n}_bias", f"{AT}ffn_{n}.bias") for n in ("gate", "up", "down")),
        *(post if sandwich else []),
        norm("head/norm_scale", "output_norm.weight"),
        linear("head/kernel", "output.weight"),
    ]


def _plus_one(ours: str, theirs: str) -> Row:
    return row(ours, theirs, PlusOne())


PERMUTED = _rows(lambda ours, theirs: row(ours, theirs, RotaryInterleaved()), same, bias=RotaryInterleavedBias())
PLAIN = _rows(linear, same)
GEMMA = _rows(linear, _plus_one)
SANDWICH = _rows(linear, _plus_one, sandwich=True)
QKV = "layers/*/query{0} layers/*/key{0} layers/*/value{0}"
GPT2 = [
    same("stem/tokens", "token_embd.weight"),
    same("stem/positions", "position_embd.weight"),
    row(QKV.format(""), AT + "attn_qkv.weight", Transposed(Concatenated(Kernel()))),
    row(QKV.format("_bias"), AT + "attn_qkv.bias", Concatenated(Flattened())),
    linear("layers/*/out", AT + "attn_output.weight", inputs=2),
    same("layers/*/out_bias", AT + "attn_output.bias"),
    *(linear(f"layers/*/{n}", f"{AT}ffn_{n}.weight") for n in ("up", "down")),
    *(same(f"layers/*/{n}_bias", f"{AT}ffn_{n}.bias") for n in ("up", "down")),
    *(same(f"layers/*/attention_norm_{n}", f"{AT}attn_norm.{k}") for n, k in (("scale", "weight"), ("bias", "bias"))),
    *(same(f"layers/*/ffn_norm_{n}", f"{AT}ffn_norm.{k}") for n, k in (("scale", "weight"), ("bias", "bias"))),
    same("head/norm_scale", "output_norm.weight"),
    same("head/norm_bias", "output_norm.bias"),
    linear("head/kernel", "output.weight"),
]

# key of the metadata, without its architecture -> field of config.json
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}
GPT2_FIELDS = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
LLAMA_BIASES = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_down.bias"}
REQUIRED = tuple(FIELDS.values())[:5] + ("rms_norm_eps",)
ROPE = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
OLD = {"rope.scale_linear": "rope.scaling.factor"}  # keys of old files -> today's
INERT = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}  # redundant
PATTERN = "attention.sliding_window_pattern"  # whether each layer has a window, or in how many layers one has none
HEAD_SIZES = {"attention.value_length", "rope.dimension_count"}  # must equal the head size
OFF = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True, "rope.scaling.attn_factor": 1.0}


class GGUFArchitecture(NamedTuple):
    """A GGUF architecture.

    Args:
      architecture: the published one.
      rows: the table of its tensors.
      largest: the number of layers of the family's largest model, whose queries are scaled by 1/sqrt(D/N) rather than
        1/sqrt(H), which GGUF does not record; 0: none is.
      required: fields for whose keys llama.cpp has no defaults.
      keys: key of the metadata -> field of config.json.
      rotary: whether positions are rotary.
      biases: field of config.json -> a tensor that is there where it is true.
      divisors: whether llama.cpp reads those of Llama 3.1's scaling.
      windows_of: in how many layers one has no window, where the key PATTERN does not say; 0: llama.cpp has no windows.
      always_tied: whether llama.cpp reads no output of its own.
    """

    architecture: Architecture
    rows: list[Row]
    largest: int = 0
    required: tuple[str, ...] = REQUIRED
    keys: Mapping[str, str] = FIELDS
    rotary: bool = True
    biases: Mapping[str, str] = MappingProxyType({})
    divisors: bool = False
    windows_of: int = 0
    always_tied: bool = False


ARCHITECTURES = {
    "gpt2": GGUFArchitecture(gpt2.GPT2, GPT2, required=tuple(GPT2_FIELDS.values()), keys=GPT2_FIELDS, rotary=False),
    "llama": GGUFArchitecture(llama.LLAMA, PERMUTED, biases=LLAMA_BIASES, divisors=True),
    "qwen2": GGUFArchitecture(llama.QWEN2, PLAIN),
    "qwen3": GGUFArchitecture(llama.QWEN3, PLAIN),
    "gemma": GGUFArchitecture(gemma.GEMMA, GEMMA, always_tied=True),
    "gemma2": GGUFArchitecture(gemma.GEMMA2, SANDWICH, largest=46, windows_of=2, always_tied=True),
    "gemma3": GGUFArchitecture(
        gemma.GEMMA3, SANDWICH, largest=62, windows_of=6, required=(*REQUIRED, "sliding_window")
    ),
}


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
    if name not in ARCHITECTURES:
        raise ValueError(f"{file.path}: unknown architecture {name!r}: known: {', '.join(ARCHITECTURES)}")
    architecture, start = ARCHITECTURES[name], f"{name}."
    named = {key.removeprefix(start): value for key, value in file.metadata.items() if key.startswith(start)}
    own = {OLD.get(key, key): value for key, value in named.items()}
    return architecture, architecture.architecture.fields(
        _config_fields(file, architecture, own), f"{file.path} (as config.json)"
    )


def _config_fields(file: Header, architecture: GGUFArchitecture, own: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json; `own` are the keys of the architecture."""
    config = {field: own[key] for key, field in architecture.keys.items() if key in own}
    checked = Fields(config, f"{file.path} (as config.json)")
    for field in architecture.required:
        checked.take(field)
    expected, known = dict(OFF), {*architecture.keys, *INERT}
    if architecture.rotary:
        config |= _rotary_fields(file, architecture, own, checked)
        expected |= dict.fromkeys(HEAD_SIZES, config["head_dim"])
        known |= {*ROPE, PATTERN} if architecture.windows_of else set(ROPE)
    for key, value in own.items():
        if key not in known and expected.get(key) != value:
            raise ValueError(f"{file.path}: {key}={value!r} is not supported: it could change the results")
    if "token_embd.weight" not in file:
        raise ValueError(f"{file.path}: tensor token_embd.weight is missing: it is stem/tokens")
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
    scaling = {field: own[key] for key, field in ROPE.items() if key in own}
    if scaling.setdefault("rope_type", "linear" if "factor" in scaling else "none") != "none":
        config["rope_scaling"] = scaling
    if "rope_freqs.weight" in file:
        config["rope_scaling"] = _llama3(file, checked.number("rope_theta", 10000.0, above=1), head_dim)
    return config


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
