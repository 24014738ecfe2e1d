"""Names that classes and fields had before: what an earlier version wrote is read under today's names.

A class whose name changed stands in CLASSES, its fields in FIELDS; what moved from one value to another is a function
in MOVED, of the plain data of one value. All of it is applied from the inside out, by `upgrade`. PLACES says where a
field of before is now, for whoever still writes it.
"""

from collections.abc import Callable, Mapping
from typing import Any

# old name -> new name
CLASSES: dict[str, str] = {
    "Knot": "Breakpoint",
}
# new name of the class -> old field -> new field
FIELDS: dict[str, dict[str, str]] = {
    "Attention": {"cap": "softcap"},
    "Output": {"cap": "softcap"},
    "NoOutput": {"cap": "softcap"},
    "Experts": {
        "chosen": "top_k",
        "normalise": "renormalize",
        "balance": "load_balance_weight",
        "router_z": "router_z_weight",
    },
    "Relative": {"furthest": "max_distance"},
    "Sinusoidal": {"longest": "max_wavelength"},
    "Dynamic": {"original": "original_context"},
    "Llama3": {"low": "low_freq_factor", "high": "high_freq_factor", "original": "original_context"},
    "YaRN": {"fast": "beta_fast", "slow": "beta_slow", "attention": "attention_factor", "original": "original_context"},
    "Layout": {
        "zero": "zero_stage",
        "sequence": "sequence_parallel",
        "whole": "replicated",
        "optimizer_on_host": "offload_optimizer",
    },
    "Mixture": {"knots": "breakpoints"},
    "SentencePieceSpec": {"model": "model_type"},
}
PLACES = {"Experiment": {"objective": "method.objective", "z_loss": "method.z_loss"}}


def _into_method(experiment: dict[str, Any]) -> dict[str, Any]:
    """The objective and the weight of the z-loss were fields of the experiment before there were methods."""
    moved = {name: experiment[name] for name in ("objective", "z_loss") if name in experiment}
    rest = {name: data for name, data in experiment.items() if name not in moved}
    return {**rest, "method": {"type": "Pretrain", **rest.get("method", {}), **moved}} if moved else rest


# new name of the class -> what makes its data new
MOVED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"Experiment": _into_method}


def place_now(cls: str, field: str) -> str:
    """Where a field of before is now, as a path from a value of the class `cls`; empty where there was none."""
    return PLACES.get(cls, {}).get(field) or FIELDS.get(cls, {}).get(field, "")


def upgrade(data: Any) -> Any:
    """Plain data (see `lm.value.plain`) in today's names; data that has them already is returned as it is."""
    if isinstance(data, Mapping):
        new = {key: upgrade(inner) for key, inner in data.items()}
        return _renamed(new) if isinstance(new.get("type"), str) else new
    return [upgrade(inner) for inner in data] if isinstance(data, (list, tuple)) else data


def _renamed(data: dict[str, Any]) -> dict[str, Any]:
    name = CLASSES.get(data["type"], data["type"])
    fields = FIELDS.get(name, {})
    new = {fields.get(key, key): inner for key, inner in data.items()} | {"type": name}
    return MOVED[name](new) if name in MOVED else new
