"""LoRA of experts as PEFT has it: one pair of factors for all of a layer, of what transformers has as one array.

A is [E r, inputs], expert by expert, and B [outputs, E r], rank by rank. The file names the module, `….experts`, and
not the parameter: where both are adapted it is the last, and the one before it is `….experts.base_layer`. A gate and
an up are one matrix, of twice the rank. So transformers 5 and PEFT 0.21 have Mixtral, gpt-oss and Gemma 4.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lm.pretrained.rows import Interleaved, StackedLinear, Tensor

EXPERTS, NESTED = ".experts", ".base_layer"
PARAMETERS = ("gate_up_proj", "down_proj")  # in PEFT's order: the last has the module's own name
PUBLISHED = ".block_sparse_moe."  # what Mixtral's files have in place of .mlp.
Factors = Mapping[str, Mapping[str, np.ndarray]]
Arrays = dict[str, np.ndarray]


def by_parameter(factors: Factors, parameters: Sequence[str]) -> dict[str, Mapping[str, np.ndarray]]:
    """The factors of each module, of experts by the parameter's own name; `parameters` are those that the config names.
    Raises ValueError where it names none that a file's experts can be of."""
    found: dict[str, Mapping[str, np.ndarray]] = {}
    for module, own in factors.items():
        layer, experts, end = module.partition(EXPERTS)
        if not experts or end not in ("", NESTED):
            found[module] = own
            continue
        both = f"{layer}{EXPERTS}{NESTED}" in factors
        named = [name for name in PARAMETERS if any(one.endswith(name) for one in parameters)]
        if not named or both != (len(named) == 2):
            raise ValueError(
                f"{module} has factors of one parameter of {' and '.join(PARAMETERS)}, and target_parameters names "
                f"{', '.join(named) or 'neither'}"
            )
        found[f"{layer}{EXPERTS}.{named[0 if end else -1]}"] = own
    return found


def is_experts(module: str) -> bool:
    """Whether a module of `by_parameter` is a parameter of experts."""
    return module.rpartition(".")[0].endswith(EXPERTS)


def module_of(name: str) -> str:
    """The module of experts that the tensor `name` of a file is in, as transformers 5 calls it."""
    return f"{name.partition(EXPERTS)[0]}{EXPERTS}".replace(PUBLISHED, ".mlp.")


def published(theirs: Mapping[str, Tensor], name: str) -> str:
    """The name of a tensor in the files of its family."""
    other = name.replace(".mlp.", PUBLISHED, 1)
    return name if name in theirs or other not in theirs else other


def changes(
    theirs: Mapping[str, Tensor], module: str, factors: Mapping[str, np.ndarray], rank: int
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in which the experts' parameter `module` is, with B A of each, in its own layout."""
    a, b = (factors[name].astype(np.float64) for name in "AB")
    experts = len(a) // rank
    total = np.einsum("ore,eri->eoi", b.reshape(len(b), rank, experts), a.reshape(experts, rank, -1))
    if module in theirs:  # one array, [E, inputs, outputs] or turned
        yield module, total if isinstance(theirs[module].conversion, StackedLinear) else total.swapaxes(1, 2)
        return
    at, _, parameter = module.replace(".mlp.", PUBLISHED, 1).rpartition(".")
    for e, change in enumerate(total):
        names = ("w2",) if parameter == "down_proj" else ("w1", "w3")
        for name, part in zip(names, np.split(change, len(names)), strict=True):
            yield f"{at}.{e}.{name}.weight", part


def stacked(
    moving: Mapping[str, np.ndarray], slot: str, j: int, interleaved: bool
) -> Iterator[tuple[str, int, Arrays]]:
    """PEFT's factors of the experts of layer j of a slot, of what was trained: each parameter, how many matrices of
    ours it has, and the factors; `interleaved` where gate and up are by turns in one matrix.

    Their rank is ours, of a gate and an up together twice that: each reads its own rows of A."""

    def factor(name: str, which: str) -> np.ndarray:
        return moving[f"layers/{slot}/{name}/lora_{which}"][j].swapaxes(1, 2)

    for parameter, names in zip(PARAMETERS, (("gate", "up"), ("down",)), strict=True):
        there = [name for name in names if f"layers/{slot}/{name}/lora_a" in moving]
        if not there:
            continue
        a = np.concatenate([factor(name, "a") for name in there], axis=1)  # [E, R, inputs]
        (E, R, _), r = a.shape, a.shape[1] // len(there)
        outputs = factor(there[0], "b").shape[1]
        b = np.zeros((E, len(names), outputs, R), np.float32)
        for column, name in enumerate(there):
            b[:, names.index(name), :, column * r : (column + 1) * r] = factor(name, "b")
        rows = (b.swapaxes(1, 2) if interleaved else b).reshape(E, len(names) * outputs, R)
        yield parameter, len(there), {"A": a.reshape(E * R, -1), "B": rows.transpose(1, 2, 0).reshape(-1, R * E)}


def are_interleaved(tensors: Sequence[Tensor]) -> bool:
    """Whether a model's gate and up are one matrix by turns (gpt-oss), and not one after the other."""
    return any(isinstance(t.conversion, Interleaved) and t.name.endswith(PARAMETERS[0]) for t in tensors)
