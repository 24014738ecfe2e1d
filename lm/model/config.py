"""What a transformer IS: numbers and parts, in one frozen value.

The parts (norm, positions, attention, feed-forward, wiring) are values themselves, so that a new one is a class, not a
branch. How it is computed changes its speed and its rounding, never its meaning, and is another value:
lm/model/compute.py.
"""

from dataclasses import dataclass

from lm.model.attention import Attention
from lm.model.parts import FeedForward, Norm, PreNorm, RMSNorm, Wiring
from lm.model.positions import Positions, Rotary


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    `context` is the most tokens that one sequence may have; `tied` uses the embedding as the output head; `dropout` is
    the rate on the embedding and on each residual branch (1207.0580), `init_scale` the standard deviation of the
    embedding."""

    vocab: int
    layers: int
    width: int
    context: int
    attention: Attention
    ffn: FeedForward
    norm: Norm = RMSNorm()
    positions: Positions = Rotary()
    wiring: Wiring = PreNorm()
    tied: bool = False
    dropout: float = 0.0
    init_scale: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab", "layers", "width", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: expected a rate from 0 up to, not including, 1")
        self.positions.check(self.attention.head_dim)
