"""A model at other widths, and the names of parametrisations: what a coordinate check and a transfer study compare."""

from dataclasses import replace
from typing import Any

from lm.model.attention import Attention
from lm.model.config import ModelConfig
from lm.model.parametrisation import Parametrisation

GROWS = ("heads", "head_dim")


def name_of(rule: Parametrisation) -> str:
    """What a parametrisation is called in a report."""
    return "standard" if rule == Parametrisation() else type(rule).__name__


def widened(model: ModelConfig, width: int, grows: str = "heads") -> ModelConfig:
    """`model` at another width, its feed-forwards and its heads (or their size, as `grows` says) in proportion.

    Raises ValueError where one of them is then no whole number."""
    if grows not in GROWS:
        raise ValueError(f"grows={grows!r}: expected heads or head_dim")

    def scaled(name: str, size: int) -> int:
        if size * width % model.width:
            raise ValueError(
                f"width={width}: {name} would be {size * width / model.width:g}, from {size} at {model.width}"
            )
        return size * width // model.width

    def wide(ffn: Any) -> Any:
        return ffn and replace(ffn, mlp=scaled("ffn.mlp", ffn.mlp))

    attention = attention_of(model)
    several = () if attention.kv_heads == 1 else ("kv_heads",)  # one for all heads stays one
    names = ("heads", *several) if grows == "heads" else ("head_dim",)
    sizes: dict[str, Any] = {name: scaled(f"attention.{name}", getattr(attention, name)) for name in names}
    pattern = tuple(replace(kind, ffn=wide(kind.ffn)) for kind in model.pattern)
    attention = replace(attention, **sizes)
    return replace(model, width=width, attention=attention, ffn=wide(model.ffn), pattern=pattern)


def attention_of(model: ModelConfig) -> Attention:
    """The attention of all layers. Raises ValueError for another mixer, which has no heads to widen."""
    if not isinstance(model.attention, Attention) or any(kind.mixer for kind in model.pattern):
        raise ValueError("a model is widened by its attention heads: give it Attention in all layers")
    return model.attention
