"""Counting before running: parameters by part, floating-point operations a token, bytes of state."""

import functools
import math
from fractions import Fraction
from typing import Any

import jax

from lm.model.compute import Compute
from lm.model.config import ModelConfig
from lm.model.experts import Experts
from lm.model.multi_token import layer_config
from lm.model.transformer import Transformer

CONTRACTED = {"embed", "rank"}  # of the logical axes of a weight, one is contracted in its product


def shapes(cfg: ModelConfig) -> dict[str, Any]:
    """The tree of parameters, by shape only."""
    return Transformer(cfg, Compute().resolve("cpu")).shapes()


@functools.cache
def parameters(cfg: ModelConfig) -> int:
    """How many parameters `cfg` has, each shared one once."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(cfg)))


@functools.cache
def by_part(cfg: ModelConfig) -> dict[str, int]:
    """Parameters by path, `layers/query` and so on, in the order of the tree."""
    flat = jax.tree_util.tree_flatten_with_path(shapes(cfg))[0]
    return {"/".join(k.key for k in path): math.prod(leaf.shape) for path, leaf in flat}


def flops_per_token(cfg: ModelConfig, length: int) -> int:
    """Model FLOPs of one token's forward and backward pass in a sequence of `length` tokens; with an encoder, of one
    token of each, an input as long as the target. See `flops_per_row`; an experiment has its own lengths."""
    return flops_per_row(cfg, length, length if cfg.has_encoder else 0) // length


@functools.cache
def flops_per_row(cfg: ModelConfig, length: int, encoder_length: int = 0, frozen: frozenset[str] = frozenset()) -> int:
    """Model FLOPs of the forward and backward pass of a row of `length` tokens, of which an encoder, where there is
    one, reads `encoder_length` others.

    For each token, 6 for each parameter that a matrix product uses for it (of experts those chosen), 4 for one at the
    paths `frozen`, whose gradient is not computed, and three times what mixers say of their forward pass, attention
    4 N H for each key that it looks at, counted in full but for windows (2204.02311, appendix B). What a kernel skips
    or computes again is not in it. Modules of multi-token prediction are."""
    encoder = _stack_flops(cfg.encoder_config, encoder_length, 0, frozen, "encoder/") if cfg.has_encoder else 0
    output = 4 if ("stem/tokens" if cfg.tied else "head/kernel") in frozen else 6
    output *= cfg.output.logit_count(cfg.vocab)
    stem = int(3 * cfg.wiring.stem_products(cfg.width, cfg.layers))
    whole = encoder + _stack_flops(cfg, length, encoder_length, frozen) + (output * cfg.width + stem) * length
    return whole + _ahead_flops(cfg, length, encoder_length, frozen, output)


def _ahead_flops(cfg: ModelConfig, length: int, encoder_length: int, frozen: frozenset[str], output: int) -> int:
    """Those of the modules of multi-token prediction, of all places of a row: a projection, a layer, and the output at
    `output` FLOPs a number of the residual stream."""
    flops = 0
    for k in range(1, cfg.multi_token.depth + 1) if cfg.multi_token else ():
        above = f"multi_token/{k}/"
        join = (4 if f"{above}projection" in frozen else 6) * 2 * cfg.width**2
        flops += (join + output * cfg.width) * length
        flops += _stack_flops(layer_config(cfg), length, encoder_length, frozen, above)
    return flops


@functools.cache
def flops_per_image(cfg: ModelConfig, frozen: frozenset[str] = frozenset()) -> int:
    """Model FLOPs of an image's forward and backward pass through the tower and its connector; 0 without vision.
    Arguments as in `flops_per_row`."""
    if cfg.vision is None:
        return 0
    vision, width = cfg.vision, cfg.vision.tower.width
    each = {path: 4 if path in frozen else 6 for path in ("vision/stem/patches", "vision/connector/projector")}
    stem = each["vision/stem/patches"] * vision.patches * vision.patch_size**2 * vision.channels * width
    connector = each["vision/connector/projector"] * vision.soft_tokens * width * cfg.width
    return stem + connector + _stack_flops(vision.tower, vision.patches, 0, frozen, "vision/")


def _stack_flops(cfg: ModelConfig, length: int, encoder_length: int, frozen: frozenset[str], above: str = "") -> int:
    """Those of the layers alone, in a row; keys and values of cross-attention are made for the encoder's tokens,
    those of merged attention for both."""
    flops = 0
    model = Transformer(cfg, Compute().resolve("cpu"))
    shapes, axes = model.shapes()["layers"], model.axes()["layers"]
    for at, slot in cfg.slots.items():
        layers = len(slot.layers)
        share = Fraction(slot.ffn.top_k, slot.ffn.experts) if isinstance(slot.ffn, Experts) else Fraction(1)
        for name, shape in shapes[at].items():
            names = axes[at][name]
            if CONTRACTED & set(names) and len(names) > 2:
                tokens = encoder_length if name in ("cross_key", "cross_value") else length
                tokens += encoder_length if slot.mixer.merges_encoder and name in ("key", "value") else 0
                each = 4 if f"{above}layers/{at}/{name}" in frozen else 6
                flops += tokens * int(each * math.prod(shape.shape) * (share if "experts" in names[:-1] else 1))
        flops += length * int(3 * layers * slot.mixer.flops(min(length, slot.window or length)))
        flops += length * int(3 * layers * slot.mixer.flops(encoder_length)) if cfg.has_encoder else 0
    return flops


def tree_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays or ShapeDtypeStructs."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
