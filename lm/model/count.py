"""Counting before running: parameters by part, floating-point operations a token, bytes of state."""

import math
from typing import Any

import jax

from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.transformer import Transformer


def shapes(cfg: ModelConfig) -> dict[str, Any]:
    """The tree of parameters, by shape only."""
    return Transformer(cfg, Compute().resolve("cpu")).shapes()


def parameters(cfg: ModelConfig) -> int:
    """How many parameters `cfg` has, each shared one once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(cfg)))


def by_part(cfg: ModelConfig) -> dict[str, int]:
    """Parameters by path, `layers/query` and so on, in the order of the tree."""
    flat = jax.tree_util.tree_flatten_with_path(shapes(cfg))[0]
    return {"/".join(k.key for k in path): math.prod(leaf.shape) for path, leaf in flat}


def flops_per_token(cfg: ModelConfig, length: int) -> int:
    """Model FLOPs of one token's forward and backward pass in a sequence of `length` tokens.

    6 for each parameter in a matrix product and 12 L N H T for attention, counted in full (2204.02311, appendix B).
    What a kernel skips or computes again is not in it."""
    model = Transformer(cfg, Compute().resolve("cpu"))
    is_axes = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    layers = zip(
        jax.tree.leaves(model.shapes()["layers"]), jax.tree.leaves(model.axes()["layers"], is_leaf=is_axes), strict=True
    )
    in_products = sum(math.prod(s.shape) for s, axes in layers if "embed" in axes and len(axes) > 2)
    head = cfg.vocab * cfg.width
    return 6 * (in_products + head) + 12 * cfg.layers * cfg.attention.heads * cfg.attention.head_dim * length


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
