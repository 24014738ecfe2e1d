"""Adapters in PEFT's layout (adapter_config.json, adapter_model.safetensors): read and merged into a model.

All is done on the published model's tensors, which an architecture's table converts to our leaves and back: so it holds
for every family. A module's change is s B A, [outputs, inputs], of an embedding [rows, width]; DoRA's magnitude is by
output. A file is read completely or refused: PEFT takes one whose names it does not know for no adapter at all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.model import count
from lm.model.families import scorer
from lm.pretrained import peft_experts
from lm.pretrained.architecture import Architecture
from lm.pretrained.classifiers import SCORE
from lm.pretrained.files import Safetensors
from lm.pretrained.known import architecture_for
from lm.pretrained.model import Pretrained
from lm.pretrained.peft_config import CONFIG, PREFIX, WEIGHTS, PeftConfig, read_config
from lm.pretrained.rows import Concatenated, Identity, Linear, Tensor, flatten, tensors
from lm.pretrained.save import read_theirs
from lm.pretrained.siglip import in_file
from lm.value import suggest

KINDS = {  # the ends of a tensor's name -> what it is
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


@dataclass(frozen=True)
class Adapter:
    """An adapter: the factors of each module, {"A": [r, inputs], "B": [outputs, r], "magnitude": [outputs]}, and the
    tensors that it has in place of the base's."""

    config: PeftConfig
    factors: Mapping[str, Mapping[str, np.ndarray]]
    replaced: Mapping[str, np.ndarray]


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`. Raises ValueError for what is missing, damaged or not supported."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} is no adapter: expected {CONFIG} and {WEIGHTS}, as PEFT writes them")
    config, source = read_config(folder), Safetensors.of_file(folder / WEIGHTS)
    factors: dict[str, dict[str, np.ndarray]] = {}
    replaced: dict[str, np.ndarray] = {}
    for name in source:
        if not name.startswith(PREFIX):
            raise ValueError(f"{source.where(name)}: expected a name that begins with {PREFIX!r}, as PEFT reads it")
        array, own = source.read(name).astype(np.float32), name.removeprefix(PREFIX).replace(".default", "")
        end = next((end for end in KINDS if own.endswith(end)), "")
        if end:
            factors.setdefault(own.removesuffix(end), {})[KINDS[end]] = array
        elif "lora_" in own:
            raise ValueError(f"{source.where(name)} is unexpected: {', '.join(KINDS)} are known")
        else:
            replaced[own.replace(".base_layer.", ".")] = array
    for module, own_factors in (named := peft_experts.by_parameter(factors, config.parameters)).items():
        _check(config, module, own_factors)
    config.check_targets(named)
    return Adapter(config, named, replaced)


def _check(config: PeftConfig, module: str, factors: Mapping[str, np.ndarray]) -> None:
    needed = {"A", "B", *(["magnitude"] if config.dora else [])}
    if set(factors) != needed:
        raise ValueError(
            f"{config.file.with_name(WEIGHTS)}: {module} has {', '.join(sorted(factors))}: expected "
            f"{', '.join(sorted(needed))}, with use_dora={config.dora}"
        )
    rank = config.rank_of(module)
    ranks = {factors["A"].shape[0], factors["B"].shape[-1]}
    experts = max(ranks) // rank if peft_experts.is_experts(module) else 1
    if ranks != {experts * rank}:
        shapes = f"A {list(factors['A'].shape)} and B {list(factors['B'].shape)}"
        raise ValueError(f"{config.file.with_name(WEIGHTS)}: {module} has {shapes}, and {CONFIG} says rank {rank}")


def with_adapter(model: Pretrained, folder: Path) -> Pretrained:
    """`model` with the adapter in `folder` merged into its parameters.

    As in PEFT, an adapter of a tied embedding does not change the output: the two are untied; and one that has an
    output of scores makes of a model of texts one of scores. Raises ValueError where
    the adapter is not of this model."""
    adapter = read_adapter(folder)
    if SCORE.theirs in adapter.replaced and not model.config.output.scores:
        model = _with_scores(model, len(adapter.replaced[SCORE.theirs]))
    bare = replace(model.config, multi_token=None)  # of its modules PEFT knows nothing
    architecture = architecture_for(bare.scaled, model.architecture)
    model = _untied(model, architecture, adapter)
    leaves: dict[str, Any] = {path: np.array(x) for path, x in flatten(jax.device_get(model.params)).items()}
    shapes = {path: x.shape for path, x in leaves.items() if not path.startswith("multi_token/")}
    theirs = {t.name: t for t in tensors(architecture.rows(bare), shapes)}
    for name, array in adapter.replaced.items():
        tensor = _known(adapter, theirs, name)
        if array.shape != tensor.shape:
            raise _unlike(adapter, name, array.shape, tensor.shape)
        _write(tensor, leaves, array)
    for module, factors in adapter.factors.items():
        for tensor, w in _changed(adapter, module, factors, theirs, leaves):
            _write(tensor, leaves, w)
    placed = [jax.device_put(leaves[path], before.sharding) for path, before in flatten(model.params).items()]
    return replace(model, params=jax.tree.unflatten(jax.tree.structure(model.params), placed))


def _changed(
    adapter: Adapter,
    module: str,
    factors: Mapping[str, np.ndarray],
    theirs: Mapping[str, Tensor],
    leaves: Mapping[str, Any],
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """The tensors that a module's factors change, with their new values."""
    if not peft_experts.is_experts(module):
        tensor = _known(adapter, theirs, f"{module}.weight")
        w = np.asarray(read_theirs(tensor, leaves), np.float64)
        yield tensor, _merged(adapter, module, factors, w, is_turned(tensor))
        return
    scale, rank = adapter.config.scale_of(module), adapter.config.rank_of(module)
    for name, change in peft_experts.changes(theirs, module, factors, rank):
        tensor = _known(adapter, theirs, name)
        if change.shape != tensor.shape:
            raise _unlike(adapter, module, change.shape, tensor.shape)
        yield tensor, (read_theirs(tensor, leaves) + scale * change).astype(np.float32)


def _merged(
    adapter: Adapter, module: str, factors: Mapping[str, np.ndarray], w: np.ndarray, turned: bool
) -> np.ndarray:
    """w + s B A with DoRA's magnitude, of the tensor w; `turned` where it is [inputs, outputs]."""
    change = adapter.config.scale_of(module) * factors["B"].astype(np.float64) @ factors["A"].astype(np.float64)
    if turned:
        change = change.T
    if change.shape != w.shape:
        raise _unlike(adapter, module, change.shape, w.shape)
    total = w + change
    if "magnitude" not in factors:
        return total.astype(np.float32)
    axis = 0 if turned else 1
    ratio = factors["magnitude"].reshape(-1) / np.linalg.norm(total, axis=axis)
    return (total * np.expand_dims(ratio, axis)).astype(np.float32)


def is_turned(tensor: Tensor) -> bool:
    """Whether a tensor is [inputs, outputs]: an embedding, and GPT-2's Conv1D."""
    conversion: Identity = tensor.conversion
    each = conversion.each if isinstance(conversion, Concatenated) else conversion
    return not isinstance(each, Linear)


def _known(adapter: Adapter, theirs: Mapping[str, Tensor], name: str) -> Tensor:
    file, name = adapter.config.file.with_name(WEIGHTS), in_file(theirs, peft_experts.published(theirs, name))
    if name not in theirs:
        near = suggest(name, theirs).partition("known:")[0]
        raise ValueError(f"{file}: the model has no tensor {name}: {near}is it its base?")
    return theirs[name]


def _unlike(adapter: Adapter, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> ValueError:
    file = adapter.config.file.with_name(WEIGHTS)
    return ValueError(f"{file}: {name} is of shape {list(got)}, and {list(expected)} in this model: is it its base?")


def _write(tensor: Tensor, leaves: Mapping[str, np.ndarray], array: np.ndarray) -> None:
    """Put a tensor of theirs into our leaves."""
    shapes = [leaves[path][tensor.leaf_index].shape for path in tensor.paths]
    for path, own in zip(tensor.paths, tensor.conversion.ours(array, shapes), strict=True):
        leaves[path][tensor.leaf_index] = own


def _with_scores(model: Pretrained, scores: int) -> Pretrained:
    """`model` with `scores` in place of its output over the vocabulary, all 0 as yet."""
    cfg = scorer(model.config, scores)
    own, head = count.shapes(cfg), model.params["head"]
    kept = {name: head.get(name, jnp.zeros(leaf.shape)) for name, leaf in own["head"].items()}
    params = {**{name: model.params[name] for name in own}, "head": kept}
    return replace(model, config=cfg, params=params, model=replace(model.model, cfg=cfg))


def _untied(model: Pretrained, architecture: Architecture, adapter: Adapter) -> Pretrained:
    """`model` with an output of its own, where it is tied and the adapter changes the embedding or the output."""
    rows = {row.ours[0]: row.theirs.removesuffix(".weight") for row in architecture.rows(model.config)}
    ours, modules = {rows.get("stem/tokens"), rows.get("head/kernel")}, set(rows.values())
    own = (*adapter.factors, *(name.removesuffix(".weight") for name in adapter.replaced))
    touched = ours & {in_file(modules, name) for name in own}
    if not model.config.shares_embedding or not touched:
        return model
    table = model.params["stem"]["tokens"]
    cfg = replace(model.config, tied=False)
    params = {**model.params, "head": {**model.params["head"], "kernel": table.T}}
    return replace(model, config=cfg, params=params, model=replace(model.model, cfg=cfg))
