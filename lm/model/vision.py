"""Vision: images become soft tokens of the text's residual stream.

The tower is a `Transformer`'s stack like any other: patches stand for tokens, each sees all of its image. What it
says of them is averaged, normed and projected by the connector (PaliGemma, 2407.07726; Gemma 3, 2503.19786).
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.model.compute import Compute
from lm.model.config import Vision
from lm.model.parts import add_bias, fan_in, matrix
from lm.model.products import linear
from lm.model.scoring import Mask
from lm.model.stack import Params, Shared, Stack, Taps
from lm.model.taps import Watch
from lm.sharding.tracing import constrain

LEVELS = 255  # of a colour, in an image of whole numbers


class Patches(nn.Module):
    """Images [M, size, size, C] -> the tower's residual stream [M, S, D], its S patches row by row."""

    vision: Vision
    compute: Compute

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        (M, P, C), g = (len(images), self.vision.patch_size, self.vision.channels), self.vision.grid
        D, tower = self.vision.tower.width, self.vision.tower
        cut = images.reshape(M, g, P, g, P, C).transpose(0, 1, 3, 2, 4, 5).reshape(M, g * g, P, P, C)
        kernel = matrix(self, "patches", (P, P, C, D), (None, None, None, "embed"), fan_in(P * P * C))
        x = add_bias(self, "patches_bias", linear(cut, kernel, self.compute, contract=3), ("norm",))
        places = jnp.broadcast_to(jnp.arange(g * g), (M, g * g))
        x = tower.embed_norm(self, "norm", tower.positions.embed(self, x, places, tower.context))
        return constrain(x.astype(self.compute.dtype), "batch", "residual_seq", "act_embed")


class Connector(nn.Module):
    """The tower's output [M, S, Dv] -> soft tokens [M, n, D] of a text model `width` wide: its final norm, the mean of
    each square of patches, a norm, a projection."""

    vision: Vision
    width: int
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        vision, (M, _, Dv) = self.vision, x.shape
        x = vision.tower.wiring.final(self, vision.tower.norm, x)
        side, pool = vision.grid // vision.pool, vision.pool
        if pool > 1:
            x = x.reshape(M, side, pool, side, pool, Dv).astype(jnp.float32).mean((2, 4)).astype(self.compute.dtype)
        x = vision.projector_norm(self, "projector_norm", x.reshape(M, side * side, Dv))
        kernel = matrix(self, "projector", (Dv, self.width), (None, "embed"), fan_in(Dv))
        x = linear(x, kernel, self.compute)
        return add_bias(self, "projector_bias", x, ("norm",)) if vision.projector_bias else x


def boxed_vision(vision: Vision, width: int, compute: Compute, key: jax.Array) -> Params:
    """Fresh parameters of the tower and its connector, with their logical axes: "stem", "layers" and "connector"."""
    stem_key, layer_key, connector_key = jax.random.split(key, 3)
    image = jnp.zeros((1, vision.image_size, vision.image_size, vision.channels), compute.dtype)
    x = jnp.zeros((1, vision.patches, vision.tower.width), compute.dtype)
    return {
        "stem": Patches(vision, compute).init(stem_key, image)["params"],
        "layers": Stack(vision.tower, compute).boxed(layer_key, compute.dtype),
        "connector": Connector(vision, width, compute).init(connector_key, x)["params"],
    }


def soft_tokens(
    vision: Vision, width: int, compute: Compute, params: Params, images: jax.Array, key: Any = None
) -> jax.Array:
    """The soft tokens [B, M n, D] of the M images [B, M, size, size, C] of each row, image by image; arguments as in
    `see`."""
    return see(vision, width, compute, params, images, key)[0]


def see(
    vision: Vision,
    width: int,
    compute: Compute,
    params: Params,
    images: jax.Array,
    key: Any = None,
    watch: Watch | None = None,
) -> tuple[jax.Array, Taps]:
    """The soft tokens [B, M n, D] of the M images [B, M, size, size, C] of each row, image by image, and what `watch`
    reads in the tower, whose rows are the B M images.

    Args:
      vision: the tower and its connector.
      width: D, of the text model.
      params: as `boxed_vision` makes them.
      images: whole numbers from 0 to LEVELS.
      key: switches dropout on.
      watch: reads and edits values inside the tower."""
    (B, M), tower = images.shape[:2], vision.tower.scaled
    pixels = images.reshape(B * M, *images.shape[2:]).astype(jnp.float32) / LEVELS
    pixels = (pixels - vision.pixel_mean) / vision.pixel_std
    x = cast(jax.Array, Patches(vision, compute).apply({"params": params["stem"]}, pixels.astype(compute.dtype)))
    stack = Stack(tower, compute, watch)
    places = jnp.broadcast_to(jnp.arange(vision.patches), (B * M, vision.patches))
    x, _, _, taps = stack(params["layers"], x, Shared(Mask(causal=False), stack.tables(places)), None, key)
    soft = cast(jax.Array, Connector(vision, width, compute).apply({"params": params["connector"]}, x))
    return soft.reshape(B, M * vision.soft_tokens, width), taps


def placed(x: jax.Array, soft: jax.Array, marks: jax.Array) -> jax.Array:
    """x [B, T, D] with the soft tokens [B, n, D] of its row in the places `marks` [B, T], in their order."""
    index = jnp.clip(jnp.cumsum(marks, 1) - 1, 0, soft.shape[1] - 1)
    return jnp.where(marks[..., None], jnp.take_along_axis(soft.astype(x.dtype), index[..., None], 1), x)


def runs(marks: jax.Array) -> jax.Array:
    """[B, T] numbers from 1 on, of each run of `marks` [B, T] without a gap; 0 between them."""
    begins = marks & ~jnp.pad(marks, [(0, 0), (1, 0)])[:, :-1]
    return jnp.where(marks, jnp.cumsum(begins, 1), 0)
