"""Writing a GGUF file: a model as the architecture of llama.cpp that computes the same, with its tokenizer.

What is written is derived from the architecture's config.json and read again before anything is written, as
lm/pretrained/gguf.py reads a file: a model that would come back as another is refused.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm import value
from lm.model.config import ModelConfig
from lm.model.positions import PartialRotary, Rotary
from lm.model.scaling import Linear, Llama3, LongRoPE
from lm.model.transformer import Params
from lm.pretrained import gguf
from lm.pretrained.architecture import attention_of, canonical, require
from lm.pretrained.gguf_tables import ARCHITECTURES, FACTORS, HEAD_SIZES, PATTERN, ROPE, GGUFArchitecture
from lm.pretrained.rows import Tensor, flatten, tensors
from lm.pretrained.save import read_theirs, umask
from lm.text import headers
from lm.text.gguf import NO_VOCABULARY
from lm.text.gguf_export import to_gguf
from lm.text.tokenizer import Tokenizer

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}  # --type -> GGML's name
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # general.file_type
LIMITS = {"F16": 65504.0, "Q8_0": 127 * 65504.0}  # the largest number that a type stores; its scales are float16
BLOCK = 32  # numbers of a row that share a scale in Q8_0
ALWAYS_F32 = ("position_embd.weight", "rope_freqs.weight")
SMALL = ("_exps.bias", "ffn_gate_inp.weight")  # which are too: experts' biases, and routers


class GGUFTensor(NamedTuple):
    """A tensor to write: its name, shape and type by GGML's name, and the function that reads it in float32."""

    name: str
    shape: tuple[int, ...]
    type: str
    read: Callable[[], np.ndarray]


class Description(NamedTuple):
    """What a file will hold: `gguf.fields` reads it as it reads a file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def where(self, name: str) -> str:
        """File and tensor, for a message."""
        return f"{self.path}: tensor {name}"

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32."""
        return self.tensors[name].read()


def save(
    file: Path,
    cfg: ModelConfig,
    params: Params,
    tokenizer: Tokenizer | None,
    stop_ids: Sequence[int] = (),
    type: str = "f32",
) -> list[str]:
    """Write a GGUF file atomically. The names of the tensors that are float16 since their rows are no whole blocks of
    Q8_0.

    Args:
      file: the file, which may hold an earlier model.
      cfg: the model's config.
      params: its parameters.
      tokenizer: None: the file has none.
      stop_ids: the ids that end a text.
      type: of its matrices, one of TYPES; norms and biases are float32.

    Raises:
      ValueError: for a model or tokenizer that llama.cpp cannot express, numbers beyond the type's range, and where
        `file` is something other than a GGUF file.
    """
    file = file.expanduser().resolve()
    if type not in TYPES:
        raise ValueError(f"type {type!r} of a GGUF file: expected one of {', '.join(TYPES)}")
    _check_free(file)
    found = describe(file, cfg, params, TYPES[type])
    about = {"general.type": "model", "general.file_type": FILE_TYPES[type], "general.quantization_version": 2}
    vocabulary: dict[str, Any] = {"tokenizer.ggml.model": NO_VOCABULARY[0]}
    if tokenizer is not None:
        vocabulary = to_gguf(tokenizer, cfg.vocab, stop_ids)
    _write(file, found._replace(metadata={**found.metadata, **about, **vocabulary}))
    return [t.name for t in found.tensors.values() if TYPES[type] == "Q8_0" and t.type == "F16"]


def _check_free(file: Path) -> None:
    if not file.exists():
        return
    if not file.is_file():
        raise ValueError(f"{file} is a directory: expected a new GGUF file")
    with file.open("rb") as opened:
        if opened.read(4) != headers.MAGIC:
            raise ValueError(f"{file} exists and is no GGUF file: choose a new one")


# ---------------------------------------------------------------- the model


def describe(file: Path, cfg: ModelConfig, params: Params, type: str) -> Description:
    """The architecture's keys and the tensors of a model. Raises ValueError where no architecture of GGUF expresses
    `cfg`, naming what differs in the nearest one."""
    leaves = flatten(params)
    near: list[tuple[int, str]] = []
    for name, kind in ARCHITECTURES.items():
        try:
            found = _as(file, name, kind, cfg, leaves, type)
            differences = list(_differences(kind, cfg, kind.architecture.read(gguf.fields(found)[1])))
        except ValueError as error:
            if kind.architecture.can_express(cfg):
                near.append((0, str(error)))
            continue
        if not differences:
            return found
        near.append((len(differences), f"{name} is the nearest, but has {differences[0]}"))
    reason = f": {min(near, key=lambda one: one[0])[1]}" if near else ""
    raise ValueError(
        f"no architecture of GGUF ({', '.join(ARCHITECTURES)}) computes what this model does{reason}; "
        "a directory in place of the .gguf file takes more models"
    )


def _differences(kind: GGUFArchitecture, cfg: ModelConfig, again: ModelConfig) -> Iterator[str]:
    """What a model read from a file has in place of what `cfg` has."""
    if kind.always_tied and not cfg.tied:
        yield "tied=True where this model has False"
    a, b = ({**value.plain(canonical(c)), "context": c.context} for c in (cfg, again))
    layers = zip(*([*c.pop("first_layers"), *c.pop("pattern")] for c in (a, b)), strict=True)
    pairs = [("", a, b), *((f"layer {i}'s ", *pair) for i, pair in enumerate(layers))]
    for prefix, ours, theirs in pairs:
        for path, wanted, given in value.differences(ours, theirs):
            yield f"{prefix}{path}={given} where this model has {wanted}"


def _as(
    file: Path, name: str, kind: GGUFArchitecture, cfg: ModelConfig, leaves: Mapping[str, Any], type: str
) -> Description:
    """`cfg` as the architecture `name`. Raises ValueError for what it has no key or no tensor for."""
    config = _flat_config(kind, cfg)
    own = {key: config[field] for key, field in kind.keys.items() if config.get(field) is not None}
    own = {key: value for key, value in own.items() if key not in kind.passed_over}
    if kind.rotary:
        own |= dict.fromkeys(HEAD_SIZES, config["head_dim"])
    if kind.longrope:
        own |= _longrope_keys(cfg)
    elif config.get("rope_type") in ("linear", "yarn"):
        own |= {key: config[field] for key, field in ROPE.items() if field in config}
    elif config.get("rope_type", "default") not in ("default", "llama3"):
        raise ValueError(f"llama.cpp has no scaling {config['rope_type']}")
    if kind.windows_of and (types := config["layer_types"]) != gguf.layer_types(cfg.layers, kind.windows_of):
        own[PATTERN] = [layer == "sliding_attention" for layer in types]
    own["vocab_size"] = cfg.vocab
    name = kind.called or name
    metadata = {"general.architecture": name} | {f"{name}.{key}": value for key, value in own.items()}
    theirs = tensors(kind.rows, {path: leaf.shape for path, leaf in leaves.items()})
    more = (*_divisors(cfg, kind.divisors), *_longrope_factors(cfg))
    return Description(file, metadata, {t.name: t for t in (*_tensors(theirs, leaves, type), *more)})


def _longrope_keys(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of partial rotary positions and LongRoPE. Raises ValueError for other scalings."""
    positions = require(cfg.positions, Rotary)
    own: dict[str, Any] = {"rope.scaling.original_context_length": cfg.context}
    if isinstance(positions, PartialRotary):
        own["rope.dimension_count"] = positions.turned(attention_of(cfg).head_dim)
    if isinstance(s := positions.scaling, LongRoPE):
        own |= {"rope.scaling.original_context_length": s.original_context}
        own |= {"rope.scaling.attn_factor": s.attention_factor}
    return own


def _longrope_factors(cfg: ModelConfig) -> Iterator[GGUFTensor]:
    positions = cfg.positions
    if isinstance(positions, Rotary) and isinstance(s := positions.scaling, LongRoPE):
        for name, tensor in FACTORS.items():
            values = np.asarray(getattr(s, name), np.float32)
            yield GGUFTensor(tensor, values.shape, "F32", partial(np.asarray, values))


def _flat_config(kind: GGUFArchitecture, cfg: ModelConfig) -> dict[str, Any]:
    """The fields of the architecture's config.json as `gguf.fields` makes them of keys: those of rotary positions
    beside the others, and the context in full."""
    config = kind.architecture.write(cfg)
    if not kind.rotary:
        return config
    both = config["rope_parameters"]
    config |= both.get("full_attention", both)
    config["rope_local_base_freq"] = both.get("sliding_attention", {}).get("rope_theta")
    if isinstance(cfg.positions, Rotary) and isinstance(cfg.positions.scaling, Linear):
        config["original_max_position_embeddings"] = config["max_position_embeddings"]
    return config | {"max_position_embeddings": cfg.context}


def _tensors(theirs: Iterable[Tensor], leaves: Mapping[str, Any], type: str) -> Iterator[GGUFTensor]:
    for tensor in theirs:
        kept = len(tensor.shape) == 1 or tensor.name in ALWAYS_F32 or tensor.name.endswith(SMALL)
        whole = type != "Q8_0" or tensor.shape[-1] % BLOCK == 0
        kind = "F32" if kept else type if whole else "F16"
        yield GGUFTensor(tensor.name, tensor.shape, kind, partial(read_theirs, tensor, leaves))


def _divisors(cfg: ModelConfig, known: bool) -> Iterator[GGUFTensor]:
    """The tensor of Llama 3.1's scaling: by what each frequency is divided. Raises ValueError where it is not `known`
    to the architecture."""
    positions = cfg.positions
    if not isinstance(positions, Rotary) or not isinstance(s := positions.scaling, Llama3):
        return
    if not known:
        raise ValueError("llama.cpp reads no rope_freqs.weight there")
    head_dim = attention_of(cfg).head_dim
    frequencies = positions.theta ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = s.original_context * frequencies / (2 * np.pi)
    keep = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
    divisors = (1 / ((1 - keep) / s.factor + keep)).astype(np.float32)
    yield GGUFTensor("rope_freqs.weight", divisors.shape, "F32", lambda: divisors)


# ---------------------------------------------------------------- the file


def _write(file: Path, found: Description) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "wb") as opened:
            infos, sizes = _infos(found.tensors.values())
            opened.write(headers.gguf_header(found.metadata, infos))
            for tensor, size in zip(found.tensors.values(), sizes, strict=True):
                data = _stored(found, tensor)
                assert len(data) == size, (tensor.name, len(data), size)
                opened.write(data + bytes(-size % headers.ALIGNMENT))
        new.chmod(0o666 & ~umask())
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _infos(found: Iterable[GGUFTensor]) -> tuple[dict[str, headers.GGUFInfo], list[int]]:
    """Where each tensor will lie, counted from the first one, and their sizes in bytes."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    infos, sizes, start = {}, [], 0
    for tensor in found:
        kind = GGMLQuantizationType[tensor.type]
        block, size = GGML_QUANT_SIZES[kind]
        infos[tensor.name] = headers.GGUFInfo(int(kind), tensor.shape, start)
        sizes.append(int(np.prod(tensor.shape)) // block * size)
        start += -(-sizes[-1] // headers.ALIGNMENT) * headers.ALIGNMENT
    return infos, sizes


def _stored(found: Description, tensor: GGUFTensor) -> bytes:
    """The bytes of a tensor in its type. Raises ValueError for numbers beyond its range."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import quantize

    values = np.ascontiguousarray(tensor.read(), np.float32)
    limit = LIMITS.get(tensor.type, np.inf)
    if limit < np.inf and not (np.abs(values) <= limit).all():
        most = np.abs(values).max()
        raise ValueError(f"{found.where(tensor.name)} has {most:g}, which {tensor.type} does not store: take bf16")
    return bytes(quantize(values, GGMLQuantizationType[tensor.type]).tobytes())
