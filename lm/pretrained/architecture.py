"""A published architecture: its config.json, read and written, and the table of its tensors."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig, Rewired, Slot
from lm.model.experts import Experts
from lm.model.mixer import Mixer
from lm.model.parts import ACTIVATIONS
from lm.model.positions import Learned
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Identity, Linear, Row, row

# transformers' names of activations -> ours; of several for one, the first is written
ACTIVATION = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
    "tanh": "tanh",
}
OURS = {ours: theirs for theirs, ours in reversed(ACTIVATION.items())}
assert set(OURS) == set(ACTIVATIONS)
T = TypeVar("T")


@dataclass(frozen=True)
class Architecture:
    """A published architecture.

    Args:
      name, model_type: of config.json ("LlamaForCausalLM", "llama").
      defaults: what its class of transformers takes a missing field for (lm/pretrained/defaults.py).
      read: the fields of a config.json -> the model's config. Raises ValueError for what is not supported.
      write: the inverse. Raises ValueError for a config that it cannot express.
      rows: a config -> the table of tensors.
      ignored: a pattern of tensors that are not read: buffers, copies of tied ones.
      other_heads: a pattern of tensors of other tasks, which are not read either, with a warning.
      unused: a pattern of tensors that its class has and that no number of ours depends on: they are written back.
      prefix: of the tensors' names, missing in a checkpoint of the bare model.
      renamed: (old, new) parts of tensors' names.
      source: its view of a file's tensors (lm/pretrained/stacked.py).
    """

    name: str
    model_type: str
    defaults: Mapping[str, Any]
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rows: Callable[[ModelConfig], Sequence[Row]]
    ignored: str = r"(?!)"
    other_heads: str = r"(?!)"
    unused: str = r"(?!)"
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    source: Callable[[Any], Any] = lambda source: source

    def fields(self, values: Mapping[str, Any], file: Path | str) -> Fields:
        """The fields that `read` reads: `values`, of a config.json called `file`."""
        return Fields(values, file, self.defaults)

    def ignores(self, name: str) -> bool:
        """Whether the tensor `name` is not read."""
        return any(re.search(pattern, name) for pattern in (self.ignored, self.other_heads, self.unused))

    def can_express(self, cfg: ModelConfig) -> bool:
        """Whether a config.json of this architecture can express `cfg`."""
        try:
            return canonical(self.read(self.fields(self.write(cfg), self.name))) == canonical(cfg)
        except ValueError:
            return False


def canonical(cfg: ModelConfig) -> ModelConfig:
    """`cfg` in a canonical form, equal for configs of the same forward pass: each layer by itself, and default
    values for what only training reads, and for a context that is no more than a limit."""
    positions = replace(cfg.positions, init_scale=0.02) if isinstance(cfg.positions, Learned) else cfg.positions

    def kind(slot: Slot) -> LayerKind:
        own = positions if slot.positions == cfg.positions else slot.positions
        parts = _canonical_mixer(slot.mixer), own, _canonical_ffn(slot.ffn)
        return Rewired(slot.window, *parts, slot.window_after, slot.wiring)

    return replace(
        cfg,
        context=cfg.context if isinstance(positions, Learned) else 1,
        encoder=canonical(cfg.encoder) if cfg.encoder else None,
        vision=replace(cfg.vision, tower=canonical(cfg.vision.tower)) if cfg.vision else None,
        attention=_canonical_mixer(cfg.attention),
        ffn=_canonical_ffn(cfg.ffn),
        positions=positions,
        pattern=tuple(map(kind, cfg.by_layer[-1:])),
        first_layers=tuple(map(kind, cfg.by_layer[:-1])),
        tied=cfg.tied or not cfg.output.logit_count(cfg.vocab),
        dropout=0.0,
        init_scale=0.02,
        multi_token=replace(cfg.multi_token, weight=0.0) if cfg.multi_token else None,
    )


def _canonical_mixer(mixer: Mixer) -> Mixer:
    """A mixer in a canonical form, equal for mixers of the same forward pass."""
    if not isinstance(mixer, Attention):
        return mixer
    scale = round(mixer.scale or mixer.head_dim**-0.5, 12)
    return replace(mixer, kv_heads=mixer.kv, scale=scale, out_bias=mixer.bias and mixer.out_bias)


def attention_of(cfg: ModelConfig) -> Attention:
    """The attention of all layers. Raises ValueError for a model with another mixer."""
    return require(cfg.attention, Attention)


def require(value: Any, kind: type[T]) -> T:
    """`value`, which must be a `kind` in this architecture. Raises ValueError for another."""
    if not isinstance(value, kind):
        raise ValueError(f"{value} where the architecture has {kind.__name__}")
    return value


def _canonical_ffn(ffn: Any) -> Any:
    return replace(ffn, load_balance_weight=0.0, router_z_weight=0.0) if isinstance(ffn, Experts) else ffn


def shortest_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest pattern of these layers."""
    for period in range(1, len(kinds) + 1):
        if all(kind == kinds[i % period] for i, kind in enumerate(kinds)):
            return tuple(kinds[:period])
    raise AssertionError("no layers")


def layer_stacks(kinds: Sequence[LayerKind]) -> dict[str, tuple[LayerKind, ...]]:
    """These layers as first layers and a repeating pattern, by ModelConfig's names of the two: as few kinds as will
    do."""
    splits = [(kinds[:first], shortest_pattern(kinds[first:])) for first in range(len(kinds))]
    first, pattern = min(splits, key=lambda split: len(split[0]) + len(split[1]))
    return {"first_layers": tuple(first), "pattern": pattern}


def layer_kinds(fields: Fields, layers: int, windowed: LayerKind, full: Callable[[int], bool]) -> tuple[LayerKind, ...]:
    """The pattern of the field `layer_types`; where it is missing, layer i has full attention if `full(i)`, else is
    `windowed`. Raises ValueError for other types, and for windowed layers without a window."""
    types = fields.take("layer_types")
    if types is None:
        types = ["full_attention" if full(i) else "sliding_attention" for i in range(layers)]
    known = {"full_attention": LayerKind(), "sliding_attention": windowed}
    if not isinstance(types, list) or len(types) != layers or not all(str(t) in known for t in types):
        raise fields.unsupported("layer_types", types, f"a list of {layers}, each {' or '.join(known)}")
    if "sliding_attention" in types and not windowed.window:
        raise fields.unsupported("sliding_window", None, "a window, since some layers have sliding_attention")
    return shortest_pattern([known[t] for t in types])


def layer_windows(fields: Fields, layers: int, window: int, full: Callable[[int], bool]) -> list[int]:
    """The window of each layer (0: none) by the field `layer_types`, which is read as `layer_kinds` does; one of 0 is
    none where the field asks for it."""
    types = fields.take("layer_types")
    types = ["full_attention" if full(i) else "sliding_attention" for i in range(layers)] if types is None else types
    known = {"full_attention": 0, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != layers or not all(str(t) in known for t in types):
        raise fields.unsupported("layer_types", types, f"a list of {layers}, each {' or '.join(known)}")
    return [known[t] for t in types]


def layer_types(cfg: ModelConfig) -> list[str]:
    """The field that `layer_kinds` reads."""
    return ["sliding_attention" if slot.window else "full_attention" for slot in cfg.by_layer]


def window(cfg: ModelConfig) -> int | None:
    """The one window of `cfg`, or None. Raises ValueError for several."""
    windows = {slot.window for slot in cfg.slots.values()} - {0}
    if len(windows) > 1:
        raise ValueError(f"windows of several sizes: {sorted(windows)}")
    return windows.pop() if windows else None


def hf_activation(name: str) -> str:
    """transformers' name of our activation `name`."""
    return OURS[name]


def layers_with(fields: Fields, name: str, layers: int) -> list[int]:
    """The field `name`, a list of numbers of layers; null is none. Raises ValueError for anything else."""
    found = fields.take(name) or []
    if not isinstance(found, list) or not all(type(i) is int and 0 <= i < layers for i in found):
        raise fields.unsupported(name, found, f"a list of layers from 0 to {layers - 1}")
    return found


def linear(ours: str, theirs: str, inputs: int = 1) -> Row:
    """The weight of a torch.nn.Linear with `inputs` leading input axes in ours."""
    return row(ours, theirs, Linear(inputs))


def same(ours: str, theirs: str) -> Row:
    """A tensor that is the same in both."""
    return row(ours, theirs, Identity())


def read_sizes(fields: Fields, names: Mapping[str, str]) -> dict[str, Any]:
    """`names` (our name -> their field) as our name -> the integer in the field."""
    return {ours: fields.integer(theirs) for ours, theirs in names.items()}
