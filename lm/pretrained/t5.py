"""T5 1.0 and 1.1: an encoder and a decoder, whose first layers have the tables of relative positions."""

from typing import Any

from lm.model.config import ModelConfig
from lm.model.families import t5
from lm.model.output import Output
from lm.model.parts import FeedForward, RMSNorm
from lm.model.positions import Relative
from lm.pretrained import defaults
from lm.pretrained.architecture import ACTIVATION, Architecture, attention_of, linear, read_sizes, require, same
from lm.pretrained.fields import Fields
from lm.pretrained.rows import Row

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
        same(f"{ours}/attention_norm_scale", f"{at}.0.layer_norm.weight"),
        *_attention(ours, f"{at}.0.SelfAttention"),
        same(f"{ours}/ffn_norm_scale", f"{at}.{ffn}.layer_norm.weight"),
        *(linear(f"{ours}/{name}", f"{dense}.{w}.weight") for name, w in wi.items()),
        linear(f"{ours}/down", f"{dense}.wo.weight"),
    ]


def rows(cfg: ModelConfig) -> list[Row]:
    """The table of T5, gated (1.1) or not."""
    gated, table = cfg.ffn.gated, "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
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


def read(fields: Fields) -> ModelConfig:
    """T5's config.json. Raises ValueError for a field that is not supported."""
    known, encoder_layers = read_sizes(fields, SIZES), fields.integer("num_layers")
    gated, act = _activation(fields)
    buckets = fields.integer("relative_attention_num_buckets")
    max_distance = fields.integer("relative_attention_max_distance")
    if buckets < 4 or max_distance <= buckets // 2:
        raise fields.unsupported("relative_attention_num_buckets", buckets, f"from 4 to less than {2 * max_distance}")
    tied = fields.flag("tie_word_embeddings", True)
    # 1.0 scales the output's input, and is recognised by tying where there is no field for it; null is false
    scaled = fields.flag("scale_decoder_outputs", tied and "scale_decoder_outputs" not in fields.values)
    fields.expect("is_encoder_decoder", True)
    fields.expect("is_decoder", False)
    cfg = t5(
        **known,
        layers=fields.integer("num_decoder_layers") or encoder_layers,
        encoder_layers=encoder_layers,
        context=fields.integer("n_positions", 512),
        buckets=buckets,
        max_distance=max_distance,
        eps=float(fields.number("layer_norm_epsilon")),
        ffn=FeedForward(known["mlp"], act, gated=gated),
        output=Output(scale=known["width"] ** -0.5 if scaled else 1.0),
        tied=tied,
    )
    fields.finish()
    return cfg


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


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The fields that `read` reads. Raises ValueError for a config without RMSNorm and relative positions."""
    norm, positions = require(cfg.norm, RMSNorm), require(cfg.positions, Relative)
    names = {"gelu_tanh": "gelu"} if cfg.ffn.gated else {"gelu_tanh": "gelu_new"}
    act = names.get(cfg.ffn.activation, cfg.ffn.activation)
    return {
        "vocab_size": cfg.vocab,
        "d_model": cfg.width,
        "num_heads": attention_of(cfg).heads,
        "d_kv": attention_of(cfg).head_dim,
        "d_ff": cfg.ffn.mlp,
        "num_layers": cfg.encoder_layers,
        "num_decoder_layers": cfg.layers,
        "n_positions": cfg.context,
        "feed_forward_proj": f"gated-{act}" if cfg.ffn.gated else act,
        "relative_attention_num_buckets": positions.buckets,
        "relative_attention_max_distance": positions.max_distance,
        "layer_norm_epsilon": norm.eps,
        "is_encoder_decoder": True,
        "tie_word_embeddings": cfg.tied,
        "scale_decoder_outputs": cfg.output.scale != 1,
    }


COPIES = r"^(en|de)coder\.embed_tokens\.weight$|EncDecAttention\.relative_attention_bias\.weight$"
T5 = Architecture("T5ForConditionalGeneration", "t5", defaults.T5, read, write, rows, ignored=COPIES)
