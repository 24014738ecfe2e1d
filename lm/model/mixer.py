"""The contract of token mixers: the part of a layer in which a token reads others (attention, a recurrence).

A mixer is a frozen value in a layer's kind. Whoever counts, plans, lays out or caches a model asks it, and reads no
field of one mixer that another may not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
from flax import linen as nn

from lm.model.compute import Compute
from lm.model.inputs import EncoderOutput
from lm.model.positions import Positions
from lm.model.scoring import Mask


class LayerInputs(NamedTuple):
    """What a layer reads besides the residual stream: the `mask` (its `offset` is the number of tokens in the cache),
    its positions' `table`, the positions' `bias` by distance ([N, M], or [B, N, M] where rows are at different
    offsets), the encoder's output, and the `distances` [M] or [B, M] of that bias; what it is given of its tokens,
    `own` [B, T, P]; by layer the `shared_kv` of earlier ones, and whether it `keeps` its own for later ones."""

    mask: Mask
    table: tuple[jax.Array, ...] = ()
    bias: jax.Array | None = None
    encoder: EncoderOutput | None = None
    distances: jax.Array | None = None
    own: jax.Array | None = None
    shared_kv: Mapping[int, Any] = MappingProxyType({})
    keeps: bool = False


class Rule(Protocol):
    """What a mixer asks of a parametrisation."""

    def attention_scale(self, scale: float, head_dim: int) -> float: ...


@dataclass(frozen=True)
class Mixer:
    """A layer without a mixer: no token reads another. The base class and contract of all."""

    def __call__(
        self,
        module: nn.Module,
        x: jax.Array,
        inputs: LayerInputs,
        positions: Positions,
        cache: Any,
        compute: Compute,
        depth: int,
    ) -> tuple[jax.Array, Any]:
        """The mixer's output, and its cache with this call's tokens in it.

        Args:
          module: the layer, in which parameters are declared.
          x: [B, T, D].
          inputs: mask, table, bias and encoder's output of this layer.
          positions: the layer's positional encoding.
          cache: what `empty_cache` made, or an earlier call; None while training.
          compute: how it is computed.
          depth: layers that share the residual stream's variance.

        Returns: [B, T, D], and the cache (None where none was given)."""
        return x * 0, cache

    def cross(
        self, module: nn.Module, x: jax.Array, encoder: EncoderOutput, cache: Any, compute: Compute, depth: int
    ) -> tuple[jax.Array, Any]:
        """The same, of x [B, T, D] reading the encoder's output instead of its own row."""
        raise ValueError(f"{type(self).__name__} reads no encoder: give these layers another mixer")

    def empty_cache(self, rows: int, length: int, encoder_length: int, window: int, dtype: Any) -> Any:
        """A tree of arrays [B, ...] with room for `length` tokens a row, of which only the last `window` are read (0:
        all), and for those of an encoder."""
        return ()

    def flops(self, keys: float) -> float:
        """Forward FLOPs a token of the mixing itself, where a query reads `keys` keys; products with weights are
        counted from the parameters."""
        return 0.0

    def products(self, width: int) -> dict[str, float]:
        """Forward FLOPs a token of the products with weights, by the names of `Compute.keep`."""
        return {}

    def activations(self, tensor: int = 1) -> dict[str, float]:
        """Numbers a token that the backward pass may keep, by the names of `Compute.keep`, on each of `tensor` devices
        of the tensor axis."""
        return {}

    def sizes(self) -> dict[str, tuple[str, int]]:
        """The sizes that a mesh may split: field -> (logical axis, size)."""
        return {}

    @property
    def query_heads(self) -> int:
        """N, the heads that a bias by distance is of; 0: none."""
        return self.sizes().get("heads", ("", 0))[1]

    @property
    def rotary_dim(self) -> int:
        """The size of the vectors that positions rotate; 0: none."""
        return 0

    @property
    def reads_layer(self) -> int | None:
        """The layer whose keys and values it reads in place of its own; None: its own."""
        return None

    def example_of_shared(self, dtype: Any) -> Any:
        """What that layer leaves, of one token, to draw parameters with."""
        return None

    @property
    def merges_encoder(self) -> bool:
        """Whether it reads the encoder's output itself, beside its own row's tokens, so that its layers have no
        cross-attention."""
        return False

    @property
    def recurrent(self) -> bool:
        """Whether it reads a row in order, through a state: no token sees a later one, none stays behind a window, and
        no device can have a part of a row."""
        return False

    def check(self, positions: Positions) -> None:
        """Raise ValueError where these positions cannot serve this mixer."""
        if positions.biased:
            raise ValueError(f"{type(self).__name__} takes no bias by distance: {type(positions).__name__} adds one")

    def scaled(self, rule: Rule) -> "Mixer":
        """This mixer in the standard parametrisation, computing what it computes under `rule`."""
        return self
