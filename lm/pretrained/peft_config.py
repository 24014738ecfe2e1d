"""adapter_config.json of a LoRA in PEFT's layout, read strictly: what PEFT takes a silent default for, or ignores, is
refused."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.pretrained.fields import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# fields that say nothing of what is computed, and those that another field or the tensors themselves say
WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("lora_dropout", "fan_in_fan_out", "exclude_modules", "layers_to_transform", "layers_pattern", "loftq_config"),
    *("megatron_config", "megatron_core", "eva_config", "corda_config", "runtime_config", "qalora_group_size"),
    *("modules_to_save", "bias", "lora_ga_config"),
}
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "target_modules"}
READ |= {"target_parameters"}
# of init_lora_weights: others change the base's weights, and the file has no word of it
INITIAL = (True, False, "gaussian", "eva", "orthogonal", None)


@dataclass(frozen=True)
class PeftConfig:
    """What of the file is read: `rank` and `alpha` of a module, and where patterns say so others; `targets` are names,
    ends of names from a dot on, or one regular expression; `parameters` are names of arrays, or such ends."""

    file: Path
    rank: int
    alpha: float
    rslora: bool
    dora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: str | tuple[str, ...]
    parameters: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        """r of a module."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What B A of a module is multiplied by."""
        rank = self.rank_of(module)
        return float(_by_pattern(self.alpha_pattern, module, self.alpha)) / (math.sqrt(rank) if self.rslora else rank)

    def check_targets(self, modules: Iterable[str]) -> None:
        """Raises ValueError where a target has no module among those that the file has factors of."""
        there = list(modules)
        if isinstance(self.targets, str):
            named = {} if self.targets == "all-linear" else {self.targets: f"(?:{self.targets})"}
        else:
            named = {target: _end(target) for target in self.targets}
        named |= {target: _end(target.removesuffix(".weight")) for target in self.parameters}
        for target, pattern in named.items():
            if not any(re.fullmatch(pattern, module) for module in there):
                field = "target_parameters" if target in self.parameters else "target_modules"
                raise ValueError(f"{self.file}: {field} has {target!r}, of which {WEIGHTS} has no factors")


def _end(name: str) -> str:
    """The pattern of what ends in a name, from a dot on."""
    return rf"(?:.*\.)?{re.escape(name)}"


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern, in the file's order, that matches `module` or its end from a dot on."""
    return next((x for key, x in patterns.items() if re.match(rf"(?:.*\.)?(?:{key})$", module)), default)


def read_config(folder: Path) -> PeftConfig:
    """The config of the adapter in `folder`. Raises ValueError for what is missing or not supported."""
    file = folder / CONFIG
    values = read_json(file)
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type={values.get('peft_type')!r}: expected 'LORA'")
    for name in ("r", "lora_alpha", "target_modules"):
        if values.get(name) is None and not (name == "target_modules" and values.get("target_parameters")):
            raise ValueError(f"{file}: {name} is missing, for which PEFT takes a default: write what it learned with")
    if values.get("init_lora_weights", True) not in INITIAL:
        raise ValueError(
            f"{file}: init_lora_weights={values['init_lora_weights']!r} changes the base, of which an adapter has no "
            "record: merge it with PEFT (merge_and_unload), and load the model"
        )
    for name, value in values.items():
        if name not in WITHOUT_EFFECT | READ | {"init_lora_weights"} and value not in (None, False, [], {}, ""):
            raise ValueError(f"{file}: {name}={value!r} is not supported: merge it with PEFT (merge_and_unload)")
    targets = values.get("target_modules") or ()
    return PeftConfig(
        file,
        _number(file, "r", values["r"]),
        _number(file, "lora_alpha", values["lora_alpha"]),
        bool(values.get("use_rslora")),
        bool(values.get("use_dora")),
        _patterns(file, "rank_pattern", values),
        _patterns(file, "alpha_pattern", values),
        targets if isinstance(targets, str) else tuple(map(str, targets)),
        tuple(map(str, values.get("target_parameters") or ())),
    )


def _number(file: Path, name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{file}: {name}={value!r}: expected a number above 0")
    return value


def _patterns(file: Path, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    patterns = values.get(name) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{file}: {name}={patterns!r}: expected patterns of modules and their numbers")
    for pattern, value in patterns.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{file}: {name} has {pattern!r}, which is no regular expression: {error}") from None
        _number(file, f"{name}[{pattern!r}]", value)
    return patterns
