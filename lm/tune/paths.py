"""Parameters chosen by path.

A parameter is named by its path, "layers/0/query". In the feed-forward the matrices that read the residual stream are
also "layers/0/mlp_in", that which leads back "layers/0/mlp_out", and all of them "layers/0/mlp". A choice is a regular
expression, of which each alternative matches names or their ends, from a "/" on: "query", "layers/.*/mlp_in".
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, reduce
from typing import Any

import jax

from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.parametrisation import Axes, matrix_dims
from lm.model.transformer import Transformer


@cache
def axes_of(model: ModelConfig) -> dict[str, tuple[str | None, ...]]:
    """The logical axes of the parameters of `model`, by path."""
    return by_path(Transformer(model, Compute().resolve("cpu")).axes())


def by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a tree of dicts by path: "layers/0/query"."""
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: not isinstance(x, dict))[0]
    return {"/".join(step.key for step in path): leaf for path, leaf in flat}


def at(tree: Mapping[str, Any], path: str) -> Any:
    """What is at a path of a tree of dicts."""
    return reduce(lambda here, name: here[name], path.split("/"), tree)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `by_path`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[name] = leaf
    return tree


def is_matrix(axes: Axes) -> bool:
    """Whether a parameter is a matrix, or a stack of them."""
    return len(matrix_dims(axes)) == 2


def select(
    field: str, where: str, axes: Mapping[str, Axes], eligible: Callable[[Axes], bool] = lambda _: True
) -> frozenset[str]:
    """The paths that the regular expression `where` chooses of those in `axes`, of `eligible` parameters.

    Raises ValueError, naming `field`, for what is no regular expression, and for an alternative that chooses nothing,
    with names that are near."""
    names = {path: list(_names(path, own)) for path, own in axes.items() if eligible(own)}
    chosen: set[str] = set()
    for alternative in alternatives(where):
        try:
            pattern = re.compile(f"(?:.*/)?(?:{alternative})")
        except re.error as error:
            raise ValueError(f"{field}={where!r} is no regular expression: {error}") from None
        found = {path for path, own in names.items() if any(map(pattern.fullmatch, own))}
        if not found:
            raise ValueError(f"{field}: {alternative!r} matches no {_kind(eligible)}: {_near(alternative, names)}")
        chosen |= found
    return frozenset(chosen)


def _kind(eligible: Callable[[Axes], bool]) -> str:
    return "matrix" if eligible is is_matrix else "parameter"


def _names(path: str, axes: Axes) -> Iterator[str]:
    yield path
    if "mlp" in axes and is_matrix(axes):
        folder = path.rpartition("/")[0]
        yield from (f"{folder}/mlp", f"{folder}/{'mlp_out' if axes[-1] != 'mlp' else 'mlp_in'}")


def _near(alternative: str, names: Mapping[str, Iterable[str]]) -> str:
    """The end of an error: names that are near, or all of them."""
    every = list(dict.fromkeys(name for own in names.values() for name in own))
    ends = {name.rpartition("/")[2]: name for name in every}
    matches = difflib.get_close_matches(alternative.rpartition("/")[2], ends, n=3, cutoff=0.4)
    known = sorted(ends)
    return (f"did you mean {' or '.join(matches)}? " if matches else "") + f"known: {', '.join(known)}"


def alternatives(pattern: str) -> list[str]:
    """The alternatives of a regular expression, as its top-level | divide it."""
    parts, depth, escaped, in_class = [""], 0, False, False
    for character in pattern:
        if character == "|" and not (depth or escaped or in_class):
            parts.append("")
            continue
        parts[-1] += character
        if escaped or character == "\\":
            escaped = not escaped
        elif in_class or character == "[":
            in_class = character != "]"
        else:
            depth += (character == "(") - (character == ")")
    return parts
