"""What one published architecture is: its config.json, read and written, and the names of its tensors."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig, Slot
from lm.model.experts import Experts
from lm.model.mixer import Mixer
from lm.model.parts import ACTIVATIONS
from lm.model.positions import Learned
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Linear, Row, Same, row

# their names of activations to ours; the first of several is the one written
ACTIVATION = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
}
OURS = {ours: theirs for theirs, ours in reversed(ACTIVATION.items())}
assert set(OURS) == set(ACTIVATIONS)
T = TypeVar("T")


@dataclass(frozen=True)
class Architecture:
    """`name` and `model_type` as config.json has them; `read` its fields, `write` them of a config; `rows` the table of
    tensors for a config; `ignored` the tensors that say nothing new (buffers, copies of tied ones, heads of other
    tasks); `prefix` what the names of a bare model lack; `renamed` old names of tensors."""

    name: str
    model_type: str
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rows: Callable[[ModelConfig], Sequence[Row]]
    ignored: str = r"(?!)"
    prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()

    def ignores(self, name: str) -> bool:
        """Whether the tensor `name` says nothing new."""
        return re.search(self.ignored, name) is not None

    def says(self, cfg: ModelConfig) -> bool:
        """Whether its config.json can say what `cfg` is."""
        try:
            return meaning(self.read(Fields(self.write(cfg), self.name))) == meaning(cfg)
        except ValueError:
            return False


def meaning(cfg: ModelConfig) -> ModelConfig:
    """`cfg` in one form for all that compute the same: each layer's kind, nothing that only training reads."""
    positions = replace(cfg.positions, init_scale=0.02) if isinstance(cfg.positions, Learned) else cfg.positions

    def kind(slot: Slot) -> LayerKind:
        own = positions if slot.positions == cfg.positions else slot.positions
        return LayerKind(slot.window, _same_mixer(slot.mixer), own, _untrained(slot.ffn))

    return replace(
        cfg,
        attention=_same_mixer(cfg.attention),
        ffn=_untrained(cfg.ffn),
        positions=positions,
        pattern=tuple(map(kind, cfg.by_layer)),
        first_layers=(),
        dropout=0.0,
        init_scale=0.02,
    )


def _same_mixer(mixer: Mixer) -> Mixer:
    """A mixer in one form for all that compute the same."""
    if not isinstance(mixer, Attention):
        return mixer
    scale = round(mixer.scale or mixer.head_dim**-0.5, 12)
    return replace(mixer, kv_heads=mixer.kv, scale=scale, out_bias=mixer.bias and mixer.out_bias)


def attention_of(cfg: ModelConfig) -> Attention:
    """The attention of all layers. Raises ValueError for a model with another mixer."""
    return part(cfg.attention, Attention)


def part(value: Any, kind: type[T]) -> T:
    """`value`, which this architecture has as a `kind`. Raises ValueError for another."""
    if not isinstance(value, kind):
        raise ValueError(f"{value} where the architecture has {kind.__name__}")
    return value


def _untrained(ffn: Any) -> Any:
    return replace(ffn, load_balance_weight=0.0, router_z_weight=0.0) if isinstance(ffn, Experts) else ffn


def shortest(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest pattern that gives these layers."""
    for period in range(1, len(kinds) + 1):
        if all(kind == kinds[i % period] for i, kind in enumerate(kinds)):
            return tuple(kinds[:period])
    raise AssertionError("no layers")


def layer_kinds(fields: Fields, layers: int, windowed: LayerKind, full: Callable[[int], bool]) -> tuple[LayerKind, ...]:
    """The pattern that `layer_types` says; where it is missing, layers for which `full` holds and `windowed` ones."""
    types = fields.take("layer_types", ["full_attention" if full(i) else "sliding_attention" for i in range(layers)])
    known = {"full_attention": LayerKind(), "sliding_attention": windowed}
    if not isinstance(types, list) or len(types) != layers or not all(str(t) in known for t in types):
        raise fields.refused("layer_types", types, f"a list of {layers}, each {' or '.join(known)}")
    return shortest([known[t] for t in types])


def layer_types(cfg: ModelConfig) -> list[str]:
    """What `layer_kinds` reads."""
    return ["sliding_attention" if slot.window else "full_attention" for slot in cfg.by_layer]


def window(cfg: ModelConfig) -> int | None:
    """The one window of `cfg`, or None. Raises ValueError for several."""
    found = {slot.window for slot in cfg.slots.values()} - {0}
    if len(found) > 1:
        raise ValueError(f"windows of several sizes: {sorted(found)}")
    return found.pop() if found else None


def their_activation(name: str) -> str:
    """The first of their names for our activation."""
    return OURS[name]


def linear(ours: str, theirs: str, inputs: int = 1) -> Row:
    """A Linear's weight."""
    return row(ours, theirs, Linear(inputs))


def same(ours: str, theirs: str) -> Row:
    """A tensor that both have alike."""
    return row(ours, theirs, Same())


def sizes(fields: Fields, names: Mapping[str, str]) -> dict[str, Any]:
    """Our names of sizes to the whole numbers in their fields."""
    return {ours: fields.whole(theirs) for ours, theirs in names.items()}
