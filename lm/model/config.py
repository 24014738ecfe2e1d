"""What a transformer IS: numbers and parts, in one frozen value.

The parts (norm, positions, attention, feed-forward, wiring, output) are values themselves, so that a new one is a
class, not a branch. How it is computed changes its speed and its rounding, never its meaning, and is another value:
lm/model/compute.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, NamedTuple

from lm.bounds import Count, Decay, Natural, NonNegative, Positive, Sentinel, check, whole
from lm.model.attention import Attention  # noqa: F401 - reading one back finds the classes that are imported
from lm.model.delta import GatedDeltaNet  # noqa: F401
from lm.model.experts import Experts  # noqa: F401
from lm.model.gated import GatedAttention  # noqa: F401
from lm.model.latent import LatentAttention  # noqa: F401
from lm.model.merged import MergedAttention  # noqa: F401
from lm.model.mixer import Mixer
from lm.model.normed_experts import NormedExperts  # noqa: F401
from lm.model.output import Output
from lm.model.parametrisation import Parametrisation
from lm.model.parts import FeedForward, Norm, RMSNorm
from lm.model.per_layer import PerLayerEmbedding  # noqa: F401
from lm.model.positions import Positions, Rotary
from lm.model.shared_experts import SharedExperts  # noqa: F401
from lm.model.shared_kv import NormedValues, SharedAttention  # noqa: F401
from lm.model.wiring import BareAttention, PreNorm, Wiring
from lm.value import late

MOST_LAYERS = 1_000_000


@dataclass(frozen=True)
class LayerKind:
    """How some layers differ from the rest of the model: a `window` of so many keys, the query's own among them (0:
    all), and a `mixer`, `positions` and `ffn` of their own (None: the model's). In an encoder the window has as many
    tokens behind the query's, or `window_after` of them."""

    window: Annotated[Natural, Sentinel(0, "none")] = 0
    mixer: Mixer | None = None
    positions: Positions | None = None
    ffn: FeedForward | None = None
    window_after: Natural | None = late()

    def __post_init__(self) -> None:
        check(self)

    def wired(self, model: Wiring) -> Wiring:
        """The wiring of these layers, of that of the `model`."""
        return model


@dataclass(frozen=True)
class Rewired(LayerKind):
    """Layers whose sublayers join the residual stream by a `wiring` of their own."""

    wiring: Wiring = BareAttention()

    def wired(self, model: Wiring) -> Wiring:
        return self.wiring


class Slot(NamedTuple):
    """Layers of one kind, whose parameters are stacked: the `kind` with every part filled in, and their `layers`."""

    window: int
    mixer: Mixer
    positions: Positions
    ffn: FeedForward
    layers: range
    wiring: Wiring
    window_after: int | None


@dataclass(frozen=True)
class Vision:
    """What makes tokens of images: a `tower`, whose tokens are square patches of `patch_size` pixels of an image of
    `image_size` by as many, and a connector, which averages `pool` by `pool` patches, norms them (`projector_norm`) and
    projects them to the text's width. So they stand where the text has the token `image_token`, between `begin_token`
    and `end_token` (-1: none), with `separator` around them where a prompt has a mark for an image. Each image is a
    block of attention's mask, unless `blocks` is False, or with `prefix` the whole prompt is. Pixels are scaled to 0 to
    1, less `pixel_mean`, over `pixel_std`, after an image of another size was squashed to it by `resample`. The
    tower's own `vocab` says nothing."""

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {"resample": ("bilinear", "bicubic")}

    tower: "ModelConfig"
    image_size: Count
    patch_size: Count
    image_token: Natural
    begin_token: Annotated[int, whole(-1), Sentinel(-1, "none")] = -1
    end_token: Annotated[int, whole(-1), Sentinel(-1, "none")] = -1
    separator: str = ""
    prefix: bool = False
    blocks: bool = True
    resample: str = "bilinear"
    pool: Count = 1
    projector_norm: Norm = Norm()
    projector_bias: bool = False
    channels: Count = 3
    pixel_mean: NonNegative = 0.5
    pixel_std: Positive = 0.5

    def __post_init__(self) -> None:
        check(self, "model.vision")
        if self.resample not in (known := self.choices["resample"]):
            raise ValueError(f"model.vision.resample={self.resample!r}: expected {' or '.join(known)}")
        if self.tower.causal or self.tower.has_encoder or self.tower.vision:
            raise ValueError("model.vision.tower is to have causal=False, no encoder and no vision of its own")
        if self.image_size % self.patch_size or self.grid % self.pool:
            raise ValueError(
                f"model.vision: expected image_size={self.image_size} to be a multiple of patch_size={self.patch_size} "
                f"times pool={self.pool}"
            )
        if self.tower.context < self.patches:
            raise ValueError(
                f"model.vision.tower.context={self.tower.context}: expected the patches of an image, {self.patches}"
            )

    @property
    def grid(self) -> int:
        """Patches on an image's side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of an image: the tower's tokens."""
        return self.grid**2

    @property
    def soft_tokens(self) -> int:
        """The text model's tokens that an image takes."""
        return (self.grid // self.pool) ** 2


@dataclass(frozen=True)
class MultiToken:
    """Multi-token prediction (DeepSeek-V3, 2412.19437, section 2.2): `depth` modules behind the last layer, of which
    the k-th predicts the token k places beyond the next one (lm/model/multi_token.py). Pretraining and SFT add `weight`
    times the mean of their losses; the model's own logits do not depend on them. In decoding they may draft."""

    depth: Count = 1
    weight: NonNegative = 0.3

    def __post_init__(self) -> None:
        check(self, "model.multi_token")


@dataclass(frozen=True)
class ModelConfig:
    """A transformer: decoder-only, encoder-only (`causal` False) or, with an encoder, encoder and decoder.

    `context` is the most tokens that one sequence may have. `attention` is the mixer of all layers whose kind has none
    of its own. The first layers are of the kinds `first_layers`, those after them repeat `pattern`. The encoder has
    `encoder_layers` layers like the decoder's and its embedding, or is a model of its own, `encoder`, of any width,
    with an embedding of its own or, where there is `one_embedding`, the decoder's;
    with `vision` the model sees images too, with `multi_token` it learns to predict further tokens. The embedding is
    multiplied by `embed_scale`, given `token_types` kinds of vector to add (BERT's segments; 0: none) and normalised by
    `embed_norm`; `tied` uses it as the output too.
    `dropout` is the rate on the embedding and on each residual branch (1207.0580), `init_scale` the standard deviation
    of the embedding; `parametrisation` says what first values and rates owe to the sizes."""

    vocab: Count
    layers: Annotated[int, whole(1, MOST_LAYERS)]
    width: Count
    context: Count
    attention: Mixer
    ffn: FeedForward
    norm: Norm = RMSNorm()
    positions: Positions = Rotary()
    wiring: Wiring = PreNorm()
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    first_layers: tuple[LayerKind, ...] = ()
    output: Output = Output()
    tied: bool = False
    embed_scale: Positive = 1.0
    embed_norm: Norm = Norm()
    token_types: Annotated[Natural, Sentinel(0, "none")] = 0
    encoder_layers: Annotated[int, whole(0, MOST_LAYERS), Sentinel(0, "none")] = 0
    encoder: "ModelConfig | None" = None
    vision: Vision | None = None
    causal: bool = True
    dropout: Annotated[Decay, Sentinel(0, "none")] = 0.0
    init_scale: NonNegative = 0.02
    parametrisation: Parametrisation = Parametrisation()
    multi_token: MultiToken | None = late()
    one_embedding: bool | None = late()

    def __post_init__(self) -> None:
        check(self, "model")
        if not (self.pattern and len(self.first_layers) + len(self.pattern) <= self.layers):
            raise ValueError(
                f"model.first_layers has {len(self.first_layers)} and model.pattern {len(self.pattern)} kinds of layer "
                f"for {self.layers} layers: expected at least one in the pattern, and at most {self.layers} in all"
            )
        self._check_encoder()
        for slot in self.slots.values():
            slot.mixer.check(slot.positions)
            if slot.mixer.recurrent and (slot.window or not self.causal):
                raise ValueError(
                    f"{type(slot.mixer).__name__} reads all earlier tokens of a row and no later one: "
                    f"expected window=0 and causal=True, not window={slot.window} and causal={self.causal}"
                )
            self._check_source(slot)
        if self.multi_token and (
            self.wiring.token_size or any(slot.mixer.reads_layer is not None for slot in self.slots.values())
        ):
            raise ValueError(
                "model.multi_token: a module is one layer alone, and layers here read keys and values of others, or "
                "embeddings of layers"
            )
        self.parametrisation.check(self)

    def _check_source(self, slot: Slot) -> None:
        """Raise ValueError where a slot's layers read the keys and values of a layer that is not before them all, or
        that has none such."""
        if (source := slot.mixer.reads_layer) is None:
            return
        first = self.slots.get(f"first{source}")
        sizes = [(s.window, s.mixer.sizes().get("kv_heads"), s.mixer.rotary_dim) for s in (slot, first or slot)]
        if not first or source >= slot.layers.start or first.mixer.reads_layer is not None or sizes[0] != sizes[1]:
            raise ValueError(
                f"{type(slot.mixer).__name__}.source={source}: expected one of model.first_layers before it with keys "
                "and values of its own, and the same window, kv_heads and head_dim"
            )

    def _check_encoder(self) -> None:
        if self.encoder and self.encoder_layers:
            raise ValueError("model.encoder and model.encoder_layers are both given: set one of them")
        if self.encoder and (self.encoder.causal or self.encoder.has_encoder):
            raise ValueError("model.encoder is to have causal=False and no encoder of its own")
        if self.one_embedding and not (self.encoder and self._sizes == self.encoder._sizes):
            raise ValueError("model.one_embedding: expected model.encoder of the decoder's vocab and width")
        merged = any(slot.mixer.merges_encoder for slot in self.slots.values())
        if merged and self.encoder and self.encoder.width != self.width:
            raise ValueError(
                f"model.encoder.width={self.encoder.width}: expected the decoder's, {self.width}, whose weights its "
                "output is read by"
            )
        if self.vision and (self.has_encoder or not self.causal):
            raise ValueError("model.vision: only a causal model without an encoder reads images")
        if self.vision and self.vision.image_token >= self.vocab:
            raise ValueError(f"model.vision.image_token={self.vision.image_token}: expected less than {self.vocab}")
        if self.multi_token and not self.generates:
            raise ValueError(
                "model.multi_token: only a causal model with an output over the vocabulary predicts tokens"
            )
        if self.has_encoder and not self.causal:
            raise ValueError("model.causal=False with an encoder: a decoder that reads an encoder is causal")

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.vocab, self.width

    @property
    def has_encoder(self) -> bool:
        """Whether this is a decoder that reads an encoder."""
        return bool(self.encoder_layers or self.encoder)

    @property
    def shares_embedding(self) -> bool:
        """Whether the embedding is the output too."""
        return self.tied and self.output.logit_count(self.vocab) > 0

    @property
    def generates(self) -> bool:
        """Whether it gives the next token's logits, by which texts are continued."""
        return self.causal and self.output.logit_count(self.vocab) > 0

    def check_generates(self) -> None:
        """Raises ValueError where it does not."""
        if not self.causal:
            raise ValueError("this model is an encoder: it has logits and embeddings, but generates no text")
        if not self.generates:
            raise ValueError("this model has no output over the vocabulary, so it generates no text: see `lm score`")

    @property
    def slots(self) -> dict[str, Slot]:
        """The layers by the names under which their parameters are stacked: "first0", ... for the first layers, then
        "0", ... for the places in the pattern."""
        first, period = len(self.first_layers), len(self.pattern)
        kinds = {f"first{i}": (kind, range(i, i + 1)) for i, kind in enumerate(self.first_layers)}
        kinds |= {str(p): (kind, range(first + p, self.layers, period)) for p, kind in enumerate(self.pattern)}
        return {
            name: Slot(
                kind.window,
                kind.mixer or self.attention,
                kind.positions or self.positions,
                kind.ffn or self.ffn,
                layers,
                kind.wired(self.wiring),
                kind.window_after,
            )
            for name, (kind, layers) in kinds.items()
        }

    @property
    def by_layer(self) -> tuple[Slot, ...]:
        """The slot of each layer."""
        slots = {i: slot for slot in self.slots.values() for i in slot.layers}
        return tuple(slots[i] for i in range(self.layers))

    @property
    def scaled(self) -> "ModelConfig":
        """The model in the standard parametrisation that computes the same from the same parameters."""
        rule = self.parametrisation

        def kind(one: LayerKind) -> LayerKind:
            return replace(one, mixer=one.mixer.scaled(rule)) if one.mixer else one

        return replace(
            self,
            attention=self.attention.scaled(rule),
            pattern=tuple(map(kind, self.pattern)),
            first_layers=tuple(map(kind, self.first_layers)),
            output=self.output.scaled(rule, self.width, self.tied),
            parametrisation=Parametrisation(),
        )

    @property
    def encoder_config(self) -> "ModelConfig":
        """The encoder alone."""
        own = dict(layers=self.encoder_layers, encoder_layers=0, causal=False, multi_token=None)
        return self.encoder or replace(self, **own)  # type: ignore[arg-type]
