"""A run's adapter, written in PEFT's layout: adapter_config.json and adapter_model.safetensors."""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lm.model import count
from lm.model.config import ModelConfig
from lm.pretrained.files import TensorToWrite, write_file
from lm.pretrained.known import architecture_for
from lm.pretrained.peft import is_turned
from lm.pretrained.peft_config import CONFIG, PREFIX, WEIGHTS
from lm.pretrained.peft_experts import NESTED, PUBLISHED, are_interleaved, module_of, stacked
from lm.pretrained.rows import Concatenated, Identity, Kernel, RotaryInterleaved, Shape, Tensor, flatten, tensors
from lm.pretrained.runs import FinishedRun
from lm.pretrained.save import replace_folder, umask
from lm.pretrained.siglip import in_memory
from lm.tune.lora import DoRA, LoRA

Arrays = dict[str, np.ndarray]
WHOLE = "convert the whole model, without --adapter-only"
ODD = RotaryInterleaved  # whose outputs are in another order
EXPERT = re.compile(r".*\.experts\.(?:\d+\.w[123]\.weight|gate_up_proj|down_proj)")
ROUTER = re.compile(r"(.*\.(?:block_sparse_moe\.gate|mlp\.router))\.weight")


def save_adapter(run: FinishedRun, folder: str | Path) -> int:
    """Write the adapter of `run` into `folder`, which may hold an earlier one; returns how many numbers it has.

    Raises ValueError for a run without adapters, for what PEFT has no form for, and for a folder of something else."""
    e = run.experiment
    if not isinstance(e.trains, LoRA):
        raise ValueError(f"{run.path} has trains={e.trains}: expected LoRA(…) or DoRA(…), of which there is an adapter")
    moving = {path: np.asarray(x, np.float32) for path, x in flatten(run.trained()).items()}
    config, arrays = adapter_of(run.config, e.trains, moving, e.start.path if e.start else "")
    write_adapter(folder, config, arrays)
    return sum(array.size for array in arrays.values())


def write_adapter(folder: str | Path, config: Mapping[str, Any], arrays: Arrays) -> None:
    """Write an adapter's two files, atomically. Raises ValueError for a folder of something else."""
    folder = Path(folder).expanduser().resolve()
    others = sorted({p.name for p in folder.iterdir()} - {CONFIG, WEIGHTS}) if folder.is_dir() else []
    if others or folder.is_file():
        raise ValueError(f"{folder} exists and is no adapter ({(others or ['a file'])[0]}): choose a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (new / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        write_file(new / WEIGHTS, [TensorToWrite(n, a.shape, partial(np.asarray, a)) for n, a in arrays.items()])
        new.chmod(0o777 & ~umask())
        replace_folder(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def adapter_of(
    cfg: ModelConfig, lora: LoRA, moving: Mapping[str, np.ndarray], base: str = ""
) -> tuple[dict[str, Any], Arrays]:
    """(adapter_config.json, the tensors) of what was trained of `cfg`, `moving` by path; `base` is where the model is.
    Raises ValueError for what PEFT has no form for."""
    if cfg.shares_embedding and "stem/tokens/lora_a" in moving:
        raise ValueError(
            f"the adapter changes an embedding that is the output too, which PEFT leaves as it was: {WHOLE}"
        )
    if not any(path.startswith("multi_token/") for path in moving):
        cfg = replace(cfg, multi_token=None)
    shapes = {path: leaf.shape for path, leaf in flatten(count.shapes(cfg)).items()}
    arrays: Arrays = {}
    ranks: dict[str, int] = {}
    whole: dict[str, bool] = {}
    turned = False
    every = tensors(architecture_for(cfg.scaled).rows(cfg), shapes)
    parameters = _experts(cfg, lora, moving, every, arrays)
    for tensor in every:
        name = in_memory(tensor.name)
        module, names = name.rpartition(".")[0], [p for p in tensor.paths if f"{p}/lora_a" in moving]
        if names and EXPERT.fullmatch(tensor.name):
            continue
        if names and (router := ROUTER.fullmatch(tensor.name)):
            module = router[1].replace(PUBLISHED, ".mlp.")
            parameters[f"{module}.weight"] = 1
        if names:
            factors = _factors(tensor, names, moving, shapes, isinstance(lora, DoRA))
            arrays |= {f"{PREFIX}{module}.{end}": array for end, array in factors.items()}
            turned |= is_turned(tensor) and tensor.paths != ("stem/tokens",)
            ranks |= {} if f"{module}.weight" in parameters else {module: len(names)}
            continue
        itself = any(path in moving for path in tensor.paths)
        if itself:
            arrays[f"{PREFIX}{name}"] = _whole(tensor, moving)
        whole[module] = whole.get(module, itself) and itself
        if itself != whole[module] or (itself and module in ranks):
            raise ValueError(f"PEFT saves {module} as a whole, of which a part was trained: {WHOLE}")
    saved = [module for module, itself in whole.items() if itself]
    for name in (in_memory(tensor.name) for tensor in every):
        if f"{PREFIX}{name}" not in arrays and (part := [m for m in saved if name.startswith(f"{m}.")]):
            raise ValueError(f"PEFT saves {part[0]} as a whole, of which a part was trained: {WHOLE}")
    return _config(cfg, lora, ranks, parameters, saved, turned) | {"base_model_name_or_path": base or None}, arrays


def _experts(
    cfg: ModelConfig, lora: LoRA, moving: Mapping[str, np.ndarray], every: list[Tensor], arrays: Arrays
) -> dict[str, int]:
    """Put the factors of experts among the `arrays`. Returns their parameters, with the matrices of ours in each.
    Raises ValueError for DoRA, which PEFT has not of parameters."""
    found: dict[str, int] = {}
    of_experts = [t for t in every if EXPERT.fullmatch(t.name)]
    modules = {(t.paths[0].split("/")[1], t.leaf_index[0]): module_of(t.name) for t in of_experts}
    for slot in sorted({slot for slot, _ in modules} & {p.split("/")[1] for p in moving if p.endswith("/lora_a")}):
        for j in range(len(cfg.slots[slot].layers)):
            module = modules[slot, j]
            own = list(stacked(moving, slot, j, are_interleaved(every)))
            if own and isinstance(lora, DoRA):
                raise ValueError(f"PEFT has no DoRA of experts ({module}): {WHOLE}")
            for parameter, several, factors in own:
                nested = NESTED if parameter != own[-1][0] else ""
                arrays |= {f"{PREFIX}{module}{nested}.lora_{name}.weight": x for name, x in factors.items()}
                found[f"{module}.{parameter}"] = several
    return found


def _config(
    cfg: ModelConfig,
    lora: LoRA,
    ranks: Mapping[str, int],
    parameters: Mapping[str, int],
    saved: list[str],
    turned: bool,
) -> dict[str, Any]:
    """adapter_config.json.

    Args:
      cfg: the model.
      lora: what was trained.
      ranks: module -> the matrices of ours in it, whose ranks add up.
      parameters: the same of parameters that are no module's own matrix (experts, routers).
      saved: modules that were trained themselves.
      turned: whether matrices are [inputs, outputs], as GPT-2's."""
    several = {re.escape(module): n for module, n in {**ranks, **parameters}.items() if n > 1}
    grows = {pattern: lora.alpha * (math.sqrt(n) if lora.rslora else n) for pattern, n in several.items()}
    return {
        "peft_type": "LORA",
        "task_type": _task(cfg),
        "r": lora.rank,
        "lora_alpha": _plain(lora.alpha),
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "use_dora": isinstance(lora, DoRA),
        "target_modules": list(ranks),
        **({"target_parameters": list(parameters)} if parameters else {}),
        "modules_to_save": saved or None,
        "rank_pattern": {pattern: n * lora.rank for pattern, n in several.items()},
        "alpha_pattern": {pattern: _plain(alpha) for pattern, alpha in grows.items()},
        "fan_in_fan_out": turned,
        "bias": "none",
        "inference_mode": True,
    }


def _task(cfg: ModelConfig) -> str | None:
    """PEFT's name of what a model is for."""
    if cfg.has_encoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if cfg.generates else "SEQ_CLS" if cfg.output.scores else None


def _plain(number: float) -> float | int:
    return int(number) if number == int(number) else number


def _factors(
    tensor: Tensor, names: list[str], moving: Mapping[str, np.ndarray], shapes: Mapping[str, Shape], dora: bool
) -> Arrays:
    """The tensors of one module, of the matrices `names` that are adapted among those in it; their ranks add up.

    Args:
      tensor: the module's weight.
      names: paths of the matrices.
      moving: what the run trained, by path.
      shapes: of all of our leaves.
      dora: whether there are magnitudes.

    Raises:
      ValueError: for what PEFT has no form for."""
    conversion: Identity = tensor.conversion
    each = conversion.each if isinstance(conversion, Concatenated) else conversion
    table = tensor.paths == ("stem/tokens",)
    if len(tensor.leaf_index) > 1 or not (table or isinstance(each, Kernel)) or isinstance(each, ODD):
        raise ValueError(f"PEFT has no form for an adapter of {names[0]} ({tensor.name}): {WHOLE}")
    if dora and len(names) < len(tensor.paths):
        raise ValueError(f"PEFT's DoRA is of all of {', '.join(tensor.paths)}, which are one matrix ({tensor.name})")

    def part(path: str, name: str) -> np.ndarray:
        return moving[f"{path}/{name}"][tensor.leaf_index]

    down = np.concatenate([part(path, "lora_a").reshape(-1, part(path, "lora_a").shape[-1]).T for path in names])
    blocks, column = [], 0
    for path in tensor.paths:  # block diagonal: each matrix reads its own rows of `down`
        inner = shapes[path][len(tensor.leaf_index) :]
        block = np.zeros((math.prod(inner[each.inputs if isinstance(each, Kernel) else 1 :]), len(down)), np.float32)
        if path in names:
            b = part(path, "lora_b")
            block[:, column : column + len(b)] = b.reshape(len(b), -1).T
            column += len(b)
        blocks.append(block)
    ends = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A.weight", "lora_B.weight")
    found = dict(zip(ends, (down, np.concatenate(blocks)), strict=True))
    if dora:
        found["lora_magnitude_vector"] = np.concatenate([part(path, "magnitude").reshape(-1) for path in names])
    return found


def _whole(tensor: Tensor, moving: Mapping[str, np.ndarray]) -> np.ndarray:
    """A tensor that was trained itself. Raises ValueError where it was in part."""
    if missing := [path for path in tensor.paths if path not in moving]:
        raise ValueError(f"PEFT saves {tensor.name} whole, and {', '.join(missing)} was not trained: {WHOLE}")
    return tensor.conversion.theirs([moving[path][tensor.leaf_index] for path in tensor.paths])
