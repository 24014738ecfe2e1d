"""T5 1.0 and 1.1, mT5 (2010.11934) and umT5 (2304.09151): an encoder and a decoder, whose first layers have the tables
of relative positions (umT5: all layers); or the encoder alone."""

from dataclasses import replace
from functools import partial
from typing import Any

from lm.model.config import ModelConfig
from lm.model.families import t5
from lm.model.output import NoOutput, Output
from lm.model.parts import FeedForward, RMSNorm
from lm.model.positions import Relative, RelativeByLayer
from lm.pretrained import defaults
from lm.pretrained.architecture import ACTIVATION, Architecture, attention_of, linear, read_sizes, require, same
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Row

TABLE = "relative_attention_bias.weight"
SIZES = dict(vocab="vocab_size", width="d_model", heads="num_heads", head_dim="d_kv", mlp="d_ff")


def _attention(ours: str, theirs: str, cross: str = "") -> list[Row]:
    return [
        linear(f"{ours}/{cross}query", f"{theirs}.q.weight"),
        linear(f"{ours}/{cross}key", f"{theirs}.k.weight"),
        linear(f"{ours}/{cross}value", f"{theirs}.v.weight"),
        linear(f"{ours}/{cross}out", f"{theirs}.o.weight", inputs=2),
    ]


def _stack(ours: str, theirs: str, ffn: int, gated: bool) -> list[Row]:
    """The layers of one stack, whose feed-forward is sublayer number `ffn`."""
    at, dense = f"{theirs}.block.{{i}}.layer", f"{theirs}.block.{{i}}.layer.{ffn}.DenseReluDense"
    wi = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    return [
        same(f"{ours}/relative", f"{at}.0.SelfAttention.{TABLE}"),
        same(f"{ours}/attention_norm_scale", f"{at}.0.layer_norm.weight"),
        *_attention(ours, f"{at}.0.SelfAttention"),
        same(f"{ours}/ffn_norm_scale", f"{at}.{ffn}.layer_norm.weight"),
        *(linear(f"{ours}/{name}", f"{dense}.{w}.weight") for name, w in wi.items()),
        linear(f"{ours}/down", f"{dense}.wo.weight"),
    ]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of T5, gated (1.1) or not."""
    gated, table = cfg.ffn.gated, f"block.0.layer.0.SelfAttention.{TABLE}"
    return [
        same("stem/tokens", "shared.weight"),
        same("encoder/relative", f"encoder.{table}"),
        *_stack("encoder/layers/*", "encoder", 1, gated),
        same("encoder/norm_scale", "encoder.final_layer_norm.weight"),
        same("stem/relative", f"decoder.{table}"),
        *_stack("layers/*", "decoder", 2, gated),
        same("layers/*/cross_norm_scale", "decoder.block.{i}.layer.1.layer_norm.weight"),
        *_attention("layers/*", "decoder.block.{i}.layer.1.EncDecAttention", "cross_"),
        same("head/norm_scale", "decoder.final_layer_norm.weight"),
        linear("head/kernel", "lm_head.weight"),
    ]


def encoder_rows(cfg: ModelConfig) -> list[Row]:
    """The table of the encoder alone."""
    return [
        same("stem/tokens", "shared.weight"),
        same("stem/relative", f"encoder.block.0.layer.0.SelfAttention.{TABLE}"),
        *_stack("layers/*", "encoder", 1, cfg.ffn.gated),
        same("head/norm_scale", "encoder.final_layer_norm.weight"),
    ]


def _read(fields: Fields, kind: type[Relative], **parts: Any) -> ModelConfig:
    """The fields of all of them, but for those that `parts` say, with positions of the `kind`. Raises ValueError for a
    field that is not supported."""
    known = read_sizes(fields, SIZES)
    gated, act = _activation(fields)
    buckets = fields.integer("relative_attention_num_buckets")
    max_distance = fields.integer("relative_attention_max_distance")
    if buckets < 4 or max_distance <= buckets // 2:
        raise fields.unsupported("relative_attention_num_buckets", buckets, f"from 4 to less than {2 * max_distance}")
    fields.expect("is_decoder", False)
    fields.take("scalable_attention", None)  # which umT5's published files have and nobody reads
    cfg = t5(
        **known,
        context=fields.integer("n_positions", 512),
        positions=kind(buckets, max_distance),
        eps=float(fields.number("layer_norm_epsilon")),
        ffn=FeedForward(known["mlp"], act, gated=gated),
        **parts,
    )
    fields.finish()
    return cfg


def _read_both(fields: Fields, kind: type[Relative], tied: bool, scaled: bool) -> ModelConfig:
    """The config.json of an encoder and a decoder, whose output's input is `scaled` or not."""
    layers = fields.integer("num_layers")
    fields.expect("is_encoder_decoder", True)
    return _read(
        fields,
        kind,
        layers=fields.integer("num_decoder_layers") or layers,
        encoder_layers=layers,
        output=Output(scale=fields.integer("d_model") ** -0.5 if scaled else 1.0),
        tied=tied,
    )


def read(fields: Fields, kind: type[Relative] = Relative) -> ModelConfig:
    """T5's config.json: 1.0 scales the output's input, and is recognised by tying where there is no field for it; null
    is false. Or umT5's, of another `kind` of positions, whose published files say that they are not tied."""
    tied = fields.flag("tie_word_embeddings", True)
    scaled = fields.flag("scale_decoder_outputs", tied and "scale_decoder_outputs" not in fields.values)
    return _read_both(fields, kind, tied, scaled)


def read_mt5(fields: Fields) -> ModelConfig:
    """mT5's config.json, whose output's input is never scaled."""
    return _read_both(fields, Relative, fields.flag("tie_word_embeddings"), False)


def read_encoder(fields: Fields, kind: type[Relative]) -> ModelConfig:
    """The config.json of the encoder alone."""
    for name in ("is_encoder_decoder", "tie_word_embeddings"):  # of the decoder, which is not there
        fields.expect(name, True, False)
    for name in ("num_decoder_layers", "scale_decoder_outputs"):
        fields.take(name, None)
    layers = fields.integer("num_layers")
    cfg = _read(fields, kind, layers=layers, output=NoOutput(), tied=True)
    return replace(cfg, encoder_layers=0, causal=False)


def _activation(fields: Fields) -> tuple[bool, str]:
    """Whether the feed-forward is gated, and its activation, which dense_act_fn overrides."""
    gate, _, act = str(fields.take("feed_forward_proj")).rpartition("-")
    if gate not in ("", "gated") or act not in ACTIVATION:
        raise fields.unsupported("feed_forward_proj", fields.take("feed_forward_proj"), "relu or gated-gelu")
    # "gated-gelu" means the tanh approximation, plain "gelu" does not
    act = "gelu_new" if (gate, act) == ("gated", "gelu") else act
    fields.expect("is_gated_act", bool(gate))
    for name in ("is_gated_act", "dense_act_fn"):
        if name in fields.values and fields.values[name] is None:  # which would overrule feed_forward_proj
            raise fields.unsupported(name, None, "a value, or no such field")
    return bool(gate), str(fields.choose("dense_act_fn", ACTIVATION, act))


def _write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `_read` reads. Raises ValueError for a config without RMSNorm and relative positions."""
    norm, positions = require(cfg.norm, RMSNorm), require(cfg.positions, Relative)
    names = {"gelu_tanh": "gelu"} if cfg.ffn.gated else {"gelu_tanh": "gelu_new"}
    act = names.get(cfg.ffn.activation, cfg.ffn.activation)
    return {
        "vocab_size": cfg.vocab,
        "d_model": cfg.width,
        "num_heads": attention_of(cfg).heads,
        "d_kv": attention_of(cfg).head_dim,
        "d_ff": cfg.ffn.mlp,
        "n_positions": cfg.context,
        "feed_forward_proj": f"gated-{act}" if cfg.ffn.gated else act,
        "relative_attention_num_buckets": positions.buckets,
        "relative_attention_max_distance": positions.max_distance,
        "layer_norm_epsilon": norm.eps,
        "tie_word_embeddings": cfg.tied,
    }


def write_both(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_mt5` reads."""
    layers = {"num_layers": cfg.encoder_layers, "num_decoder_layers": cfg.layers}
    return {**_write(cfg), **layers, "is_encoder_decoder": True}


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads."""
    return {**write_both(cfg), "scale_decoder_outputs": cfg.output.scale != 1}


def write_encoder(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read_encoder` reads."""
    return {**_write(cfg), "num_layers": cfg.layers, "is_encoder_decoder": False}


COPIES = r"^(en|de)coder\.embed_tokens\.weight$|EncDecAttention\.relative_attention_bias\.weight$"
T5 = Architecture("T5ForConditionalGeneration", "t5", defaults.T5, read, write, rows, ignored=COPIES)
MT5 = Architecture("MT5ForConditionalGeneration", "mt5", defaults.MT5, read_mt5, write_both, rows, ignored=COPIES)
UMT5 = replace(
    T5,
    name="UMT5ForConditionalGeneration",
    model_type="umt5",
    defaults=defaults.UMT5,
    read=partial(read, kind=RelativeByLayer),
)
ENCODERS = tuple(
    replace(
        both,
        name=both.name.replace("ForConditionalGeneration", "EncoderModel"),
        read=partial(read_encoder, kind=kind),
        write=write_encoder,
        rows=encoder_rows,
        ignored=rf"{COPIES}|^decoder\.|^lm_head\.",
    )
    for both, kind in ((T5, Relative), (MT5, Relative), (UMT5, RelativeByLayer))
)
