"""What a transformer IS: numbers and parts, in one frozen value.

The parts (norm, positions, attention, feed-forward, wiring, output) are values themselves, so that a new one is a
class, not a branch. How it is computed changes its speed and its rounding, never its meaning, and is another value:
lm/model/compute.py.
"""

from dataclasses import dataclass, replace

from lm.model.attention import Attention
from lm.model.experts import Experts  # noqa: F401 - reading one back finds the classes that are imported
from lm.model.output import Output
from lm.model.parametrisation import Parametrisation
from lm.model.parts import FeedForward, Norm, RMSNorm
from lm.model.positions import Positions, Rotary
from lm.model.wiring import PreNorm, Wiring


@dataclass(frozen=True)
class LayerKind:
    """How the layers of one place in the repeating pattern differ from the rest of the model: a `window` of so many
    keys, the query's own among them (0: all), and `positions` and `ffn` of their own (None: the model's)."""

    window: int = 0
    positions: Positions | None = None
    ffn: FeedForward | None = None

    def __post_init__(self) -> None:
        if self.window < 0:
            raise ValueError(f"window={self.window}: expected a number of keys, or 0 for all")


@dataclass(frozen=True)
class ModelConfig:
    """A transformer: decoder-only, encoder-only (`causal` False) or, with `encoder_layers`, encoder and decoder.

    `context` is the most tokens that one sequence may have. Layer i is of the kind pattern[i % len(pattern)]. The
    embedding is multiplied by `embed_scale`, given `token_types` kinds of vector to add (BERT's segments; 0: none) and
    normalised by `embed_norm`; `tied` uses it as the output too. `dropout` is the rate on the embedding and on each
    residual branch (1207.0580), `init_scale` the standard deviation of the embedding; `parametrisation` says what first
    values and rates owe to the sizes."""

    vocab: int
    layers: int
    width: int
    context: int
    attention: Attention
    ffn: FeedForward
    norm: Norm = RMSNorm()
    positions: Positions = Rotary()
    wiring: Wiring = PreNorm()
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    output: Output = Output()
    tied: bool = False
    embed_scale: float = 1.0
    embed_norm: Norm = Norm()
    token_types: int = 0
    encoder_layers: int = 0
    causal: bool = True
    dropout: float = 0.0
    init_scale: float = 0.02
    parametrisation: Parametrisation = Parametrisation()

    def __post_init__(self) -> None:
        for name in ("vocab", "layers", "width", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: expected at least 1")
        for name in ("token_types", "encoder_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name}={getattr(self, name)}: expected at least 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: expected a rate from 0 up to, not including, 1")
        if not 1 <= len(self.pattern) <= self.layers:
            raise ValueError(
                f"model.pattern has {len(self.pattern)} kinds of layer for {self.layers} layers: expected 1 to "
                f"{self.layers}"
            )
        if self.encoder_layers and not self.causal:
            raise ValueError("model.causal=False with encoder_layers: a decoder that reads an encoder is causal")
        for kind in self.kinds:
            kind.positions.check(self.attention.head_dim)  # type: ignore[union-attr]

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The pattern with the model's own positions and feed-forward where a kind has none."""
        return tuple(
            replace(kind, positions=kind.positions or self.positions, ffn=kind.ffn or self.ffn) for kind in self.pattern
        )

    @property
    def scaled(self) -> "ModelConfig":
        """The model in the standard parametrisation that computes the same from the same parameters."""
        rule, attention, output = self.parametrisation, self.attention, self.output
        attention = replace(attention, scale=rule.attention_scale(attention.scale, attention.head_dim))
        output = replace(output, scale=rule.output_scale(output.scale, self.width, self.tied))
        return replace(self, attention=attention, output=output, parametrisation=Parametrisation())

    @property
    def encoder(self) -> "ModelConfig":
        """The encoder alone."""
        return replace(self, layers=self.encoder_layers, encoder_layers=0, causal=False)
