"""T5Gemma (2504.06225): an encoder and a decoder of Gemma 2's layers, of a width each. T5Gemma 2: of Gemma 3's, whose
decoder has no cross-attention, but reads the encoder's output beside its own tokens; its text alone is read."""

from collections.abc import Callable, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any

from lm.model.attention import Attention
from lm.model.config import LayerKind, ModelConfig
from lm.model.merged import MergedAttention
from lm.model.output import NoOutput
from lm.pretrained import defaults, gemma
from lm.pretrained.architecture import Architecture, attention_of, linear, require, same
from lm.pretrained.fields import Fields
from lm.pretrained.llama import AT, ATTENTION, DENSE
from lm.pretrained.rows import Row

OF_SIDES = ("is_decoder", "cross_attention_hidden_size", "tie_word_embeddings")  # which the whole model says
OF_IMAGES = ("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
IMAGES = r"^model\.encoder\.(vision_tower|multi_modal_projector)\.|embed_tokens\.eoi_embedding$"
# what is written of a tower that is not read, which transformers draws anew
TOWER = dict(model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=1)
TOWER |= dict(num_attention_heads=1, image_size=14, patch_size=14, vision_use_head=False)
NORMS = [
    same(f"layers/*/{ours}_scale", f"{AT}{theirs}_layernorm.weight")
    for ours, theirs in (
        ("attention_norm", "pre_self_attn"),
        ("attention_post_norm", "post_self_attn"),
        ("cross_norm", "pre_cross_attn"),
        ("cross_post_norm", "post_cross_attn"),
        ("ffn_norm", "pre_feedforward"),
        ("ffn_post_norm", "post_feedforward"),
    )
]
SELF = [row for row in ATTENTION if "self_attn." in row.theirs]
CROSS = [
    row._replace(
        ours=tuple(path.replace("*/", "*/cross_") for path in row.ours), theirs=row.theirs.replace("self_", "cross_")
    )
    for row in SELF
]


def _inside(side: str, ours: str, rows: Sequence[Row]) -> list[Row]:
    """The rows of layers, of the module `side` and at our path `ours`."""
    return [
        row._replace(
            ours=tuple(ours + path for path in row.ours), theirs=row.theirs.replace("model.", f"model.{side}.", 1)
        )
        for row in rows
    ]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of T5Gemma 1 and 2: what a model does not have is left out, the embedding of its own or the encoder's,
    and cross-attention."""
    first, other = ("encoder", "") if cfg.one_embedding else ("decoder", "encoder/")
    layers = [*NORMS, *SELF, *CROSS, *DENSE]
    return [
        same("stem/tokens", f"model.{first}.embed_tokens.weight"),
        *([same("encoder/stem/tokens", "model.encoder.embed_tokens.weight")] if other else []),
        *_inside("encoder", "encoder/", layers),
        same("encoder/norm_scale", "model.encoder.norm.weight"),
        *_inside("decoder", "", layers),
        same("head/norm_scale", "model.decoder.norm.weight"),
        linear("head/kernel", "lm_head.out_proj.weight"),
    ]


def _side(
    fields: Fields, values: dict[str, Any], name: str, read: Callable[[Fields], ModelConfig], known: Any
) -> ModelConfig:
    """The model that `read` reads of one side's `values`."""
    own = {field: value for field, value in values.items() if field not in OF_SIDES}
    return read(Fields(own, f"{fields.file}: {name}", known))


def _encoder(cfg: ModelConfig, sides: Callable[[int], tuple[int, int]]) -> ModelConfig:
    """The encoder of which `cfg` is the causal model: without an output, and with windows of `sides`(window), as
    LayerKind has them."""
    both = _with_windows(cfg, lambda kind: sides(kind.window))
    return replace(both, causal=False, output=NoOutput(), tied=True)


def _with_windows(cfg: ModelConfig, of: Callable[[LayerKind], tuple[int, int | None]]) -> ModelConfig:
    """`cfg` with windows of `of`(kind) in its windowed layers."""

    def kind(one: LayerKind) -> LayerKind:
        window, after = of(one)
        return replace(one, window=window, window_after=after) if one.window else one

    return replace(cfg, first_layers=tuple(map(kind, cfg.first_layers)), pattern=tuple(map(kind, cfg.pattern)))


def _common(fields: Fields) -> dict[str, Any]:
    """Whether the output is tied; fields that the sides say are passed over."""
    fields.expect("is_encoder_decoder", True)
    for name in fields.defaults:
        fields.take(name)
    fields.take("vocab_size", None)
    return dict(tied=fields.flag("tie_word_embeddings"))


def read(fields: Fields) -> ModelConfig:
    """T5Gemma's config.json. Tokens of its encoder's windowed layers see as many before and behind them as the window
    says."""
    known = gemma.read_gemma2, defaults.GEMMA2
    encoder, decoder = (_side(fields, gemma.part(fields, name), name, *known) for name in ("encoder", "decoder"))
    cfg = replace(decoder, encoder=_encoder(encoder, lambda window: (window + 1, window)), **_common(fields))
    fields.finish()
    return cfg


def read2(fields: Fields) -> ModelConfig:
    """T5Gemma 2's config.json. A window is all that a token of the encoder sees, half of it on each side, of an even
    one one more behind it. Its images are not read."""
    for name in ("encoder", "decoder"):  # which its class does not do without, as T5Gemma's does
        fields.take(name)
    sides = Fields(gemma.part(fields, "encoder"), f"{fields.file}: encoder")
    text = gemma.part(sides, "text_config")
    for name in (*OF_IMAGES, "tie_word_embeddings"):
        sides.take(name, None)
    sides.finish()
    known = gemma.read_gemma3, defaults.GEMMA3
    encoder = _side(fields, text, "encoder: text_config", *known)
    decoder = _side(fields, gemma.part(fields, "decoder"), "decoder", *known)
    cfg = replace(
        decoder,
        attention=MergedAttention(**{f.name: getattr(decoder.attention, f.name) for f in fields_of(Attention)}),
        encoder=_encoder(encoder, lambda window: ((window + 1) // 2, window // 2)),
        one_embedding=True,
        **_common(fields),
    )
    fields.finish()
    if not cfg.tied:  # then the sides' tables are two as well
        cfg = replace(cfg, one_embedding=None)
    return cfg


def _written(cfg: ModelConfig, write: Callable[[ModelConfig], dict[str, Any]], window: Any) -> tuple[Any, Any]:
    """The fields of both sides, of which `write` writes the causal model; `window`(kind) is the encoder's in their
    config. Raises ValueError for a model without an encoder of its own."""
    encoder = cfg.encoder
    if encoder is None or encoder.causal or not isinstance(encoder.output, NoOutput) or encoder.output.scores:
        raise ValueError("expected an encoder of its own, without an output")
    alone = _with_windows(encoder, lambda one: (window(one), None))
    plain = Attention(**{f.name: getattr(attention_of(cfg), f.name) for f in fields_of(Attention)})
    decoder = replace(cfg, encoder=None, one_embedding=None, attention=plain)
    return write(replace(alone, causal=True, output=cfg.output, tied=cfg.tied)), write(decoder)


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads."""
    encoder, decoder = _written(cfg, gemma.write_gemma2, lambda kind: kind.window - 1)
    kind = {"model_type": "t5_gemma_module"}
    return {
        "encoder": {**kind, **encoder, "is_decoder": False},
        "decoder": {**kind, **decoder, "is_decoder": True, "cross_attention_hidden_size": encoder["hidden_size"]},
        "is_encoder_decoder": True,
        "vocab_size": cfg.vocab,
        "tie_word_embeddings": cfg.tied,
    }


def write2(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read2` reads, with a small tower, of which no tensors are written."""
    require(cfg.attention, MergedAttention)
    encoder, decoder = _written(cfg, gemma.write_gemma3, lambda kind: kind.window + (kind.window_after or 0))
    images = {"vision_config": TOWER, "mm_tokens_per_image": 1, "model_type": "t5gemma2_encoder"}
    return {
        "encoder": {**images, "text_config": {**encoder, "model_type": "t5gemma2_text"}},
        "decoder": {**decoder, "model_type": "t5gemma2_decoder"},
        "is_encoder_decoder": True,
        "tie_word_embeddings": cfg.tied,
    }


IGNORED = r"rotary_emb\.inv_freq$"
T5GEMMA = Architecture(
    "T5GemmaForConditionalGeneration", "t5gemma", defaults.T5GEMMA, read, write, rows, IGNORED, prefix="model."
)
T5GEMMA2 = replace(
    T5GEMMA,
    name="T5Gemma2ForConditionalGeneration",
    model_type="t5gemma2",
    defaults=defaults.T5GEMMA2,
    read=read2,
    write=write2,
    ignored=rf"{IGNORED}|^model\.decoder\.embed_tokens\.weight$",
    other_heads=IMAGES,
    renamed=(("model.encoder.text_model.", "model.encoder."),),
)
